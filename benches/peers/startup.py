"""Start of the processes to the end of the first DDP step of the slowest rank, and the memory that each rank holds then."""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--work", choices=["mlp", "tiny", "cnn"], default="mlp")
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("--samples", type=int, default=3)
parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
parser.add_argument("--store", help=argparse.SUPPRESS)
args = parser.parse_args()


def rank_main():
    from work import WORK, Trainer, batches, quiet_gloo

    quiet_gloo()
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.store}", rank=args.rank, world_size=args.ranks)
    make, shape, whole = WORK[args.work]
    Trainer(DistributedDataParallel(make()), batches(shape, whole // args.ranks)).step()
    print(time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
    dist.destroy_process_group()


def sample():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", args.work, "--ranks", str(args.ranks),
                   "--store", f"{folder}/store", "--rank"]
        start = time.time()
        ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
                 for rank in range(args.ranks)]
        ends = [[float(figure) for figure in rank.communicate()[0].split()] for rank in ranks]
    return max(end for end, _ in ends) - start, max(memory for _, memory in ends)


if __name__ == "__main__":
    if args.rank is not None:
        rank_main()
    else:
        from work import emit

        seconds, memory = zip(*(sample() for _ in range(args.samples)))
        emit(bench="startup", work=args.work, ranks=args.ranks, seconds=round(statistics.median(seconds), 3),
             min=round(min(seconds), 3), max=round(max(seconds), 3), rss_mib_per_rank=round(max(memory), 1))
