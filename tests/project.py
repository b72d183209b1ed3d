"""A small project for tests that need real Git, real DVC and the real stages."""

import configparser
import fcntl
import gzip
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = list(PIPELINE)
CLASSES = ["circle", "7", "NA"]  # class names are text, whatever they look like
SHAPE = (12, 12)

# The network wants images that two poolings leave something of; the rest is as small as can be.
SMALL_PARAMS: dict[str, dict[str, Any]] = {
    "fetch": {"dataset": "small"},
    "preprocess": {"validation_size": 30},
    "train": {"batch_size": 16, "epochs": 1},
}


@dataclass(frozen=True)
class Project:
    """A clone of this project in a folder of its own."""

    path: Path
    env: dict[str, str]

    def run(self, *command: str, status: int | None = 0, **options: Any) -> str:
        """Run a command in the project; return what it printed, check its exit status."""
        result: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            cwd=self.path,
            env=self.env | options.pop("env", {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **options,
        )
        if status is not None:
            assert result.returncode == status, f"{command}: {result.returncode}\n{result.stdout}"
        return result.stdout

    def dvc(self, *arguments: str, **options: Any) -> str:
        return self.run("dvc", *arguments, **options)

    def git(self, *arguments: str, **options: Any) -> str:
        return self.run("git", *arguments, **options)

    def stage(self, name: str, **options: Any) -> str:
        return self._python("-m", f"stages.{name}", **options)

    def verify(self, *arguments: str, **options: Any) -> str:
        return self._python("-m", "tools.verify", *arguments, **options)

    def _python(self, *arguments: str, **options: Any) -> str:
        return self.run(sys.executable, *arguments, **options)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def set_params(self, changes: dict[str, dict[str, Any]]) -> None:
        path = self.path / "params.yaml"
        content = yaml.safe_load(path.read_text())
        for section, values in changes.items():
            content[section] |= values
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def configure(self, settings: dict[str, dict[str, str]], name: str = "config") -> None:
        """Change DVC's settings at once: `dvc config` takes a second for each."""
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.path / ".dvc" / name)
        config.read_dict(settings)
        with (self.path / ".dvc" / name).open("w") as file:
            config.write(file)

    def clone(self, path: Path) -> "Project":
        """Clone with Git alone: no data, no cache, no remote but Git's."""
        self.git("clone", "-q", str(self.path), str(path))
        return Project(path, self.env)

    def copy(self, path: Path) -> "Project":
        """Copy everything, DVC's cache included."""
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path, self.env)


def contents(project: Project) -> dict[str, bytes]:
    """Return every output of the pipeline."""
    return {
        str(file.relative_to(project.path)): file.read_bytes()
        for folder in ("data/raw", "data/tensors", "data/model", "metrics")
        for file in (project.path / folder).rglob("*")
        if file.is_file()
    }


def environment(home: Path) -> dict[str, str]:
    """Return an environment that nothing of the user's, Git's or DVC's settings reaches."""
    keep = ("LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in keep if name in os.environ} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{f"GIT_{who}_NAME": "Tester" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "tester@example.com" for who in ("AUTHOR", "COMMITTER")},
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
    }


def idx_bytes(array: np.ndarray) -> bytes:
    """Encode uint8 as IDX, written here from the format's definition."""
    assert array.dtype == np.uint8
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def small_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images (N, 12, 12) that differ by class, and labels (N,), uint8."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count, dtype=np.uint8)
    images = random.integers(0, 120, (count, *SHAPE), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 120
    return images, labels


def add_small_dataset(root: Path) -> None:
    """Add the data set `small` to the catalogue of the project in `root`, and bundle it."""
    mirror = root / "data/mirror/small"
    mirror.mkdir(parents=True)
    contents = {}
    for prefix, count in (("train", 150), ("t10k", 60)):
        images, labels = small_images(count, seed=count)
        contents[f"{prefix}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(labels)
    for name, content in contents.items():
        (mirror / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    entry = {
        "title": "Small",
        "licence": "none",
        "credit": "nobody",
        "classes": CLASSES,
        "mirrors": ["data/mirror/small/"],
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    with (root / "data/datasets.yaml").open("a") as catalogue:
        catalogue.write("\n" + yaml.safe_dump({"small": entry}, sort_keys=False))


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def alone(name: str, factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let one process of pytest-xdist at a time do this; yield a folder that they share."""
    common = factory.getbasetemp()
    common = common.parent if "PYTEST_XDIST_WORKER" in os.environ else common
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield common
