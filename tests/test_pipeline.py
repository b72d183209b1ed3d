"""dvc.yaml against the code, and the promises that only a run of the whole pipeline shows."""

import ast
import importlib
import re
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
    kinds = ("outs", "metrics", "plots")
    entries = [entry for kind in kinds for entry in PIPELINE[stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_stages_are_scripts_of_their_names_and_nothing_else_is_beside_them() -> None:
    files = {file.stem for file in (ROOT / "stages").iterdir() if file.is_file()}
    assert files == {*STAGES, "__init__"}
    for stage, entry in PIPELINE.items():
        assert entry["desc"]
        assert entry["cmd"] == f"python -m stages.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_cover_what_is_imported_and_no_stage_imports_another(stage: str) -> None:
    used = modules_of(stage)
    assert [file for file in used if not covered(file, stage)] == []
    assert len(PIPELINE[stage]["deps"]) == len({*PIPELINE[stage]["deps"]})
    assert used & {f"stages/{name}.py" for name in STAGES} == {f"stages/{stage}.py"}


def test_what_every_stage_depends_on_is_what_they_share() -> None:
    shared = set.union(*map(modules_of, STAGES))
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "stages/common").glob("*.py")} <= shared


def params_read(stage: str) -> set[str]:
    """Return the dotted parameters that a stage reads, as `declared_params` does."""
    read = set()
    for name in modules_of(stage):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load":
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


def test_params_yaml_is_what_is_read() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert list(content) == [*STAGES, "limits"]
    read = set.union(*map(params_read, STAGES))
    assert {f"limits.{key}" for key in content["limits"]} == {k for k in read if "limits." in k}


def test_files_opened_are_dependencies_and_files_written_are_outputs(reproduced: Project) -> None:
    log = (reproduced.path.parent / "audit.log").read_text()
    lines = [line.split(" ", 2) for line in log.splitlines()]
    for stage in STAGES:
        read = {path for name, kind, path in lines if (name, kind) == (stage, "read")}
        written = {path for name, kind, path in lines if (name, kind) == (stage, "written")}
        mirror = {path for path in read if path.startswith("data/mirror/")}
        assert bool(mirror) == (stage == "fetch")
        temporary = {path for path in read if "/.tmp-" in path}
        inputs = read - mirror - temporary - written - {"params.yaml"}
        assert [path for path in inputs if not covered(path, stage)] == []
        deps = PIPELINE[stage]["deps"]
        unread = [dep for dep in deps if not any(f"{p}/".startswith(f"{dep}/") for p in inputs)]
        assert unread == ["requirements.lock"]
        expected = outputs_of(stage)
        found = {next(o for o in expected if f"{w}/".startswith(f"{o}/")) for w in written}
        assert found == expected


def test_a_smoke_test_needs_no_more_than_a_commit(finished: Project, tmp_path: Path) -> None:
    """`make smoke`, as CI runs it, but for a cache from which it need not train again."""
    clone = finished.clone(tmp_path / "clone")
    clone.configure({"cache": {"dir": str(finished.path / ".dvc/cache")}}, "config.local")
    clone.git("checkout", "-q", "--detach")
    with (clone.path / "data/datasets.yaml").open("a") as catalogue:
        catalogue.write("# so that it is fetched again\n")
    clone.git("commit", "-qam", "Comment")
    printed = clone.run("make", "-o", ".venv/pipeline.stamp", "smoke")
    assert re.findall("Running stage '(.*)'", printed) == ["fetch", "preprocess"]
    assert "120 train, 30 validation, 60 test images" in printed
    [run] = re.findall(r"refs/exps/../\w{38}/\S+", clone.git("for-each-ref"))
    assert "max_images: 2000" in clone.git("show", f"{run}:dvc.lock")
    assert clone.git("status", "--porcelain") == ""
    assert not (clone.path / "data/raw").exists()
