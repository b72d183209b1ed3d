"""Compare whole files of a small run on this CPU and on emulated ones.

    python -m benchmarks.other_cpu [--emulator "qemu-x86_64 -cpu Haswell" ...]

Trains two steps and evaluates, with both settings of `instructions`, and compares the
files that are written. Needs an emulator of user programs (Debian: qemu-user). Writes
benchmarks/results/other_cpu.md and other_cpu.json. Takes a quarter of an
hour on a quiet machine.
"""

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from benchmarks import results, seeds
from stages.model import runtime

SETTINGS = [
    "preprocess.max_images=144",
    "preprocess.validation_size=16",
    "train.threads=1",
    "evaluate.threads=1",
]
EMULATORS = ["qemu-x86_64 -cpu Haswell", "qemu-x86_64 -cpu SandyBridge"]


def run(instructions: str, emulator: str) -> dict[str, str]:
    """Train and evaluate in a folder of its own; return the SHA-256 of each file of results."""
    both = [f"{stage}.instructions={instructions}" for stage in ("train", "evaluate")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds.prepare(SETTINGS + both, folder)
        for stage in ("train", "evaluate"):
            command = [*shlex.split(emulator), sys.executable, "-m", f"stages.{stage}"]
            result = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            if result.returncode:
                sys.exit(f"error: {shlex.join(command)} failed:\n{result.stderr.decode()}")
        files = sorted([*folder.glob("data/model/*"), *folder.glob("metrics/*")])
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }


def main() -> None:
    """Run here and emulated, with both settings; write which files had the same bytes."""
    parser = argparse.ArgumentParser(description="Compare this CPU with emulated ones.")
    parser.add_argument("--emulator", action="append", help=f"default: {EMULATORS}")
    emulators = parser.parse_args().emulator or EMULATORS
    for emulator in emulators:
        program = shlex.split(emulator)[0]
        if not shutil.which(program):
            sys.exit(f"error: {program} is not installed; Debian has qemu-x86_64 in qemu-user")

    settings = get_args(runtime.Instructions)
    runs = [(setting, place) for setting in settings for place in ("", *emulators)]
    found = {key: run(*key) for key in tqdm(runs, unit="run")}
    same = {
        emulator: {
            setting: {
                file: digest == found[setting, emulator][file]
                for file, digest in found[setting, ""].items()
            }
            for setting in settings
        }
        for emulator in emulators
    }
    table = [f"This CPU and emulated ones, with {' '.join(SETTINGS)}:", ""]
    table += ["| emulated | file | " + " | ".join(settings) + " |", "|---|---|---|---|"]
    for emulator, by_setting in same.items():
        for file in by_setting[settings[0]]:
            words = ("same bytes" if by_setting[s][file] else "differs" for s in settings)
            table.append(f"| `{emulator}` | {file} | {' | '.join(words)} |")
    results.write("other_cpu", table, {"settings": SETTINGS, "same": same})


if __name__ == "__main__":
    main()
