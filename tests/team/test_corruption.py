"""Damage in remotes, caches and workspaces: a command says which file, or mends it."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import Project
from remotes import Remote

RAW = "data/raw/t10k-labels-idx1-ubyte"
TENSOR = "data/tensors/test_images.npy"
MODEL = "data/model/model.keras"
FIGURES = "metrics/figures"


def pinned(project: Project) -> dict[str, str]:
    """Return the outputs in dvc.lock and their MD5 hashes, which are their keys everywhere."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def cached(project: Project, output: str) -> Path:
    key = pinned(project)[output]
    return project.path / f".dvc/cache/files/md5/{key[:2]}/{key[2:]}"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def flip(path: Path) -> None:
    """Flip a bit as a failing disk does: times, size, mode and inode stay."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        content = flipped(file.read())
        file.seek(0)
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def outputs(project: Project) -> dict[str, bytes]:
    return {name: (project.path / name).read_bytes() for name in (RAW, TENSOR, MODEL)}


def test_a_damaged_remote(finished: Project, remote: Remote, tmp_path: Path) -> None:
    remote.configure(finished)
    finished.dvc("push")
    keys = pinned(finished)
    remote.write(keys[TENSOR], flipped(remote.read(keys[TENSOR])))
    remote.write(keys[MODEL], remote.read(keys[MODEL])[:-1])
    remote.delete(keys[RAW])

    clone = finished.clone(tmp_path / "clone")
    remote.log_in(clone)
    printed = clone.dvc("pull", status=1)
    for name in (RAW, TENSOR, MODEL):
        assert name in printed
        assert not (clone.path / name).exists()

    # Whoever has the data sends again what the remote lacks, once what is damaged is gone there.
    printed = finished.verify("--remote", status=None)
    assert {keys[TENSOR], keys[MODEL]}.isdisjoint(remote.keys())
    if printed.startswith("error"):  # a folder is rid of it as soon as someone has looked
        assert f"error: {TENSOR}: damaged in the remote; removed there\n" in printed
        assert f"error: {MODEL}: damaged in the remote; removed there\n" in printed
        assert "run `dvc push`" in printed
    finished.dvc("push")
    assert "error" not in finished.verify("--remote")
    clone.dvc("pull")
    assert outputs(clone) == outputs(finished)


def test_repro_makes_again_what_the_remote_has_damaged(finished: Project, tmp_path: Path) -> None:
    finished.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    finished.dvc("remote", "modify", "team", "verify", "true")
    finished.commit("Remote")
    finished.dvc("push")
    key = pinned(finished)[TENSOR]
    damaged = tmp_path / f"remote/files/md5/{key[:2]}/{key[2:]}"
    flip(damaged)
    clone = finished.clone(tmp_path / "clone")
    printed = clone.dvc("repro", "--pull")
    assert printed.count("Running stage") == 1
    assert "Running stage 'preprocess'" in printed
    assert outputs(clone) == outputs(finished)
    assert clone.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("output", "reader", "parameter"),
    [
        (RAW, "preprocess", {"preprocess": {"seed": 1}}),
        (TENSOR, "plot", {"plot": {"seed": 1}}),
        (MODEL, "evaluate", {"evaluate": {"batch_size": 7}}),
    ],
)
def test_damage_in_the_cache_stops_the_stage_that_reads_it(
    finished: Project, output: str, reader: str, parameter: dict[str, dict[str, int]]
) -> None:
    sound = outputs(finished)
    shutil.rmtree(finished.path / "data" / output.split("/")[1])
    flip(cached(finished, output))
    finished.dvc("checkout")  # DVC trusts its cache
    assert outputs(finished) != sound

    finished.set_params(parameter)
    printed = finished.dvc("repro", status=255)
    assert f"error: {output}: " in printed
    assert f"failed to run: python -m stages.{reader}" in printed
    finished.git("checkout", "-q", "params.yaml")

    printed = finished.verify(status=1)
    assert f"error: {output}: damaged in the cache; removed there\n" in printed
    assert f"error: {output}: not what dvc.lock says\n" in printed
    assert not cached(finished, output).exists()
    finished.dvc("repro")
    assert outputs(finished) == sound
    assert "error" not in finished.verify()
    assert finished.git("status", "--porcelain") == ""


@pytest.mark.parametrize("change", ["flipped", "truncated"])
def test_damage_in_the_cache_is_mended_from_the_workspace(finished: Project, change: str) -> None:
    sound = outputs(finished)
    file = cached(finished, MODEL)
    if change == "flipped":
        flip(file)
    else:
        os.truncate(file, 1000)
    assert "up to date" in finished.dvc("status")  # so it seems
    printed = finished.verify(status=1)
    assert f"error: {MODEL}: damaged in the cache; replaced there from the workspace\n" in printed
    assert printed.count("error:") == 2
    assert file.read_bytes() == sound[MODEL]
    assert "error" not in finished.verify()
    assert "Running stage" not in finished.dvc("repro")


def test_damage_in_the_workspace_is_mended_from_the_cache(finished: Project) -> None:
    sound = outputs(finished)
    finished.dvc("status")  # DVC notes times and hashes
    for name in (RAW, TENSOR, MODEL):
        flip(finished.path / name)
    assert "up to date" in finished.dvc("status")  # so it seems
    printed = finished.verify(status=1)
    for name in (RAW, TENSOR, MODEL):
        assert f"error: {name}: not what dvc.lock says\n" in printed
    assert "Running stage" not in finished.dvc("repro")
    assert outputs(finished) == sound
    assert "error" not in finished.verify()


def test_damage_in_a_folder_is_found(finished: Project) -> None:
    keys = json.loads(cached(finished, FIGURES).read_text())
    match = next(entry["md5"] for entry in keys if entry["relpath"] == "match.png")
    flip(finished.path / f".dvc/cache/files/md5/{match[:2]}/{match[2:]}")
    flip(finished.path / FIGURES / "mismatch.png")
    printed = finished.verify(status=1)
    assert f"error: {FIGURES}: damaged in the cache; removed there\n" in printed
    assert f"error: {FIGURES}: not what dvc.lock says\n" in printed
    finished.dvc("repro")
    assert finished.git("status", "--porcelain") == ""
    assert "error" not in finished.verify()


def test_what_is_not_here_is_not_damaged(finished: Project, tmp_path: Path) -> None:
    assert "error" not in finished.clone(tmp_path / "clone").verify()


def test_errors_of_dvc_take_one_line(finished: Project) -> None:
    printed = finished.verify("--remote", status=1)
    assert printed.startswith("error: ")
    assert "no remote" in printed
    assert printed.count("\n") == 1
    shutil.rmtree(finished.path / ".dvc")
    printed = finished.verify(status=1)
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_killed_push_can_be_repeated(finished: Project, remote: Remote, tmp_path: Path) -> None:
    remote.configure(finished)
    big = finished.path / "data/big"
    big.write_bytes(os.urandom(64 << 20))  # long enough on its way to be cut off
    finished.dvc("add", "-q", "data/big")
    finished.commit("Big")
    push = subprocess.Popen(
        ["dvc", "push", "-q"],
        cwd=finished.path,
        env=finished.env,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while push.poll() is None and not remote.keys() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert push.poll() is None
    os.killpg(push.pid, signal.SIGKILL)
    push.wait()

    finished.dvc("push")
    if "damaged" in finished.verify("--remote", status=None):
        finished.dvc("push")
    clone = finished.clone(tmp_path / "clone")
    remote.log_in(clone)
    clone.dvc("pull")
    assert outputs(clone) == outputs(finished)
    assert (clone.path / "data/big").read_bytes() == big.read_bytes()
