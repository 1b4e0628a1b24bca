"""DistributedDataParallel over gloo, one compute thread a process, or over NCCL, a card a process; three kinds of work in turn:

solo     rank 0 alone trains the bare model on the whole batch, the others sleep in a barrier
replicas every rank trains a bare model of its own on its share, without communication
ddp      every rank trains on its share, and gradients are averaged
"""
import argparse
import statistics
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--work", choices=["mlp", "tiny", "cnn"], default="mlp")
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: a card for each rank")
parser.add_argument("--scaling", choices=["strong", "weak"], default="strong",
                    help="strong: the batch is shared out; weak: each rank has a whole one")
parser.add_argument("--seconds", type=float, default=0.5, help="per sample")
parser.add_argument("--samples", type=int, default=5)
args = parser.parse_args()

from work import WORK, Trainer, batches, emit, quiet_gloo, spread

quiet_gloo()
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel


def largest(value):
    device = "cuda" if args.device == "cuda" else "cpu"
    value = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def rank_main(rank, store):
    torch.set_num_threads(1)
    device = args.device
    if device == "cuda":
        device = f"cuda:{rank}"
        torch.cuda.set_device(device)
        # As ours are: f32 is f32 on a card.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo", init_method=f"file://{store}", rank=rank, world_size=args.ranks)
    make, shape, whole = WORK[args.work]
    share = whole // args.ranks if args.scaling == "strong" else whole
    torch.manual_seed(rank)
    trainers = {
        "solo": Trainer(make().to(device), batches(shape, whole, device)),
        "replicas": Trainer(make().to(device), batches(shape, share, device)),
        "ddp": Trainer(DistributedDataParallel(make().to(device)), batches(shape, share, device)),
    }
    steps, figures = {}, {name: [] for name in trainers}
    for name, trainer in trainers.items():
        dist.barrier()
        if name != "solo" or rank == 0:
            trainer.rate(10)
            rate = trainer.rate(10)
        # The slowest rank says how many steps a sample has; under solo the others wait here.
        slowest = largest(1 / rate if name != "solo" or rank == 0 else 0.0)
        steps[name] = max(2, int(args.seconds / slowest))
    for _ in range(args.samples):
        for name, trainer in trainers.items():
            dist.barrier()
            seconds = steps[name] / trainer.rate(steps[name]) if name != "solo" or rank == 0 else 0.0
            figures[name].append(steps[name] / largest(seconds))
    difference = 0.0
    for parameter in trainers["ddp"].model.parameters():
        other = parameter.detach().clone()
        dist.broadcast(other, 0)
        difference = max(difference, float((other - parameter.detach()).abs().max()))
    difference = largest(difference)
    if rank == 0:
        solo, replicas, ddp = (statistics.median(figures[name]) for name in ("solo", "replicas", "ddp"))
        emit(bench="ddp", device=args.device, work=args.work, ranks=args.ranks, scaling=args.scaling, batch_per_rank=share,
             steps_per_second=round(ddp, 3), min=round(min(figures["ddp"]), 3), max=round(max(figures["ddp"]), 3),
             samples_per_second=round(ddp * share * args.ranks, 1),
             speedup_over_one=round(ddp * share * args.ranks / (solo * whole), 3),
             share_of_replicas=round(ddp / replicas, 3), exposed_ms=round(1e3 / ddp - 1e3 / replicas, 3),
             solo=spread(figures["solo"]), replicas=spread(figures["replicas"]), replica_difference=difference)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(f"{folder}/store",), nprocs=args.ranks)
