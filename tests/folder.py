"""A folder with parameters and tensors, in which the train stage can run."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from project import ROOT

OUTPUTS = ("data/model/model.keras", "metrics/history.csv", "metrics/training.json")
PARAMS: dict[str, Any] = {
    "seed": 1,
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup": 0.25,
    "momentum": 0.9,
    "label_smoothing": 0.1,
    "shift": 1,
    "distortion": 0.1,
    "patience": 0,
    "precision": "float32",
    "threads": 2,
    "instructions": "native",
    "strategy": "auto",
    "checkpoint_every": 0,
}


class Folder:
    """A folder with parameters and tensors, in which the stage can run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.limits: dict[str, float] = {"worker_timeout": 60}
        self.command = [sys.executable, "-m", "stages.train"]
        (path / "data/tensors").mkdir(parents=True)
        self.write_tensors(range(26))
        self.write_params()

    def write_params(self, **changes: Any) -> None:
        """Write the train section with some values changed, or left out if they are `...`."""
        section = {k: v for k, v in (PARAMS | changes).items() if v is not ...}
        (self.path / "params.yaml").write_text(
            yaml.safe_dump({"train": section, "limits": self.limits})
        )

    def write_tensors(
        self, train_labels: Any, classes: int = 3, size: int = 8, validation: int = 9
    ) -> None:
        """Write random images: for training with these labels (modulo `classes`)."""
        random = np.random.default_rng(0)
        folder = self.path / "data/tensors"
        for split, labels in (("train", train_labels), ("validation", range(validation))):
            one_hot = np.eye(classes, dtype=np.uint8)[np.array(labels, dtype=int) % classes]
            images = random.integers(0, 256, (len(labels), size, size, 1), dtype=np.uint8)
            np.save(folder / f"{split}_images.npy", images)
            np.save(folder / f"{split}_labels.npy", one_hot)
        sums = {file.name: sha256(file) for file in folder.glob("*.npy")}
        manifest = {"classes": [str(c) for c in range(classes)], "sha256": sums}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def run(self, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command,
            cwd=self.path,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
            **options,
        )

    def run_on_a_terminal(self) -> tuple[int, str]:
        """Return the exit status and all that a terminal was shown."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        process = subprocess.Popen(
            self.command, cwd=self.path, env=self.environment, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # Linux says so when the last writer is gone
            pass
        os.close(ours)
        return process.wait(), shown.decode()

    def evaluate(self) -> dict[str, float]:
        """Return what stock Keras finds of the saved model on the validation images."""
        import keras

        images, labels = (
            np.load(self.path / f"data/tensors/validation_{kind}.npy")
            for kind in ("images", "labels")
        )
        model = keras.models.load_model(self.path / OUTPUTS[0])
        found: dict[str, float] = model.evaluate(
            images, labels.astype(np.float32), verbose=0, return_dict=True
        )
        return found

    def outputs(self) -> dict[str, str]:
        """Return the SHA-256 of every file but the inputs."""
        return {
            str(file.relative_to(self.path)): sha256(file)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and "tensors" not in file.parts and file.name != "params.yaml"
        }


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
