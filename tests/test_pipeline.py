"""dvc.yaml against the code, and the promises that only a run of the whole pipeline shows."""

import ast
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from project import PIPELINE, ROOT, STAGES, Project


def imported(file: str) -> Iterator[str]:
    """Yield the modules below stages/ that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a folder is a module, from a module it is a part of that.
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = name.replace(".", "/") + ".py"
            if name.startswith("stages.") and (ROOT / path).is_file():
                yield path


def modules_of(stage: str) -> set[str]:
    """Return the files that a stage imports, itself included, directly or not."""
    found, waiting = set(), ["stages/__init__.py", f"stages/{stage}.py"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported(file)
    return found


def covered(path: str, stage: str) -> bool:
    """Tell whether a file is a dependency of a stage, by itself or in a folder."""
    return any(path == dep or path.startswith(f"{dep}/") for dep in PIPELINE[stage]["deps"])


def outputs_of(stage: str) -> set[str]:
    entries = [
        entry for kind in ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, [])
    ]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_each_stage_is_a_script_and_nothing_else_is_beside_them() -> None:
    files = {file.stem for file in (ROOT / "stages").iterdir() if file.is_file()}
    assert files == {*STAGES, "__init__"}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_described_and_run_as_a_module(stage: str) -> None:
    assert PIPELINE[stage]["desc"]
    assert PIPELINE[stage]["cmd"] == f"python -m stages.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_what_is_imported(stage: str) -> None:
    declared = [dep for dep in PIPELINE[stage]["deps"] if not dep.startswith(("data/", "metrics/"))]
    used = modules_of(stage)
    assert [file for file in used if not covered(file, stage)] == []
    # What is declared is used: of a folder at least one file.
    unused = [dep for dep in declared if not any(f"{file}/".startswith(f"{dep}/") for file in used)]
    assert unused == ["requirements.lock"]
    assert len(declared) == len(set(declared))


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_and_no_shared_module_a_stage(stage: str) -> None:
    stages = {f"stages/{name}.py" for name in STAGES}
    assert modules_of(stage) & stages == {f"stages/{stage}.py"}


def test_what_every_stage_depends_on_is_what_they_share() -> None:
    shared = set.union(*map(modules_of, STAGES))
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "stages/common").glob("*.py")} <= shared


def params_read(stage: str) -> set[str]:
    """Return the dotted parameters that a stage reads, as `declared_params` does."""
    read = set()
    for name in modules_of(stage):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if call == "params.load":
                section = ast.literal_eval(node.args[0])
                module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
                schema = getattr(module, ast.unparse(node.args[1]))
                # A type that ignores other keys reads its own alone, any other the whole section.
                ignores = schema.model_config["extra"] == "ignore"
                read |= (
                    {f"{section}.{key}" for key in schema.model_fields} if ignores else {section}
                )
    return read


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_what_is_read(stage: str) -> None:
    # Limits are no inputs of a result: no stage is run again when they change.
    read = {key for key in params_read(stage) if not key.startswith("limits.")}
    whole = {key for key in read if "." not in key}
    assert set(PIPELINE[stage]["params"]) == {
        key for key in read if key.split(".")[0] not in whole or key in whole
    }


def test_params_yaml_has_a_section_for_each_stage_and_the_limits() -> None:
    assert list(yaml.safe_load((ROOT / "params.yaml").read_text())) == [*STAGES, "limits"]


def test_limits_are_what_is_read_and_no_stage_depends_on_them() -> None:
    limits = yaml.safe_load((ROOT / "params.yaml").read_text())["limits"]
    read = set.union(*map(params_read, STAGES))
    assert {f"limits.{key}" for key in limits} == {key for key in read if "limits." in key}
    assert not any(
        key.startswith("limits") for stage in STAGES for key in PIPELINE[stage]["params"]
    )


def test_changed_limits_run_nothing_again(finished: Project) -> None:
    finished.set_params({"limits": {"retries": 5, "connect_timeout": 60, "stall_timeout": 60}})
    assert "Running stage" not in finished.dvc("repro")
    finished.git("restore", "params.yaml")
    assert "Running stage" not in finished.dvc("exp", "run", "-S", "limits.retries=5")
    content = yaml.safe_load((finished.path / "params.yaml").read_text())
    assert content["limits"]["retries"] == 5


# Run by every Python of the pipeline: logs the files it opens, by stage.
AUDIT = """
import os, sys
stage = sys.orig_argv[-1].removeprefix("stages.")
if "-m" in sys.orig_argv and sys.orig_argv[-1].startswith("stages."):
    root = os.getcwd() + os.sep
    log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def hook(event, arguments):
        if event in ("open", "os.rename"):
            path = arguments[0] if event == "open" else arguments[1]
            if isinstance(path, (str, os.PathLike)):
                path = os.path.abspath(os.fspath(path))
                if path.startswith(root) and (event == "os.rename" or os.path.isfile(path)):
                    kind = "read" if event == "open" else "written"
                    os.write(log, f"{stage} {kind} {path.removeprefix(root)}\\n".encode())
    sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def audited(template: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The small project after `dvc repro` under another umask, time zone and locale, and its log.

    The log has a line `STAGE read|written PATH` for each file opened or renamed into place.
    """
    folder = tmp_path_factory.mktemp("audited")
    hook = folder / "hook/sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(AUDIT)
    project = template.copy(folder / "another place")
    env = {
        "PYTHONPATH": str(hook.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUDIT_LOG": str(folder / "log"),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C.UTF-8",
        "LANG": "tr_TR.UTF-8",
    }
    project.dvc("repro", env=env, umask=0o027)
    return project, (folder / "log").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_files_opened_are_dependencies_and_files_written_are_outputs(
    audited: tuple[Project, str], stage: str
) -> None:
    lines = [line.split(" ", 2) for line in audited[1].splitlines()]
    read = {path for name, kind, path in lines if (name, kind) == (stage, "read")}
    written = {path for name, kind, path in lines if (name, kind) == (stage, "written")}
    mirror = {path for path in read if path.startswith("data/mirror/")}
    assert bool(mirror) == (stage == "fetch")
    temporary = {path for path in read if "/.tmp-" in path}
    inputs = read - mirror - temporary - written - {"params.yaml"}
    assert [path for path in inputs if not covered(path, stage)] == []
    unread = [
        d for d in PIPELINE[stage]["deps"] if not any(f"{p}/".startswith(f"{d}/") for p in inputs)
    ]
    assert unread == ["requirements.lock"]
    expected = outputs_of(stage)
    assert {next(o for o in expected if f"{w}/".startswith(f"{o}/")) for w in written} == expected


def test_two_runs_in_two_places_give_the_same_bytes(
    reproduced: Project, audited: tuple[Project, str]
) -> None:
    other, _ = audited
    assert (other.path / "dvc.lock").read_text() == (reproduced.path / "dvc.lock").read_text()
    committed = reproduced.git("ls-files", "metrics").split()
    assert len(committed) == 11
    for name in committed:
        assert (other.path / name).read_bytes() == (reproduced.path / name).read_bytes(), name


def test_outputs_have_the_modes_that_the_umask_asks_for(audited: tuple[Project, str]) -> None:
    for name in ("metrics/metrics.json", "metrics/figures/match.png"):
        assert (audited[0].path / name).stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_behind_and_nothing_is_out_of_date(reproduced: Project) -> None:
    assert not list(reproduced.path.rglob(".tmp-*"))
    assert reproduced.git("status", "--porcelain") == ""
    assert "up to date" in reproduced.dvc("status")


def test_a_new_plot_parameter_runs_the_plot_alone(finished: Project) -> None:
    finished.set_params({"plot": {"seed": 5}})
    printed = finished.dvc("repro")
    assert "Running stage 'plot'" in printed
    assert printed.count("Running stage") == 1


def test_commits_compare_in_a_clone_with_no_remote_and_no_cache(
    finished: Project, tmp_path: Path
) -> None:
    finished.set_params({"train": {"epochs": 2}})
    finished.dvc("repro")
    finished.commit("Two epochs")
    clone = finished.clone(tmp_path / "clone")

    metrics = json.loads(clone.dvc("metrics", "diff", "HEAD~1", "--json"))
    for path, key in (
        ("metrics/metrics.json", "loss"),
        ("metrics/metrics.json", "f1"),
        ("metrics/training.json", "training.loss"),
    ):
        for revision, side in (("HEAD~1", "old"), ("HEAD", "new")):
            value = json.loads(clone.git("show", f"{revision}:{path}"))
            for part in key.split("."):
                value = value[part]
            assert metrics[path][key][side] == value
    table = clone.dvc("metrics", "diff", "HEAD~1").strip().splitlines()
    assert len(table) <= 11, "one screen: a heading and ten lines"
    params = json.loads(clone.dvc("params", "diff", "HEAD~1", "--json"))
    assert params == {"params.yaml": {"train.epochs": {"old": 1, "new": 2, "diff": 1}}}
    clone.dvc("plots", "diff", "HEAD~1", "--out", "comparison")
    page = (clone.path / "comparison/index.html").read_text()
    for figure in ("mismatch", "match", "confusion", "training", "sample"):
        for revision in ("workspace", "HEAD~1"):
            image = next((clone.path / "comparison").rglob(f"*{revision}*{figure}.png"))
            assert image.read_bytes().startswith(b"\x89PNG")
            assert os.path.relpath(image, clone.path / "comparison") in page
    for part in (
        "Loss",
        "Accuracy",
        "Confusion matrix",
        "F1 of each class",
        '"rev": "HEAD~1"',
        '"rev": "workspace"',
    ):
        assert part in page
