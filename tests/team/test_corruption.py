"""Damage in caches, workspaces and a remote: a command says what is damaged, or mends it."""

import hashlib
import os
import shutil
from pathlib import Path

from project import Project, contents

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


def is_sound(project: Project, sound: dict[str, bytes]) -> None:
    assert contents(project) == sound
    assert "error" not in project.verify()
    assert project.git("status", "--porcelain") == ""


def test_repro_makes_again_what_the_remote_has_damaged(finished: Project, tmp_path: Path) -> None:
    finished.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    finished.dvc("remote", "modify", "team", "verify", "true")
    finished.commit("Remote")
    finished.dvc("push")
    hashed = key(finished, TENSOR)
    flip(tmp_path / f"remote/files/md5/{hashed[:2]}/{hashed[2:]}")
    clone = finished.clone(tmp_path / "clone")
    printed = clone.dvc("repro", "--pull")
    assert printed.count("Running stage") == 1
    assert "Running stage 'preprocess'" in printed
    is_sound(clone, contents(finished))


def test_cache_and_workspace_mend_each_other(finished: Project) -> None:
    sound = contents(finished)
    finished.dvc("status")  # DVC notes times and hashes
    flip(finished.path / RAW)
    flip(cached(finished, TENSOR))
    os.truncate(cached(finished, MODEL), 1000)
    flip(cached(finished, FIGURE))
    flip(finished.path / "metrics/figures/sample.png")
    assert "up to date" in finished.dvc("status")  # so it seems
    printed = finished.verify(status=1)
    assert sorted(printed.splitlines()) == [
        "error: 5 problem(s) found; run `dvc fetch` if you have a remote, then `dvc repro`",
        "error: data/model/model.keras: damaged in the cache; replaced there from the workspace",
        "error: data/raw: not what dvc.lock says",
        "error: data/tensors: damaged in the cache; replaced there from the workspace",
        "error: metrics/figures: damaged in the cache; removed there",
        "error: metrics/figures: not what dvc.lock says",
    ]
    printed = finished.dvc("repro")
    assert printed.count("Running stage") == 1
    assert "Running stage 'plot'" in printed
    is_sound(finished, sound)


def test_damage_in_a_cache_that_the_workspace_is_linked_to(finished: Project) -> None:
    sound = contents(finished)
    finished.dvc("config", "--local", "cache.type", "symlink")
    finished.dvc("checkout", "--relink")
    objects = [cached(finished, name) for name in (RAW, TENSOR)]
    assert all(map(os.path.samefile, objects, (finished.path / n for n in (RAW, TENSOR))))
    for file in objects:
        flip(file)
    assert "up to date" in finished.dvc("status")  # so it seems
    assert f"error: {RAW}: " in finished.stage("preprocess", status=1)
    assert f"error: {TENSOR}: " in finished.stage("plot", status=1)
    printed = finished.verify(status=1)
    for output in ("data/raw", "data/tensors"):
        assert f"error: {output}: damaged in the cache; removed there\n" in printed
        assert f"error: {output}: not what dvc.lock says\n" in printed
    assert printed.count("error:") == 5
    finished.dvc("repro")
    is_sound(finished, sound)


def test_what_is_not_here_is_not_damaged_and_errors_of_dvc_take_one_line(
    finished: Project, tmp_path: Path
) -> None:
    clone = finished.clone(tmp_path / "clone")
    assert "error" not in clone.verify()
    printed = clone.verify("--remote", status=1)
    assert printed.startswith("error: ")
    assert "no remote" in printed
    assert printed.count("\n") == 1
    shutil.rmtree(clone.path / ".dvc")
    printed = clone.verify(status=1)
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
