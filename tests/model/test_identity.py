"""What decides the result of a training, and nothing else, changes its identity."""

import sys
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf
from folder import PARAMS

import stages
from stages.common import paths
from stages.model import identity
from stages.train import TrainParams


@pytest.fixture(autouse=True)
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    paths.MANIFEST.parent.mkdir(parents=True)
    paths.MANIFEST.write_text('{"classes": ["0", "1"]}')
    return paths.MANIFEST


def changed(before: dict[str, str], **parameters: object) -> set[str]:
    after = identity.versions(TrainParams(**PARAMS | parameters))
    return {name for name in before if before[name] != after[name]}


def test_parameters_count_but_not_how_often_a_checkpoint_is_saved() -> None:
    before = identity.versions(TrainParams(**PARAMS))
    assert set(before) == {"code", "parameters", "tensors"}
    assert changed(before) == set()
    assert changed(before, checkpoint_every=100) == set()
    for name, value in {"seed": 2, "epochs": 2, "shift": 2, "strategy": "single"}.items():
        assert changed(before, **{name: value}) == {"parameters"}, name


def test_tensors_count(manifest: Path) -> None:
    before = identity.versions(TrainParams(**PARAMS))
    manifest.write_text('{"classes": ["0", "2"]}')
    assert changed(before) == {"tensors"}


@pytest.mark.parametrize("library", [keras, np, tf])
def test_libraries_count(monkeypatch: pytest.MonkeyPatch, library: ModuleType) -> None:
    before = identity.versions(TrainParams(**PARAMS))
    monkeypatch.setattr(library, "__version__", "0.1")
    assert changed(before) == {"code"}


def test_all_code_counts_that_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "stages"
    code.mkdir()
    files = [code / "__init__.py", code / "one.py", tmp_path / "elsewhere.py"]
    for file in files:
        file.write_text("")
    monkeypatch.setattr(stages, "__file__", str(files[0]))
    for name in ("one", "elsewhere"):
        module = ModuleType(name)
        module.__file__ = str(tmp_path / ("stages" if name == "one" else "") / f"{name}.py")
        monkeypatch.setitem(sys.modules, f"imported_{name}", module)
    before = identity.versions(TrainParams(**PARAMS))
    (code / "not_imported.py").write_text("1")
    files[2].write_text("1")
    assert changed(before) == set()
    files[1].write_text("1")
    assert changed(before) == {"code"}
