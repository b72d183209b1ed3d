"""Compare the pipeline with the notebook's code and with PyTorch, in turn on this machine.

    python -m benchmarks.compare [--rounds 5] [--pytorch PYTHON]

Each round runs, one after the other: the first two stages, `dvc repro` from an empty cache in a
fresh clone, the notebook's recipe as one script, the training of the pipeline in both precisions,
and PyTorch's where it is installed (benchmarks/requirements-pytorch.txt; `--pytorch` names its
interpreter). Writes benchmarks/results/compare.md and compare.json. A round takes about three
minutes on two cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@dataclass(frozen=True)
class Finished:
    """A process that has ended: its time, the peak memory of its largest process, its output."""

    seconds: float
    megabytes: float
    output: str

    @property
    def figures(self) -> dict[str, Any]:
        """The JSON on the last line."""
        return json.loads(self.output.splitlines()[-1])  # type: ignore[no-any-return]


def run(command: list[str], folder: Path) -> Finished:
    """Run a command to its end; stop the benchmark if it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        # wait4 also tells the memory; that of the largest process in the tree.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{text}")
    return Finished(seconds, usage.ru_maxrss / 1024, text)


def clone(folder: Path) -> Path:
    """Return a fresh clone with an empty cache, and with changes that are not committed yet."""
    path = folder / "clone"
    shutil.rmtree(path, ignore_errors=True)
    run(["git", "clone", "-q", str(ROOT), str(path)], folder)
    shutil.copytree(ROOT / "stages", path / "stages", dirs_exist_ok=True)
    shutil.copytree(ROOT / "benchmarks", path / "benchmarks", dirs_exist_ok=True)
    shutil.copy(ROOT / "params.yaml", path / "params.yaml")
    # Without the lock and the figures of the last run there is nothing to skip.
    (path / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(path / "metrics", ignore_errors=True)
    return path


def one_round(folder: Path, pytorch: str | None, batch_size: int, bar: tqdm) -> dict[str, float]:  # type: ignore[type-arg]
    """Run everything once; return the measurements by name."""
    found: dict[str, float] = {}

    def measure(what: str, command: list[str], where: Path) -> Finished:
        bar.set_postfix_str(what)
        finished = run(command, where)
        bar.update()
        return finished

    before_training = measure("preprocess", ["dvc", "repro", "preprocess"], clone(folder)).seconds
    project = clone(folder)
    whole = measure("dvc repro", ["dvc", "repro"], project)
    found["pipeline, seconds"], found["pipeline, MB"] = whole.seconds, whole.megabytes

    script = str(ROOT / "benchmarks/notebook.py")
    whole = measure("notebook", [sys.executable, script], folder)
    found["notebook, seconds"], found["notebook, MB"] = whole.seconds, whole.megabytes
    found["notebook, images/s"] = whole.figures["images_per_second"]
    found["notebook, test accuracy"] = whole.figures["test_accuracy"]

    for name, precision in PRECISIONS.items():
        module = [sys.executable, "-m", "benchmarks.throughput", str(time.time())]
        part = measure(f"train {name}", [*module, f"train.precision={precision}"], project)
        found[f"pipeline {name}, images/s"] = part.figures["images_per_second"]
        found[f"pipeline {name}, images/s in steps"] = part.figures["images_per_second_in_steps"]
        found[f"train {name}, MB"] = part.megabytes
        first_steps = before_training + part.figures["first_steps"]
        found[f"dvc repro to the first steps of training, {name}, seconds"] = first_steps
        if pytorch:
            options = ["--batch-size", str(batch_size), "--dtype", name]
            script = str(ROOT / "benchmarks/pytorch_epoch.py")
            part = measure(f"PyTorch {name}", [pytorch, script, *options], folder)
            found[f"PyTorch {name}, images/s in steps"] = part.figures["images_per_second"]
    return found


def find_pytorch(interpreter: str) -> str | None:
    """Return the interpreter if it can import PyTorch."""
    check = [interpreter, "-c", "import torch"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        print("note: PyTorch is not installed, so it is left out; see requirements-pytorch.txt")
        return None
    return interpreter


def ratios(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the ratios between the pipeline and its rivals, within each round."""
    wanted = {"wall time, pipeline / notebook": ("pipeline, seconds", "notebook, seconds")}
    for name in PRECISIONS:
        ours = f"pipeline {name}, images/s"
        wanted[f"throughput {name}, pipeline / notebook"] = (ours, "notebook, images/s")
        # PyTorch's script times steps alone, without set-up and validation: like with like.
        wanted[f"throughput {name} in steps, pipeline / PyTorch"] = (
            f"{ours} in steps",
            f"PyTorch {name}, images/s in steps",
        )
    return {
        name: [found[top] / found[bottom] for found in rounds]
        for name, (top, bottom) in wanted.items()
        if bottom in rounds[0]
    }


def table(measured: dict[str, list[float]]) -> list[str]:
    """Return Markdown: median, minimum and maximum of each figure."""
    lines = ["| figure | median | min to max | runs |", "|---|---|---|---|"]
    for name, values in measured.items():
        digits = 0 if max(values) >= 100 else 4 if "accuracy" in name else 2
        middle, low, high = (
            f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values))
        )
        lines.append(f"| {name} | {middle} | {low} to {high} | {len(values)} |")
    return lines


def main() -> None:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description="Compare the pipeline with its rivals.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytorch", default=sys.executable, help="a Python that has PyTorch")
    arguments = parser.parse_args()
    pytorch = find_pytorch(arguments.pytorch)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rounds = []
    total = arguments.rounds * (7 if pytorch else 5)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="run") as bar:
        for _ in range(arguments.rounds):
            rounds.append(one_round(Path(folder), pytorch, params["train"]["batch_size"], bar))

    measured = ratios(rounds) | {name: [found[name] for found in rounds] for name in rounds[0]}
    results.write("compare", table(measured), {"runs": arguments.rounds, "measured": measured})


if __name__ == "__main__":
    main()
