"""f32 matrix product: what torch.mm reaches, and oneDNN's own kernel in the same wheel. GFLOP/s."""
import argparse
import os

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--size", type=int, default=1024)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=0.2, help="per sample")
parser.add_argument("--samples", type=int, default=7)
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch

from work import emit, rates, spread

torch.set_num_threads(args.threads)
n = args.size
flops = 2 * n**3 / 1e9
a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
mm = spread([flops * r for r in rates(lambda: torch.mm(a, b, out=out), args.seconds, args.samples)], 1)
onednn = torch.ops.mkldnn._linear_pointwise
dnn = spread([flops * r for r in rates(lambda: onednn(a, b, None, "none", [], ""), args.seconds, args.samples)], 1)
emit(bench="gemm", size=n, threads=args.threads, unit="GFLOP/s", torch_mm=mm, onednn=dnn)
