//! The features that the chores build with. All test programs in debug have those of all backends that build here, so that
//! one build of the workspace serves threads, processes and cards.

use std::sync::OnceLock;

use crate::machine;

/// CUDA devices, and groups of them. They build on any machine, and find out when they run what is there.
pub const CARDS: &str = "phalanx-tensor/cuda,phalanx-autograd/cuda,phalanx-comm/nccl,phalanx-parallel/nccl,\
    phalanx-examples/nccl,phalanx-benches/nccl";

/// Ranks as processes: MPI is needed to build.
pub const MPI: &str =
    "phalanx-comm/mpi,phalanx-parallel/mpi,phalanx-examples/mpi,phalanx-benches/mpi";

/// Those of all backends that build here.
pub fn all() -> &'static str {
    static ALL: OnceLock<String> = OnceLock::new();
    ALL.get_or_init(|| match machine::obstacle() {
        None => format!("{CARDS},{MPI}"),
        Some(_) => CARDS.to_owned(),
    })
}
