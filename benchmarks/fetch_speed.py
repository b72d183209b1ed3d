"""Measure the time and memory of fetching from the bundled mirror, beside gzip and sha256sum.

    python -m benchmarks.fetch_speed --runs 15

Runs in turn, over the same archives: `stages.fetch.fetch` in a process of its own, timed without
the start of Python and imports; and `gzip -dc`, then `sha256sum`, for one file after the other.
Then the same with a training file of 2 GB. Prints a table of medians, and writes it with every
figure to benchmarks/results/fetch_speed.md and .json. Linux only: peak memory is read from /proc.
"""

import argparse
import gzip
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import results
from stages.common import params, paths
from stages.dataset.catalogue import DataSet, File

LARGE = "train-images-idx3-ubyte"

# Prints seconds and the peak of the resident memory in bytes.
FETCH = """
import json, sys, time
from pathlib import Path
from stages import fetch
from stages.dataset import catalogue, web
dataset = catalogue.DataSet.model_validate_json(sys.argv[1])
limits = web.Limits(connect_timeout=5, stall_timeout=15, retries=2)
start = time.perf_counter()
fetch.fetch(dataset, Path(sys.argv[2]), limits)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([seconds, int(status["VmHWM"].split()[0]) * 1024]))
"""


def bundled() -> DataSet:
    """Return MNIST, with the bundled mirror alone."""
    mnist = params.validate(
        params.read_yaml(paths.CATALOGUE)["mnist"], DataSet, paths.CATALOGUE, "mnist"
    )
    return mnist.model_copy(update={"mirrors": ["data/mirror/mnist/"]})


def enlarged(dataset: DataSet, folder: Path, size: int) -> DataSet:
    """Write into `folder` the data set with a training file of about `size` bytes.

    It holds the training images again and again: gzip members in a row are valid gzip.
    """
    source = Path(dataset.mirrors[0])
    for name in dataset.files:
        (folder / f"{name}.gz").write_bytes((source / f"{name}.gz").read_bytes())
    member = (folder / f"{LARGE}.gz").read_bytes()
    content = gzip.decompress(member)
    copies = size // len(content) + 1
    digest = hashlib.sha256()
    with (folder / f"{LARGE}.gz").open("wb") as file:
        for _ in range(copies):
            file.write(member)
            digest.update(content)
    large = File(size=copies * len(content), sha256=digest.hexdigest())
    return dataset.model_copy(
        update={"mirrors": [f"{folder}/"], "files": dict(dataset.files) | {LARGE: large}}
    )


def fetch(dataset: DataSet, folder: Path) -> tuple[float, int]:
    """Fetch `dataset` into `folder`; return seconds and bytes of peak memory."""
    command = [sys.executable, "-c", FETCH, dataset.model_dump_json(), str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak = json.loads(output)
    return seconds, peak


def gzip_and_sha256sum(dataset: DataSet, folder: Path) -> float:
    """Unpack and hash the same files with the commands; return seconds."""
    start = time.perf_counter()
    for name in dataset.files:
        with (folder / name).open("wb") as file:
            archive = f"{dataset.mirrors[0]}{name}.gz"
            subprocess.run(["gzip", "-dc", archive], stdout=file, check=True)
        subprocess.run(["sha256sum", folder / name], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def compare(dataset: DataSet, runs: int, what: str) -> dict[str, Any]:
    """Run both in turn, so that a busy moment hits both; return all figures."""
    ours: list[float] = []
    commands: list[float] = []
    peak = 0
    for _ in tqdm(range(runs), desc=what, disable=None):
        with tempfile.TemporaryDirectory() as folder:
            seconds, memory = fetch(dataset, Path(folder))
            ours.append(seconds)
            peak = max(peak, memory)
        with tempfile.TemporaryDirectory() as folder:
            commands.append(gzip_and_sha256sum(dataset, Path(folder)))
    return {
        "what": what,
        "bytes": sum(file.size for file in dataset.files.values()),
        "runs": runs,
        "fetch_seconds": ours,
        "commands_seconds": commands,
        "ratio": statistics.median(ours) / statistics.median(commands),
        "peak_memory_bytes": peak,
    }


def row(figures: dict[str, Any]) -> str:
    """Return a line of the table."""
    ours, commands = (
        statistics.median(figures[key]) for key in ("fetch_seconds", "commands_seconds")
    )
    return (
        f"| {figures['what']} | {figures['bytes'] / 1e6:,.0f} MB | {figures['runs']} "
        f"| {ours:.3f} s | {commands:.3f} s | {figures['ratio']:.2f} "
        f"| {figures['peak_memory_bytes'] / 1e6:.0f} MB |"
    )


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--large-runs", type=int, default=3)
    arguments = parser.parse_args()
    dataset = bundled()
    figures = [compare(dataset, arguments.runs, "MNIST")]
    with tempfile.TemporaryDirectory() as folder:
        large = enlarged(dataset, Path(folder), 2_000_000_000)
        figures.append(compare(large, arguments.large_runs, "a file of 2 GB"))
    table = ["| data | unpacked | runs | fetch | gzip, sha256sum | ratio | peak memory of fetch |"]
    table += ["|---|---|---|---|---|---|---|", *map(row, figures)]
    results.write("fetch_speed", table, {"comparisons": figures})


if __name__ == "__main__":
    main()
