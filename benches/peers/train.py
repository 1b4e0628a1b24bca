"""Training steps per second in one process: zero gradients, forward, loss, backward, SGD with momentum."""
import argparse
import os

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--work", choices=["mlp", "tiny", "cnn"], default="mlp")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--channels-last", action="store_true", help="NHWC memory, which suits PyTorch's convolutions")
parser.add_argument("--device", default="cpu", help="cpu, or a card, as in cuda:0")
parser.add_argument("--compile", action="store_true", help="torch.compile, with CUDA graphs")
parser.add_argument("--seconds", type=float, default=0.5, help="per sample")
parser.add_argument("--samples", type=int, default=5)
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch

from work import WORK, Trainer, batches, emit, rates, spread

torch.set_num_threads(args.threads)
torch.manual_seed(0)
# As ours are: f32 is f32 on a card.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
make, shape, size = WORK[args.work]
model, data = make().to(args.device), batches(shape, size, args.device)
if args.channels_last:
    model = model.to(memory_format=torch.channels_last)
    data = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in data]
if args.compile:
    model = torch.compile(model, mode="reduce-overhead")
trainer = Trainer(model, data)
figures = spread(rates(trainer.step, args.seconds, args.samples), 3)
emit(bench="train", work=args.work, threads=args.threads, batch=size, channels_last=args.channels_last,
     device=args.device, compiled=args.compile, parameters=sum(p.numel() for p in model.parameters()), steps_per_second=figures["median"],
     min=figures["min"], max=figures["max"])
