"""Experiments: run, queued, compared, shared and applied."""

import re
import time
from pathlib import Path

from project import Project
from remotes import publish, share


def experiments(project: Project) -> dict[str, str]:
    """Return the commit of each experiment, by its name; Git is quicker to ask than DVC."""
    refs = project.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/")
    return dict(re.findall(r"^refs/exps/../\w{38}/(\S+) (\w+)$", refs, re.MULTILINE))


def figure(project: Project) -> bytes:
    return (project.path / "metrics/figures/match.png").read_bytes()


def test_experiments_are_queued_compared_shared_and_applied(
    finished: Project, tmp_path: Path
) -> None:
    publish(finished, tmp_path / "origin.git")
    share(finished, tmp_path / "remote")
    finished.git("push", "-q")
    before = figure(finished)

    finished.dvc("exp", "run", "--name", "one", "-S", "plot.seed=1")
    assert (one := figure(finished)) != before
    finished.git("checkout", "-q", ".")
    finished.dvc("exp", "run", "--queue", "--name", "two", "-S", "plot.seed=2")
    # A worker goes on in the background, and with it what it prints to.
    finished.run("sh", "-c", "dvc queue start >/dev/null 2>&1")
    deadline = time.monotonic() + 200
    while experiments(finished).keys() != {"one", "two"}:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    finished.dvc("queue", "stop")
    assert figure(finished) == before  # the queue works elsewhere

    table = finished.dvc("exp", "show", "--only-changed", "--no-pager")
    for name, seed in (("one", 1), ("two", 2)):
        assert re.search(rf"\[{name}\].* {seed} ", table)
    assert "plot.seed" in table
    assert max(map(len, table.splitlines())) <= 80

    finished.dvc("exp", "push", "origin", "one", "two")
    other = Project(tmp_path / "other", finished.env)
    finished.git("clone", "-q", str(tmp_path / "origin.git"), str(other.path))
    other.dvc("exp", "pull", "origin", "one", "two")
    assert experiments(other) == experiments(finished)
    other.dvc("exp", "apply", "one")
    assert figure(other) == one
    assert "Running stage" not in other.dvc("repro")
