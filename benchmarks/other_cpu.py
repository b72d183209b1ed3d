"""What is the same on another CPU model: the stages here and on an emulated CPU, file by file.

    python -m benchmarks.other_cpu [--emulator "qemu-x86_64 -cpu Haswell"] [--images 512]

Trains on a few images, because an emulated CPU is some fifty times slower, and evaluates, with
both settings of `instructions`. Needs an emulator of user programs (Debian: qemu-user). Writes
benchmarks/results/other_cpu.md and other_cpu.json. Takes about ten minutes.
"""

import argparse
import hashlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks import results
from benchmarks.seeds import copy_project, stage

OUTPUTS = {
    "train": ("data/model/model.keras", "metrics/history.csv", "metrics/training.json"),
    "evaluate": ("metrics/metrics.json", "metrics/predictions.csv"),
}


def hashes(instructions: str, images: int, emulator: list[str], bar: tqdm) -> dict[str, str]:  # type: ignore[type-arg]
    """Run the stages, train and evaluate in the emulator; return the SHA-256 of each output."""
    settings = [
        f"preprocess.max_images={images}",
        f"preprocess.validation_size={images // 8}",
        f"train.instructions={instructions}",
        f"evaluate.instructions={instructions}",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder, settings)
        for data in ("fetch", "preprocess"):
            stage(data, folder)
        for computing in OUTPUTS:
            bar.set_postfix_str(f"{computing}, {instructions}{', emulated' if emulator else ''}")
            stage(computing, folder, emulator)
            bar.update()
        return {
            path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
            for paths in OUTPUTS.values()
            for path in paths
        }


def main() -> None:
    """Run here and emulated, with both settings; write what was the same."""
    parser = argparse.ArgumentParser(description="Compare this CPU with an emulated one.")
    parser.add_argument("--emulator", default="qemu-x86_64 -cpu Haswell")
    parser.add_argument("--images", type=int, default=512)
    arguments = parser.parse_args()
    emulator = shlex.split(arguments.emulator)
    if not shutil.which(emulator[0]):
        sys.exit(f"error: {emulator[0]} is not installed; Debian has it in qemu-user")

    same = {}
    with tqdm(total=8, unit="run") as bar:
        for instructions in ("native", "avx2"):
            here = hashes(instructions, arguments.images, [], bar)
            there = hashes(instructions, arguments.images, emulator, bar)
            same[instructions] = {path: here[path] == there[path] for path in here}

    lines = [f"This CPU and `{arguments.emulator}`, {arguments.images} images:", ""]
    lines += ["| output | native | avx2 |", "|---|---|---|"]
    for path in same["native"]:
        words = ("same bytes" if same[i][path] else "differs" for i in ("native", "avx2"))
        lines.append(f"| {path} | {' | '.join(words)} |")
    results.write("other_cpu", lines, {"emulator": arguments.emulator, "same": same})


if __name__ == "__main__":
    main()
