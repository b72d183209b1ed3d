"""Data and results shared through Git and a remote, as docs/team.md says, with real servers."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

from project import Project, contents
from remotes import Remote, publish

RAW = "data/raw/t10k-labels-idx1-ubyte"
TENSOR = "data/tensors/test_images.npy"
MODEL = "data/model/model.keras"


def test_two_people_share_runs(finished: Project, tmp_path: Path) -> None:
    publish(finished, tmp_path / "origin.git")
    finished.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    advice = "dvc remote modify team verify true"
    printed = finished.verify(status=1)
    assert f"error: remote team: `dvc pull` would not check its data; run `{advice}`\n" in printed
    finished.run(*advice.split())
    finished.commit("Remote")
    finished.dvc("push")
    finished.git("push", "-q")

    other = Project(tmp_path / "other", finished.env)
    finished.git("clone", "-q", str(tmp_path / "origin.git"), str(other.path))
    other.dvc("pull")
    assert "Running stage" not in other.dvc("repro")
    assert other.git("status", "--porcelain") == ""
    other.set_params({"preprocess": {"validation_size": 20}})
    assert "Running stage 'preprocess'" in other.dvc("repro", "preprocess")
    other.commit("Smaller")
    other.dvc("push")
    other.git("push", "-q")

    finished.git("pull", "-q")
    finished.dvc("pull", "--quiet")
    assert contents(finished) == contents(other)


def test_a_killed_push_and_a_damaged_remote(
    finished: Project, remote: Remote, tmp_path: Path
) -> None:
    remote.configure(finished)
    big = finished.path / "data/big"
    big.write_bytes(os.urandom(64 << 20))  # long enough on its way to be cut off
    finished.dvc("add", "-q", "data/big")
    finished.commit("Big")
    push = subprocess.Popen(
        ["dvc", "push", "-q"], cwd=finished.path, env=finished.env, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while push.poll() is None and not remote.keys() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert push.poll() is None
    os.killpg(push.pid, signal.SIGKILL)
    push.wait()
    finished.dvc("push")

    keys = {
        name: hashlib.md5((finished.path / name).read_bytes()).hexdigest()
        for name in (RAW, TENSOR, MODEL)
    }
    content = remote.read(keys[TENSOR])
    remote.write(keys[TENSOR], content[:-1] + bytes([content[-1] ^ 1]))
    remote.write(keys[MODEL], remote.read(keys[MODEL])[:-1])
    remote.delete(keys[RAW])
    clone = finished.clone(tmp_path / "clone")
    remote.log_in(clone)
    assert "failed to pull data" in clone.dvc("pull", status=1)
    assert not any((clone.path / name).exists() for name in keys)

    # Whoever has the data sends again what the remote lacks, once what is damaged is gone there.
    printed = finished.verify("--remote", status=1)
    assert {keys[TENSOR], keys[MODEL]}.isdisjoint(remote.keys())
    assert "error: data/raw: damaged in the remote; removed there\n" in printed
    assert "error: data/tensors: damaged in the remote; removed there\n" in printed
    if "2 problem(s)" not in printed:  # a folder is rid of it as soon as someone has looked
        assert f"error: {MODEL}: damaged in the remote; removed there\n" in printed
    assert "run `dvc push`" in printed
    finished.dvc("push")
    assert "error" not in finished.verify("--remote")
    clone.dvc("pull")
    assert contents(clone) == contents(finished)
    assert (clone.path / "data/big").read_bytes() == big.read_bytes()
