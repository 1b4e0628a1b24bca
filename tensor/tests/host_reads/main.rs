//! No way of reading a tensor on a CPU device gives out a number that is undefined.

#[path = "../level/mod.rs"]
mod level;
mod walk;

use phalanx_tensor::Device;

#[test]
fn lost_writes_are_never_read() {
    walk::lost_writes_are_never_read(Device::cpu(0));
}
