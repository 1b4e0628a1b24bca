"""Collectives between processes: gloo's, one thread each, or NCCL's, a card each. Sizes as in nccl-tests: bytes of the whole message (the buffer of
all_reduce and broadcast, the output of all_gather, the input of reduce_scatter)."""
import argparse
import statistics
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--op", choices=["all_reduce", "broadcast", "all_gather", "reduce_scatter"], default="all_reduce")
parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("--bytes", type=int, nargs="+", default=[1 << 24])
parser.add_argument("--seconds", type=float, default=0.2, help="per sample")
parser.add_argument("--samples", type=int, default=7)
args = parser.parse_args()

from work import emit, finish, quiet_gloo

quiet_gloo()
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def rank_main(rank, store):
    torch.set_num_threads(1)
    device = f"cuda:{rank}" if args.backend == "nccl" else "cpu"
    if args.backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(args.backend, init_method=f"file://{store}", rank=rank, world_size=args.ranks)
    for size in args.bytes:
        part = size // 4 // args.ranks
        whole, piece = torch.zeros(part * args.ranks, device=device), torch.zeros(part, device=device)
        call = {
            "all_reduce": lambda: dist.all_reduce(whole),
            "broadcast": lambda: dist.broadcast(whole, 0),
            "all_gather": lambda: dist.all_gather_into_tensor(whole, piece),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(piece, whole),
        }[args.op]

        def slowest(calls):
            dist.barrier()
            finish()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            finish()
            seconds = torch.tensor([(time.perf_counter() - start) / calls], dtype=torch.float64, device=device)
            dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
            return float(seconds)

        slowest(2)
        calls = max(2, min(5000, int(args.seconds / slowest(3))))
        seconds = statistics.median(slowest(calls) for _ in range(args.samples))
        if rank == 0:
            emit(bench="collectives", backend=args.backend, op=args.op, ranks=args.ranks, bytes=size, microseconds=round(seconds * 1e6, 2))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(f"{folder}/store",), nprocs=args.ranks)
