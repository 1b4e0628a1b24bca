//! Where the ranks of a world live: the devices that they are given, and groups of one rank, which meet nobody.

mod alone;

use phalanx_comm::{DType, Device, Error, LaunchConfig, ReduceOp, Tensor, launch};

#[test]
fn ranks_live_on_the_devices_from_the_given_one_on() {
    let found = launch(LaunchConfig::new(3).device(Device::cpu(40)), |group| {
        let ones = Tensor::ones([2], DType::F32, group.device())?;
        let sum = group.all_reduce(ones, ReduceOp::Sum)?.wait()?;
        Ok::<_, Error>((sum.device(), sum.to_vec::<f32>()?))
    });
    let found = found.unwrap();
    for (rank, found) in found.iter().enumerate() {
        assert_eq!(*found, (Device::cpu(40 + rank), vec![3.0; 2]));
    }
}

/// What is not there is said before anything runs.
#[test]
fn a_card_that_is_not_there_is_refused() {
    for size in [1, 2] {
        let config = LaunchConfig::new(size).device(Device::cuda(63));
        let end = launch(config, |_| -> Result<(), Error> { panic!("it runs") });
        let text = end.unwrap_err().to_string();
        assert!(text.contains("device cuda:63 is not available"), "{text}");
    }
}

#[test]
fn a_rank_alone_gets_its_own_tensor_back() {
    alone::it_gets_its_own_tensor_back(Device::cpu(0));
}
