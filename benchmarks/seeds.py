"""Accuracy and time over seeds: mean and deviation of a recipe, written to benchmarks/results.

    python -m benchmarks.seeds [--recipe NAME] [--seeds 10] [-S train.epochs=2]

Runs the stages themselves in a temporary copy of the project, so that the project's own outputs
stay as they are. Only `train.seed` differs from run to run. Hyper-parameters were chosen by the
validation figures; the test figures are only reported.
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
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]

# What each recipe changes in params.yaml; docs/results.md gives the same as `dvc exp run -S ...`.
RECIPES: dict[str, list[str]] = {
    "default": [],
    "portable": ["train.instructions=portable", "evaluate.instructions=portable"],
    "two-devices": ["train.strategy=mirrored"],
    "tutorial": [
        "preprocess.validation_size=0",
        "train.batch_size=32",
        "train.learning_rate=0.001",
        "train.warmup=0",
        "train.momentum=0.99",
        "train.label_smoothing=0",
        "train.shift=0",
    ],
    "long": [
        "train.epochs=14",
        "train.batch_size=128",
        "train.learning_rate=0.007",
        "train.shift=2",
        "train.distortion=0.1",
    ],
}

FIGURES = {
    "test": "test accuracy",
    "validation": "validation accuracy",
    "seconds": "training, seconds",
}


def change(params: dict[str, Any], setting: str) -> None:
    """Apply one `section.key=value`, as `dvc exp run -S` does; the key must be there."""
    name, _, value = setting.partition("=")
    section, _, key = name.partition(".")
    if key not in params.get(section, {}):
        sys.exit(f"error: params.yaml has no {name}")
    params[section][key] = yaml.safe_load(value)


def stage(name: str, folder: Path, module: str = "") -> float:
    """Run one stage in the copy and return its seconds; only its progress bar shows."""
    start = time.perf_counter()
    command = [sys.executable, "-m", module or f"stages.{name}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False
    ).returncode:
        sys.exit(f"error: stage {name} failed")
    return time.perf_counter() - start


def prepare(settings: list[str], folder: Path) -> dict[str, Any]:
    """Copy the project into a folder and fetch and preprocess there; return its parameters."""
    for name in ("stages", "data/mirror", "data/datasets.yaml"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for setting in settings:
        change(params, setting)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name in ("fetch", "preprocess"):
        stage(name, folder)
    return params


def run(settings: list[str], seeds: int, folder: Path, train: str = "") -> list[dict[str, float]]:
    """Train and evaluate with seeds 0, 1, ...; return a dict of figures for each."""
    params = prepare(settings, folder)
    rows = []
    for seed in tqdm(range(seeds), desc="seeds", unit="run"):
        params["train"]["seed"] = seed
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        seconds = stage("train", folder, train)
        stage("evaluate", folder)
        training, test = (
            json.loads((folder / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("training", "metrics")
        )
        row = {
            "seed": seed,
            "test": test["accuracy"],
            "test_loss": test["loss"],
            "seconds": round(seconds, 1),
        }
        if "validation" in training:
            row["validation"] = training["validation"]["accuracy"]
        rows.append(row)
    return rows


def main() -> None:
    """Run a recipe with several seeds and write the table."""
    parser = argparse.ArgumentParser(description="Measure a recipe's accuracy over seeds.")
    parser.add_argument("--recipe", choices=RECIPES, default="default")
    parser.add_argument("--seeds", type=int, default=10, help="how many: 0, 1, 2, ...")
    parser.add_argument("-S", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    settings = RECIPES[arguments.recipe] + arguments.settings
    os.environ["PYTHONHASHSEED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        train = "benchmarks.two_devices" if arguments.recipe == "two-devices" else ""
        rows = run(settings, arguments.seeds, Path(folder), train)

    summary: dict[str, Any] = {}
    for key in FIGURES:
        values = [row[key] for row in rows if key in row]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[key] = {"mean": statistics.fmean(values), "deviation": deviation}
    name = "seeds" if arguments.recipe == "default" else f"seeds-{arguments.recipe}"
    lines = [f"Recipe `{arguments.recipe}`: {' '.join(settings) or 'params.yaml as it is'}", ""]
    lines += ["| figure | mean | standard deviation | runs |", "|---|---|---|---|"]
    for key, v in summary.items():
        digits = 0 if key == "seconds" else 4
        spread = f"{v['mean']:.{digits}f} | {v['deviation']:.{digits}f}"
        lines.append(f"| {FIGURES[key]} | {spread} | {len(rows)} |")
    results.write(name, lines, {"settings": settings, "summary": summary, "runs": rows})


if __name__ == "__main__":
    main()
