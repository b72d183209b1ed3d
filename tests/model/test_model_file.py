"""The model file: the same bytes for the same model, and stock Keras loads it."""

import itertools
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, Project, contents
from keras import layers

from stages.common.errors import StageError
from stages.model import fused, model_file

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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in ("one", "two"):
        command = [sys.executable, "-c", SAVE, str(folder / f"{name}.keras"), str(folder / "y.npy")]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
def test_two_processes_save_the_same_bytes(saved: Path) -> None:
    assert (saved / "one.keras").read_bytes() == (saved / "two.keras").read_bytes()


@pytest.mark.slow
def test_no_time_no_address_and_nothing_left_behind(saved: Path) -> None:
    with zipfile.ZipFile(saved / "one.keras") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980-01-01@00:00:00" in archive.read("metadata.json")
        assert b'"shared_object_id": 0' in archive.read("config.json")
    assert len(list(saved.iterdir())) == 3


@pytest.mark.slow
def test_stock_keras_loads_it_with_its_optimizer(saved: Path) -> None:
    model = keras.models.load_model(saved / "one.keras")
    x = np.arange(160, dtype=np.uint8).reshape(10, 4, 4, 1)
    np.testing.assert_allclose(np.asarray(model(x)), np.load(saved / "y.npy"), rtol=1e-6)
    assert int(model.optimizer.iterations) == 1
    assert float(model.optimizer.learning_rate) == 0.5
    moments = [np.asarray(v) for v in model.optimizer.variables if "momentum" in v.path]
    assert moments
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


# Networks that users write


@keras.saving.register_keras_serializable("tests")
class Times(layers.Layer):  # type: ignore[misc] # Keras has no types
    """A layer of a user's own, with a setting."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor


class Unregistered(Times):
    pass


@keras.saving.register_keras_serializable("tests")
class Forgetful(Times):
    """Takes a setting from elsewhere, so that the file does not hold it."""

    number = itertools.count(1)

    def __init__(self, **options: Any) -> None:
        super().__init__(next(self.number), **options)

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)  # type: ignore[no-any-return]


class Subclass(keras.Model):  # type: ignore[misc] # Keras has no types
    pass


def through(*between: Any, batch_size: int | None = None, last: Any = None) -> keras.Model:
    """Return a network with these layers or functions between its first and its last."""
    x = image = keras.Input(SHAPE, batch_size, name="image")
    for layer in (*between, layers.Flatten(), last or layers.Dense(3, "softmax")):
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    "network",
    [
        lambda: through(),
        lambda: through(Times(2.0), lambda x: x / 255, keras.ops.abs, layers.Dropout(0.5)),
        lambda: through(layers.Dense(2, activation="relu", kernel_regularizer="l2")),
        lambda: through(keras.Sequential([layers.Dense(2), layers.BatchNormalization()])),
        lambda: keras.Sequential([layers.Flatten(), layers.Dense(3, "softmax")]),
    ],
)
def test_networks_that_can_train(network: Callable[[], keras.Model]) -> None:
    model = network()
    model_file.check(model, SHAPE, 3)
    assert fused.training_model(model)(np.zeros((5, *SHAPE))).shape == (5, 3)


REFUSED: dict[str, Callable[[], keras.Model]] = {
    # A part of what is said, and a network of which it is.
    "again: Requested .* `Lambda` .*; in place of a Lambda layer write what it ": lambda: through(
        layers.Lambda(lambda x: x / 255)
    ),
    "locate class 'Unregistered'; .*with @keras.saving.register_keras_serializable": lambda: (
        through(Unregistered(2.0))
    ),
    "again: Could not interpret .*identifier; ": lambda: through(layers.Dense(2, lambda x: x)),
    "must override .get_config.* to be serializable; ": lambda: through(
        Times(np.ones(1))  # type: ignore[arg-type] # on purpose
    ),
    "gives other probabilities once it is saved and loaded; ": lambda: through(Forgetful()),
    r"build must return keras.Model\(inputs, outputs\) .* returns Subclass; ": Subclass,
    r"takes and gives \(8, 4, 4, 1\) and \(8, 3\); ": lambda: through(batch_size=8),
    r"and \(None, 2\); .* give \(None, 4, 4, 1\) and \(None, 3\): images from ": lambda: through(
        last=layers.Dense(2, "softmax")
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_networks_that_cannot(words: str) -> None:
    with pytest.raises(StageError, match=f"^stages/model/network.py: .*{words}") as raised:
        model_file.check(REFUSED[words](), SHAPE, 3)
    assert len(str(raised.value)) < 500


OF_A_USER = """
import keras
from keras import layers


@keras.saving.register_keras_serializable()
class Scale(layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor


def build(image_shape, classes, momentum=0.99):
    base = keras.Sequential([keras.Input(image_shape), layers.Conv2D(4, 3)], name="base")
    base.load_weights("data/pretrained.weights.h5")
    base.trainable = False
    norm, last = layers.BatchNormalization(), layers.Dense(classes, "softmax", dtype="float32")
    return keras.Sequential([Scale(1 / 255), base, norm, layers.Flatten(), last])
"""
DOWNLOAD = "keras.applications.MobileNetV2((32, 32, 3), include_top=False)"


def test_own_layers_and_pretrained_weights_work_through_all_stages(project: Project) -> None:
    base = keras.Sequential([keras.Input((12, 12, 1)), layers.Conv2D(4, 3)])
    base.save_weights(project.path / "data/pretrained.weights.h5")
    project.dvc("add", "data/pretrained.weights.h5")
    pipeline = project.path / "dvc.yaml"
    before, train, after = pipeline.read_text().partition("    cmd: python -m stages.train\n")
    deps = "    deps:\n"
    after = after.replace(deps, f"{deps}    - data/pretrained.weights.h5\n", 1)
    pipeline.write_text(before + train + after)
    network = project.path / "stages/model/network.py"
    network.write_text(OF_A_USER)
    assert "test accuracy" in project.dvc("repro", "evaluate")
    with zipfile.ZipFile(project.path / "data/model/model.keras") as archive:
        assert b"Scale" in archive.read("config.json")
        archive.extract("model.weights.h5", project.path)
    with h5py.File(project.path / "model.weights.h5") as file:
        kept = file["layers/sequential/layers/conv2d/vars/0"][()]
    np.testing.assert_array_equal(kept, base.get_weights()[0])

    network.write_text(OF_A_USER.replace("    base.load", f"    {DOWNLOAD}\n    base.load"))
    assert "error: stages/model/network.py: would download weights, and no commit would say " in (
        project.stage("train", status=1)
    )
