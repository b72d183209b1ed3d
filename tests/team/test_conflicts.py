"""Branches that meet again, and line endings that must not change a hash."""

import re
from pathlib import Path

import yaml
from project import Project


def branch(project: Project, name: str, changes: dict[str, dict[str, int]]) -> list[str]:
    """Run the pipeline with other parameters on a branch of its own; return the stages that ran."""
    project.git("checkout", "-q", "-b", name)
    project.set_params(changes)
    printed = project.dvc("repro")
    project.commit(name)
    project.git("checkout", "-q", "main")
    return re.findall("Running stage '(.*)'", printed)


def test_a_merge_restores_what_was_run(finished: Project) -> None:
    changes = {"evaluate": {"batch_size": 7}, "plot": {"seed": 1}}
    assert branch(finished, "ours", changes) == ["evaluate", "plot"]
    assert branch(finished, "theirs", {"plot": {"seed": 2}}) == ["plot"]
    finished.git("merge", "-q", "ours")
    conflict = finished.git("merge", "theirs", status=1)
    assert "Merge conflict in params.yaml" in conflict
    assert "Merge conflict in dvc.lock" in conflict

    # The documented way out: settle the parameters; of the rest, either side will do.
    params = finished.path / "params.yaml"
    params.write_text(params.read_text().split("<<<<<<<")[0] + "  seed: 2\n")
    settled = yaml.safe_load(params.read_text())
    assert (settled["evaluate"]["batch_size"], settled["plot"]["seed"]) == (7, 2)
    finished.git("checkout", "--ours", "dvc.lock", "metrics")
    assert "Running stage" not in finished.dvc("repro")
    assert finished.git("diff", "--stat", "theirs", "--", "metrics") == ""
    finished.git("add", "params.yaml", "dvc.lock", "metrics")
    finished.git("commit", "-q", "--no-edit")
    assert finished.git("status", "--porcelain") == ""


def test_line_endings_change_no_hash(template: Project, tmp_path: Path) -> None:
    for autocrlf in ("true", "input", "false"):
        clone = Project(tmp_path / autocrlf, template.env)
        windows = ("-c", f"core.autocrlf={autocrlf}", "-c", "core.eol=crlf")
        template.git(*windows, "clone", "-q", str(template.path), str(clone.path))
        clone.git("config", "core.autocrlf", autocrlf)
        for name in clone.git("ls-files").splitlines():
            assert (clone.path / name).read_bytes() == (template.path / name).read_bytes(), name

        # An editor of Windows saves with \r\n; Git takes them out again.
        for name in ("stages/plot.py", "params.yaml", "data/datasets.yaml"):
            path = clone.path / name
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        clone.git("add", "-A")
        assert clone.git("diff", "--cached", "--stat") == ""
