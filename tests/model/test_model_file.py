"""The model file: the same bytes for the same model, and stock Keras loads it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from project import ROOT, Project, contents

from stages.common.errors import StageError
from stages.model import model_file

SHAPE = (4, 4, 1)

# In processes of its own, because a process builds its layers' names and addresses anew.
SAVE = """
import sys
from pathlib import Path
from stages.model import runtime
runtime.start(seed=1, threads=2, instructions="native")
import keras, numpy as np
from stages.model import model_file
image = keras.Input((4, 4, 1), name="image")
flat = keras.layers.Flatten(name="flat")(image)
model = keras.Model(image, keras.layers.Dense(2, activation="softmax", name="digit")(flat))
model.compile(keras.optimizers.Adam(0.5), "categorical_crossentropy")
x = np.arange(160, dtype=np.uint8).reshape(10, 4, 4, 1)
model.fit(x, np.eye(2)[np.arange(10) % 2], verbose=0)
model_file.save(model, Path(sys.argv[1]))
np.save(sys.argv[2], model(x))
"""


@pytest.mark.slow
def test_two_processes_save_the_same_bytes_which_stock_keras_loads(tmp_path: Path) -> None:
    one, two, outputs = (tmp_path / name for name in ("one.keras", "two.keras", "y.npy"))
    for path in (one, two):
        subprocess.run([sys.executable, "-c", SAVE, path, outputs], cwd=ROOT, check=True)
    assert one.read_bytes() == two.read_bytes()
    assert {*tmp_path.iterdir()} == {one, two, outputs}
    model = keras.models.load_model(one)
    x = np.arange(160, dtype=np.uint8).reshape(10, 4, 4, 1)
    np.testing.assert_allclose(np.asarray(model(x)), np.load(outputs), rtol=1e-6)
    assert int(model.optimizer.iterations) == 1
    assert float(model.optimizer.learning_rate) == 0.5
    moments = [np.asarray(v) for v in model.optimizer.variables if "momentum" in v.path]
    assert any(moment.any() for moment in moments)


def test_the_pipelines_model_is_stock_keras(reproduced: Project) -> None:
    model = keras.models.load_model(reproduced.path / "data/model/model.keras")
    assert model.output_shape == (None, 3)


def test_an_archive_is_written_again_without_what_differs_between_runs(tmp_path: Path) -> None:
    config = '{"a": {"shared_object_id": 140001}, "b": [{"shared_object_id": 140002}], '
    config += '"c": {"shared_object_id": 140001}}'
    parts = {
        "model.weights.h5": b"\x89HDF weights",
        "metadata.json": b'{"keras_version": "3.15.1", "date_saved": "2031-05-06@07:08:09"}',
        "config.json": config.encode(),
    }
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    model_file._repack(tmp_path / "model.keras")

    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.namelist() == ["config.json", "metadata.json", "model.weights.h5"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.read("model.weights.h5") == parts["model.weights.h5"]
        assert json.loads(archive.read("metadata.json")) == {
            "keras_version": "3.15.1",
            "date_saved": "1980-01-01@00:00:00",
        }
        ids = [part["shared_object_id"] for part in _dicts(json.loads(archive.read("config.json")))]
    assert ids == [0, 1, 0]


def _dicts(config: dict[str, Any]) -> list[dict[str, int]]:
    return [config["a"], config["b"][0], config["c"]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model as Keras itself saves it."""
    image = keras.Input((2,), name="image")
    path = tmp_path / "model.keras"
    keras.Model(image, keras.layers.Dense(2, name="digit")(image)).save(path)
    assert model_file.load(path).output_shape == (None, 2)
    return path


@pytest.mark.parametrize("part", ["metadata.json", "config.json", "model.weights.h5"])
def test_a_damaged_part_is_noticed(model: Path, part: str) -> None:
    content = bytearray(model.read_bytes())
    with zipfile.ZipFile(model) as archive:
        info = archive.getinfo(part)
        inside = archive.read(part)
    position = content.index(inside[-40:], info.header_offset) + 20
    content[position] ^= 1
    model.write_bytes(content)
    with pytest.raises(StageError, match=f"model.keras: is damaged: .*{part}.*`make verify`"):
        model_file.load(model)


@pytest.mark.slow
def test_a_damaged_directory_of_the_archive_is_noticed(model: Path) -> None:
    sound = model.read_bytes()
    messages = []
    for position in range(sound.index(b"PK\1\2"), len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1
        model.write_bytes(damaged)
        try:
            model_file.load(model)  # not all damage matters: to a date, say
        except StageError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all("; run `" in message for message in messages)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"model.keras: not found; run `dvc repro train`"):
        model_file.load(tmp_path / "model.keras")
    (tmp_path / "model.keras").write_bytes(b"no archive")
    with pytest.raises(StageError, match=r"is damaged: File is not a zip file; run `make verify`"):
        model_file.load(tmp_path / "model.keras")


def save_lambda(path: Path) -> None:
    """Save a model that brings code of its own, which stock Keras may save but not load."""
    image = keras.Input(SHAPE, name="image")
    path.unlink(missing_ok=True)
    keras.Model(image, layers.Lambda(lambda x: x + 1, name="code")(image)).save(path)


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    save_lambda(tmp_path / "model.keras")
    with pytest.raises(StageError, match=r"can load with the layers .*Lambda.*--force train`"):
        model_file.load(tmp_path / "model.keras")


def test_training_again_helps_where_dvc_takes_it_for_the_model(finished: Project) -> None:
    model, before = finished.path / "data/model/model.keras", contents(finished)
    save_lambda(model)
    finished.dvc("commit", "--force", "train")  # now DVC takes it for what train gives
    remedy = "dvc repro --force train"
    assert finished.stage("evaluate", status=1).endswith(f"; run `{remedy}`\n")
    finished.run(*remedy.split())
    assert contents(finished) == before
