"""The same network in PyTorch: images a second of its training, for benchmarks/compare.py.

    pip install -r benchmarks/requirements-pytorch.txt
    python benchmarks/pytorch_epoch.py [--batch-size 64] [--dtype bfloat16] [--steps 200]

Adam at its defaults, cross-entropy, channels-last, random pixels: the values do not change the
time. bfloat16 is by `torch.autocast`. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

parser = argparse.ArgumentParser(description="Measure PyTorch's training throughput.")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
parser.add_argument("--steps", type=int, default=200, help="measured steps, after 20 to warm up")
parser.add_argument("--threads", type=int, help="threads; PyTorch's own choice if not given")
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)


class Flatten(nn.Module):  # type: ignore[misc]
    """Flatten in the order height, width, channels, as Keras does: no copy in channels-last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, H * W * C) of (N, C, H, W)."""
        return x.permute(0, 2, 3, 1).flatten(1)


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.MaxPool2d(2),  # before the ReLU: the same function, and as fast as in the pipeline
    nn.ReLU(inplace=True),
    nn.BatchNorm2d(32),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.MaxPool2d(2),
    nn.ReLU(inplace=True),
    nn.BatchNorm2d(64),
    nn.Conv2d(64, 128, 3, padding=1),
    nn.ReLU(inplace=True),
    Flatten(),
    nn.BatchNorm1d(7 * 7 * 128),
    nn.Linear(7 * 7 * 128, 64),
    nn.Linear(64, 10),
).to(device, memory_format=torch.channels_last)
assert sum(p.numel() for p in model.parameters()) == 520_266 - 2 * (32 + 64 + 6272)

optimizer = torch.optim.Adam(model.parameters(), fused=True)
cross_entropy = nn.CrossEntropyLoss()
size, steps = arguments.batch_size, arguments.steps
images = torch.randint(0, 256, (20 * size, 1, 28, 28), dtype=torch.uint8, device=device)
labels = torch.randint(0, 10, (20 * size,), device=device)


def step(index: int) -> None:
    """One step of training on a batch of uint8 images."""
    part = slice(index % 20 * size, (index % 20 + 1) * size)
    x = images[part].float().contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
        loss = cross_entropy(model(x), labels[part])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


rates = []
for first in range(0, 20 + steps, 20):
    start = time.perf_counter()
    for index in range(first, first + 20):
        step(index)
    if device.type == "cuda":
        torch.cuda.synchronize()
    if first:
        rates.append(20 * size / (time.perf_counter() - start))
figures = {"images_per_second": statistics.median(rates), "version": torch.__version__}
print(json.dumps(figures | {"threads": torch.get_num_threads()}))
