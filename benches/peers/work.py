"""The workloads, as PyTorch writes them. `benches/src/work.rs` defines the same ones; keep the two in step."""
import json
import math
import os
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


def mlp(*sizes):
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution in the shortcut where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet14(nn.Module):
    """He et al. 2015, section 4.2, with two blocks a stage, for 28x28 images of one channel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.body = nn.Sequential(*(Residual(*stage) for stage in stages))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


# name: how to make the model, the shape of one input, images in a batch
WORK = {
    "mlp": (lambda: mlp(784, 1024, 1024, 10), (784,), 128),
    "tiny": (lambda: mlp(784, 128, 10), (784,), 64),
    "cnn": (ResNet14, (1, 28, 28), 64),
}


class Trainer:
    """Trains on eight batches made beforehand, round and round, so that no loader is in the timing."""

    def __init__(self, model, batches):
        self.model = model
        self.batches = batches
        fused = next(model.parameters()).is_cuda
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        self.steps = 0

    def step(self):
        inputs, labels = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()

    def rate(self, steps):
        """Steps per second over that many."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        finish()
        return steps / (time.perf_counter() - start)


def batches(shape, size, device="cpu"):
    return [(torch.randn(size, *shape, device=device), torch.randint(0, 10, (size,), device=device)) for _ in range(8)]


def finish():
    """Waits for what a card has been given; nothing on a CPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def rates(run, seconds, samples):
    """Calls of `run` per second: a warm-up, then one figure per sample of about `seconds`."""
    start = time.perf_counter()
    count = 0
    while count < 5 or time.perf_counter() - start < seconds:
        run()
        count += 1
    finish()
    calls = max(1, math.ceil(seconds * count / (time.perf_counter() - start)))
    figures = []
    for _ in range(samples):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        finish()
        figures.append(calls / (time.perf_counter() - start))
    return figures


def spread(figures, digits=2):
    return {
        "median": round(statistics.median(figures), digits),
        "min": round(min(figures), digits),
        "max": round(max(figures), digits),
    }


def quiet_gloo():
    """One compute thread a process, and no search for a network interface."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def emit(**figures):
    print(json.dumps(figures), flush=True)
