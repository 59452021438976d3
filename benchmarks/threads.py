"""Measure how settings of OpenMP share the cores: a training alone, and two at once.

    python benchmarks/threads.py --seconds 6 --rounds 3

Each training runs in a process of its own: steps of the layers of EfficientNet-B0 after
``features.5`` on batches of 32 activations of 128 px photos. The settings take turns, so that other
work on the machine disturbs all of them alike. Alone, the fastest quarter of the steps counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

SETTINGS = {
    "libgomp's own": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
_BATCH = 32


def step_seconds(seconds: float) -> Iterator[float]:
    """Train for so long, after two steps to warm up; yield what each step takes."""
    import torch
    from torch import nn
    from torchvision.models import efficientnet_b0

    torch.manual_seed(0)
    layers = [*efficientnet_b0().features[6:], nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(1280, 21)).to(memory_format=torch.channels_last)
    images = torch.randn(_BATCH, 112, 8, 8).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 21, (_BATCH,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step() -> float:
        started = time.monotonic()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        return time.monotonic() - started

    step(), step()
    until = time.monotonic() + seconds
    yield step()
    while time.monotonic() < until:
        yield step()


def train(seconds: float) -> None:
    """Print images per second in a calm step, the fastest quarter of all, and on average."""
    steps = sorted(step_seconds(seconds))
    print(_BATCH / steps[len(steps) // 4], _BATCH / statistics.mean(steps))


def at_once(count: int, seconds: float, setting: dict[str, str]) -> list[tuple[float, float]]:
    """Start so many trainings together; images/s of each, calm and on average."""
    env = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    command = [sys.executable, __file__, "--seconds", str(seconds), "--train"]
    started = [
        subprocess.Popen(command, env=env | setting, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    printed = [process.communicate()[0].split() for process in started]
    return [(float(calm), float(mean)) for calm, mean in printed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", action="store_true", help="one training, in this process")
    options = parser.parse_args()
    if options.train:
        train(options.seconds)
        return
    alone: dict[str, list[float]] = {name: [] for name in SETTINGS}
    together: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(options.rounds):
        for name, setting in SETTINGS.items():
            alone[name].append(at_once(1, options.seconds, setting)[0][0])
            both = at_once(2, options.seconds, setting)
            together[name].append(sum(mean for _, mean in both))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} over five minutes\n")
    print("| setting | images/s alone | images/s of two together |\n| --- | ---: | ---: |")
    for name in SETTINGS:
        print(f"| {name} | {max(alone[name]):.0f} | {statistics.median(together[name]):.0f} |")


if __name__ == "__main__":
    main()
