"""Damage in caches, workspaces and a remote: a command says what is damaged, or mends it."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from project import Project, contents
from remotes import share

RAW = "data/raw/t10k-labels-idx1-ubyte"
TENSOR = "data/tensors/train_images.npy"
MODEL = "data/model/model.keras"
FIGURE = "metrics/figures/match.png"


def key(project: Project, name: str) -> str:
    """Return the MD5 hash of a file, which is its key in caches and remotes."""
    return hashlib.md5((project.path / name).read_bytes()).hexdigest()


def cached(project: Project, name: str) -> Path:
    """Return the object in the cache that a sound file in the workspace has."""
    hashed = key(project, name)
    return project.path / f".dvc/cache/files/md5/{hashed[:2]}/{hashed[2:]}"


def flip(path: Path) -> None:
    """Flip a bit as a failing disk does: times, size, mode and inode stay."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        content = bytearray(file.read())
        content[len(content) // 2] ^= 1
        file.seek(0)
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def error_of(printed: str) -> str:
    """Return the one line that a command ended in."""
    [line] = printed.splitlines()
    assert line.startswith("error: ")
    return line


def test_repro_makes_again_what_the_remote_has_damaged(finished: Project, tmp_path: Path) -> None:
    share(finished, tmp_path / "remote")
    finished.dvc("push")
    hashed = key(finished, TENSOR)
    flip(tmp_path / f"remote/files/md5/{hashed[:2]}/{hashed[2:]}")
    clone = finished.clone(tmp_path / "clone")
    assert "error" not in clone.verify()  # what is not here is not damaged
    printed = clone.dvc("repro", "--pull")
    assert printed.count("Running stage") == 1
    assert "Running stage 'preprocess'" in printed
    assert contents(clone) == contents(finished)
    assert clone.git("status", "--porcelain") == ""


def test_cache_and_workspace_mend_each_other(finished: Project) -> None:
    sound = contents(finished)
    finished.configure({"cache": {"type": "symlink"}}, "config.local")
    finished.dvc("checkout", "--relink", "data/raw")
    finished.dvc("status")  # DVC notes times and hashes
    assert (finished.path / RAW).samefile(cached(finished, RAW))
    flip(cached(finished, RAW))
    flip(cached(finished, TENSOR))
    os.truncate(cached(finished, TENSOR.replace("train", "test")), 1000)
    flip(finished.path / MODEL)
    flip(cached(finished, FIGURE))
    flip(finished.path / "metrics/figures/sample.png")
    assert "up to date" in finished.dvc("status")  # so it seems
    printed = finished.verify(status=1)
    assert sorted(printed.splitlines()) == [
        "error: 6 problem(s) found; run `dvc fetch` if you have a remote, then `dvc repro`",
        "error: data/model/model.keras: not what dvc.lock says",
        "error: data/raw: damaged in the cache; removed there",
        "error: data/raw: not what dvc.lock says",
        "error: data/tensors: damaged in the cache; replaced there from the workspace",
        "error: metrics/figures: damaged in the cache; removed there",
        "error: metrics/figures: not what dvc.lock says",
    ]
    printed = finished.dvc("repro")
    assert re.findall("Running stage '(.*)'", printed) == ["fetch", "plot"]
    assert contents(finished) == sound
    assert all(cached(finished, name).exists() for name in (RAW, TENSOR, MODEL))
    assert "error" not in finished.verify()
    assert finished.git("status", "--porcelain") == ""

    assert "no remote" in error_of(finished.verify("--remote", status=1))
    shutil.rmtree(finished.path / ".dvc")
    assert "not inside of a DVC repository" in error_of(finished.verify(status=1))
