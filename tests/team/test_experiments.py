"""Experiments: run, queued, compared, applied, turned into branches, and shared."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from project import Project
from remotes import publish

MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp")


def seeds(project: Project) -> dict[str, int]:
    """Return the plot seed of each experiment, by its name."""
    [base] = [
        entry
        for entry in json.loads(project.dvc("exp", "show", "--json"))
        if entry["rev"] != "workspace"
    ]
    revisions: list[dict[str, Any]] = [entry["revs"][0] for entry in base["experiments"] or []]
    return {
        entry["name"]: entry["data"]["params"]["params.yaml"]["data"]["plot"]["seed"]
        for entry in revisions
    }


def figure(project: Project) -> bytes:
    return (project.path / "metrics/figures/match.png").read_bytes()


@pytest.mark.timeout(600)
def test_a_grid_is_queued_compared_applied_and_shared(finished: Project, tmp_path: Path) -> None:
    publish(finished, tmp_path / "origin.git")
    finished.dvc("remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    finished.dvc("remote", "modify", "team", "verify", "true")
    finished.commit("Remote")
    finished.git("push", "-q")
    before = figure(finished)

    finished.dvc("exp", "run", "--name", "one", "-S", "plot.seed=1")
    assert (one := figure(finished)) != before
    finished.git("checkout", "-q", ".")
    finished.dvc("exp", "run", "--queue", "-S", "plot.seed=2")
    finished.dvc("queue", "start")
    deadline = time.monotonic() + 300
    # Git is quicker to ask than `dvc queue status`.
    while len(re.findall("refs/exps/../", finished.git("for-each-ref"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    finished.dvc("queue", "stop")
    found = seeds(finished)
    assert sorted(found.values()) == [1, 2]
    assert figure(finished) == before  # the queue works elsewhere

    table = finished.dvc("exp", "show", "--only-changed", "--no-pager")
    assert all(name in table for name in found)
    assert "plot.seed" in table
    assert max(map(len, table.splitlines())) <= 80

    finished.dvc("exp", "apply", "one")
    assert figure(finished) == one
    finished.git("checkout", "-q", ".")
    finished.dvc("exp", "branch", "one", "idea")
    assert "seed: 1" in finished.git("show", "idea:params.yaml")

    finished.dvc("exp", "push", "origin", *found)
    other = Project(tmp_path / "other", finished.env)
    finished.git("clone", "-q", str(tmp_path / "origin.git"), str(other.path))
    assert seeds(other) == {}
    other.dvc("exp", "pull", "origin", *found)
    assert seeds(other) == found
    other.dvc("exp", "apply", "one")
    assert figure(other) == one
    assert "Running stage" not in other.dvc("repro")


def test_a_temporary_folder_has_what_an_experiment_needs(project: Project, tmp_path: Path) -> None:
    """`make smoke`, as CI runs it: a checkout of a commit, no data, no cache, no remote."""
    clone = project.clone(tmp_path / "clone")
    clone.git("checkout", "-q", "--detach")
    makefile = clone.path / "Makefile"
    text = makefile.read_text()  # the small data set is smaller still
    makefile.write_text(text.replace("max_images=2000", "max_images=90"))
    clone.git("commit", "-qam", "Fewer")
    printed = clone.run(*MAKE, "smoke")
    for stage in ("fetch", "preprocess", "train", "evaluate", "plot"):
        assert f"Running stage '{stage}'" in printed
    assert "72 train, 18 validation, 60 test images" in printed
    assert not (clone.path / "data/model").exists()
    assert clone.git("status", "--porcelain") == ""
