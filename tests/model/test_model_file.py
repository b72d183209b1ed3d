"""The model file: the same bytes for the same model, and stock Keras loads it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Project

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


def test_two_processes_save_the_same_bytes(saved: Path) -> None:
    assert (saved / "one.keras").read_bytes() == (saved / "two.keras").read_bytes()


def test_no_time_no_address_and_nothing_left_behind(saved: Path) -> None:
    with zipfile.ZipFile(saved / "one.keras") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980-01-01@00:00:00" in archive.read("metadata.json")
        assert b'"shared_object_id": 0' in archive.read("config.json")
    assert len(list(saved.iterdir())) == 3


def test_stock_keras_loads_it_with_its_optimizer(saved: Path) -> None:
    import keras

    model = keras.models.load_model(saved / "one.keras")
    x = np.arange(160, dtype=np.uint8).reshape(10, 4, 4, 1)
    np.testing.assert_allclose(np.asarray(model(x)), np.load(saved / "y.npy"), rtol=1e-6)
    assert int(model.optimizer.iterations) == 1
    assert float(model.optimizer.learning_rate) == 0.5
    moments = [np.asarray(v) for v in model.optimizer.variables if "momentum" in v.path]
    assert moments
    assert any(moment.any() for moment in moments)


def test_the_pipelines_model_is_stock_keras(reproduced: Project) -> None:
    import keras

    model = keras.models.load_model(reproduced.path / "data/model/model.keras")
    assert model.output_shape == (None, 3)
