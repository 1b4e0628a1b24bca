//! A training loop at steady state asks the system for nothing: after the first rounds every buffer
//! comes from the device's pool, every round ends with as much live as the one before, and what stays
//! from round to round stays where it is. Each kind of device has a test program that calls this.

use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, SgdConfig, adam_step, global_norm, scale, sgd_step,
};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, GeluKind, Result, Rng, Tensor};

/// What a training program holds between its steps.
struct Model {
    params: Vec<Tensor>,
    momenta: Vec<Option<Tensor>>,
    moments: Vec<Option<AdamState>>,
    table: Tensor,
    ids: Tensor,
    targets: Tensor,
    rng: Rng,
}

impl Model {
    fn new(dtype: DType, device: Device) -> Result<Model> {
        let mut rng = Rng::new(7);
        let shapes = [&[8, 4, 3, 3][..], &[8], &[8], &[8 * 16], &[8 * 16]];
        let param = |shape: &&[usize]| Tensor::randn(*shape, dtype, device, &mut rng);
        let params = shapes.iter().map(param).collect::<Result<Vec<_>>>()?;
        Ok(Model {
            momenta: vec![None; params.len()],
            moments: vec![None; params.len()],
            params,
            table: Tensor::randn([100, 4 * 64], dtype, device, &mut rng)?,
            ids: Tensor::randint(0, 100, [6], device, &mut rng)?,
            targets: Tensor::randint(0, 8 * 16, [6], device, &mut rng)?,
            rng,
        })
    }

    /// What a step changes in place.
    fn kept(&self) -> Vec<&Tensor> {
        let moments = self.moments.iter().flatten();
        let moments = moments.flat_map(|m| [&m.exp_avg, &m.exp_avg_sq]);
        let momenta = self.momenta.iter().flatten();
        self.params.iter().chain(momenta).chain(moments).collect()
    }

    /// Where it is.
    fn addresses(&self) -> Vec<u64> {
        self.kept().into_iter().map(Tensor::address).collect()
    }

    /// Forward, backward and update, through an operation of each family.
    fn step(&mut self) -> Result<()> {
        let [conv, gain, shift, scale_w, scale_b] = &self.params[..] else {
            unreachable!("five parameters")
        };
        let config = Conv2dConfig::default().with_padding(1);
        let pool = Pool2dConfig::new([2, 2]);
        let eps = 1e-5;
        let x = self.table.embedding(&self.ids)?.reshape([6, 4, 8, 8])?;
        let c = x.conv2d(conv, None, &config)?;
        let n = c.batch_norm(Some(gain), Some(shift), eps)?;
        let r = n.out.gelu(GeluKind::Tanh)?;
        let (p, places) = r.max_pool2d(&pool)?;
        let (d, mask) = p.dropout(0.1, &mut self.rng)?;
        let f = d.transpose(2, 3)?.reshape([6, 8 * 16])?;
        let l = f.layer_norm([8 * 16], Some(scale_w), Some(scale_b), eps)?;
        let both = Tensor::cat(&[&l.out, &f], 0)?;
        let logits = both.narrow(0, 0, 6)?.add(&f.softmax(1)?)?.mul_scalar(0.5)?;
        let loss = CrossEntropyConfig::default();
        let out = logits.cross_entropy(&self.targets, &loss)?;

        let one = Tensor::ones((), out.loss.dtype(), out.loss.device())?;
        let g = one.cross_entropy_backward(
            &logits,
            &self.targets,
            &out.saved,
            &out.total_weight,
            &loss,
        )?;
        let l = g.layer_norm_backward(&f, [8 * 16], Some(scale_w), &l.mean, &l.rstd)?;
        let g = l.input.reshape([6, 8, 4, 4])?.transpose(2, 3)?;
        let g = g.dropout_backward(&mask, 0.1)?;
        let g = Tensor::max_pool2d_backward(&g, &places, r.shape())?;
        let g = g.gelu_backward(&n.out, GeluKind::Tanh)?;
        let saved = BatchNormSaved {
            input: &c,
            mean: &n.mean,
            invstd: &n.invstd,
            weight: Some(gain),
            bias: Some(shift),
            activation: BatchNormMask::Linear,
        };
        let n = Tensor::batch_norm_backward(&g, &saved)?;
        let dw = Tensor::conv2d_weight_grad(&x, &n.input, conv.shape(), &config)?;
        let dx = Tensor::conv2d_input_grad(&n.input, conv, x.shape(), &config)?;
        let rows = dx
            .reshape([6, 4 * 64])?
            .embedding_backward(&self.ids, 100)?;
        self.table = self.table.sub(&rows)?;

        let of = |g: Option<Tensor>| {
            g.map_or_else(|| Tensor::zeros([8 * 16], DType::F32, x.device()), Ok)
        };
        let mut grads = [dw, n.weight, n.bias, of(l.weight)?, of(l.bias)?];
        for g in &mut grads {
            *g = g.cast(logits.dtype())?;
        }
        let norm = global_norm(&grads)?;
        assert!(norm.item::<f64>()?.is_finite() && out.loss.item::<f64>()?.is_finite());
        scale(&mut grads, &norm.maximum_scalar(1.0)?.recip()?)?;
        let sgd = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        sgd_step(&mut self.params, &grads, &mut self.momenta, &sgd)?;
        adam_step(
            &mut self.params,
            &grads,
            &mut self.moments,
            &AdamConfig::adamw(),
        )
    }
}

/// The elements of a tensor, wherever it is.
fn bytes(t: &Tensor) -> Vec<u8> {
    let here = t.to_device(Device::cpu(0)).unwrap();
    here.as_bytes().unwrap().to_vec()
}

/// Trains on a device that nobody else uses meanwhile.
pub fn takes_nothing_from_the_system_once_it_is_warm(
    device: Device,
    dtype: DType,
    rounds: usize,
) -> Result<()> {
    let nothing = device.memory()?.live;
    let mut model = Model::new(dtype, device)?;
    model.step()?;
    let addresses = model.addresses();
    assert_eq!(addresses.len(), 20, "parameters, momenta and two moments");
    let kept = model.kept().into_iter();
    let snapshot = kept.map(Tensor::copy).collect::<Result<Vec<_>>>()?;
    let taken: Vec<_> = snapshot.iter().map(bytes).collect();
    for _ in 0..2 {
        model.step()?;
    }
    let warm = device.memory()?;
    assert!(warm.live > 0 && warm.peak > warm.live);
    for round in 0..rounds {
        model.step()?;
        assert_eq!(device.memory()?, warm, "{dtype}, round {round}");
        assert_eq!(model.addresses(), addresses, "{dtype}, round {round}");
    }
    assert!(snapshot.iter().map(bytes).eq(taken.iter().cloned()));
    assert!(model.kept().into_iter().map(bytes).ne(taken));
    drop((model, snapshot));
    assert_eq!(device.memory()?.live, nothing, "all went with the model");
    Ok(())
}
