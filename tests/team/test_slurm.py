"""Training on a real Slurm: on two machines at once, and an array of experiments."""

import json
import re
from pathlib import Path

import pytest
from project import ROOT, Project
from remotes import publish, share
from slurm import Cluster

SCALE = ROOT / "docs/scale.md"


@pytest.fixture
def prepared(finished: Project) -> Project:
    """A project whose next training is on two machines, its tensors made."""
    finished.set_params({"train": {"strategy": "multi_worker"}})
    finished.dvc("repro", "preprocess")
    return finished


def documented(start: str) -> str:
    """Return the block of docs/scale.md that starts so, without the prompt."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", SCALE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if block.removeprefix("$ ").startswith(start)]
    return str(block.removeprefix("$ "))


def test_two_machines_train_as_the_docs_say(prepared: Project, slurm: Cluster) -> None:
    command = documented("srun")
    printed = slurm.run(prepared, "sh", "-c", command)
    assert re.search(r"^worker 1 of 2: trained on \d+ images$", printed, re.MULTILINE)
    assert "Running stage 'plot'" in printed  # the first worker's `dvc repro` goes on
    assert "up to date" in prepared.dvc("status")
    history = (prepared.path / "metrics/history.csv").read_text().splitlines()
    assert len(history) > 1


def test_other_parameters_on_one_machine_end_both(
    prepared: Project, slurm: Cluster, tmp_path: Path
) -> None:
    other = prepared.copy(tmp_path / "other")
    other.set_params({"train": {"learning_rate": 0.02}})
    before = (prepared.path / "data/model/model.keras").read_bytes()
    command = f"test $SLURM_PROCID = 0 || cd {other.path}; exec python -m stages.train"
    printed = slurm.run(prepared, "srun", "-N2", "-n2", "sh", "-c", command, status=1)
    assert sorted(re.findall(r"^error: (.*); give all", printed, re.MULTILINE)) == [
        f"worker {own} and others differ in their parameters" for own in (0, 1)
    ]
    assert (prepared.path / "data/model/model.keras").read_bytes() == before


def test_an_array_of_experiments_as_the_docs_say(
    finished: Project, slurm: Cluster, tmp_path: Path
) -> None:
    publish(finished, tmp_path / "origin.git")
    share(finished, tmp_path / "remote")
    finished.git("push", "-q")
    finished.dvc("push")
    script = finished.path / "seeds.sbatch"
    script.write_text(documented("#!/bin/bash"))
    slurm.run(finished, "sbatch", "--wait", "--array=1-2", str(script))
    listed = finished.dvc("exp", "list", "origin", "--all-commits", "--name-only").split()
    assert len(listed) == 2
    for name in listed:
        finished.dvc("exp", "pull", "origin", name)
    shown = json.loads(finished.dvc("exp", "show", "--json"))
    seeds = {
        run["revs"][0]["data"]["params"]["params.yaml"]["data"]["train"]["seed"]
        for run in shown[1]["experiments"]
    }
    assert seeds == {1, 2}
