"""PyTorch's PowerSGD on two ranks: losses and parameters after each step, in f64, for parallel/tests/ddp/power_sgd.rs.

    python benches/peers/powersgd.py > parallel/tests/golden/power_sgd.json

Both sides must start from the same random Q, so this computes the numbers of `phalanx_tensor::Rng` and gives them to
the hook in the place of torch.randn.
"""
import json
import math
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
DIMS = [9, 8, 7]
BATCH = 5
STEPS = 6
START = 2
SEED = 3
# rank, error feedback, warm start
CASES = [(1, True, True), (2, True, True), (1, False, True), (2, False, True), (1, True, False), (2, True, False)]
MASK = 0xFFFF_FFFF


def philox(counter, key):
    """Philox4x32-10: the four words of a counter of two 64-bit words."""
    words = [counter[0] & MASK, counter[0] >> 32, counter[1] & MASK, counter[1] >> 32]
    low, high = key & MASK, key >> 32
    for turn in range(10):
        if turn:
            low, high = (low + 0x9E37_79B9) & MASK, (high + 0xBB67_AE85) & MASK
        a, b = 0xD251_1F53 * words[0], 0xCD9E_8D57 * words[2]
        words = [b >> 32 ^ words[1] ^ low, b & MASK, a >> 32 ^ words[3] ^ high, a & MASK]
    return words


def fold_in(key, data):
    words = philox([data, 1], key)
    return words[0] | words[1] << 32


def normals(key, count):
    """As `Tensor::randn` in f64."""
    out = []
    for block in range((count + 1) // 2):
        words = philox([block, 0], key)
        radius, turn = (((words[i] | words[i + 1] << 32) >> 11) + 0.5 for i in (0, 2))
        radius = math.sqrt(-2.0 * math.log(radius * 2.0**-53))
        angle = math.tau * turn * 2.0**-53
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return out[:count]


def fill(shape, s):
    n = math.prod(shape)
    values = [(((i + 1) * 7919 + s * 104729) % 97 - 48) / 64 for i in range(n)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def train(rank, approximation, feedback, warm):
    layers = []
    for inputs, outputs in zip(DIMS, DIMS[1:]):
        layers += [torch.nn.Linear(inputs, outputs, dtype=torch.float64), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for k, param in enumerate(model.parameters()):
            param.copy_(fill(param.shape, k))
    ddp = DistributedDataParallel(model)
    state = power_sgd.PowerSGDState(
        None, approximation, START, use_error_feedback=feedback, warm_start=warm, min_compression_rate=2
    )
    # The matrices that are compressed, in the order in which their gradients become final.
    matrices = [tuple(p.shape) for p in reversed(list(model.parameters())) if p.dim() > 1]
    pays = lambda n, m: (n + m) * min(n, m, approximation) * 2 < n * m
    matrices = [shape for shape in matrices if pays(*shape)]

    def randn(*shape, device, dtype):
        _, m, r = shape
        (i,) = [i for i, matrix in enumerate(matrices) if matrix[1] == m]
        key = fold_in(fold_in(SEED, 0), i)
        if not warm:
            key = fold_in(key, state.iter)
        return torch.tensor(normals(key, r * m), dtype=dtype).reshape(1, r, m).transpose(1, 2)

    def hook(state, bucket):
        assert bucket.index() == 0 and bucket.is_last()
        real, torch.randn = torch.randn, randn
        try:
            return power_sgd.powerSGD_hook(state, bucket)
        finally:
            torch.randn = real

    ddp.register_comm_hook(state, hook)
    sgd = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    losses, parameters = [], []
    for step in range(STEPS):
        x = 2 * fill((BATCH, DIMS[0]), 100 + 10 * rank + step)
        y = fill((BATCH, DIMS[-1]), 500 + 10 * rank + step)
        sgd.zero_grad()
        loss = torch.nn.functional.mse_loss(ddp(x), y)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        parameters.append([v for p in model.parameters() for v in p.detach().flatten().tolist()])
    return losses, parameters


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    cases = []
    for approximation, feedback, warm in CASES:
        losses, parameters = train(rank, approximation, feedback, warm)
        gathered = [None] * WORLD
        dist.all_gather_object(gathered, (losses, parameters))
        assert all(other[1] == parameters for other in gathered)
        cases.append({
            "rank": approximation,
            "use_error_feedback": feedback,
            "warm_start": warm,
            "losses": [losses for losses, _ in gathered],
            "parameters": parameters,
        })
    if rank == 0:
        with open(os.path.join(folder, "out"), "w") as out:
            json.dump({"torch": torch.__version__, "cases": cases}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(main, (folder,), WORLD)
        with open(os.path.join(folder, "out")) as out:
            sys.stdout.write(out.read() + "\n")
