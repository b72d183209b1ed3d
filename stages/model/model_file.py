"""The model file: a .keras archive that has the same bytes whenever it holds the same model."""

import json
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np

from stages.common.errors import StageError
from stages.model import network

# What zipfile raises, depending on where a file is damaged.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
_NETWORK = "stages/model/network.py"


def save(model: keras.Model, path: Path) -> None:
    """Save `model` with its optimizer, in a form that stock Keras loads.

    Keras puts the time, memory addresses (`shared_object_id`) and the archive's own dates into
    the file: they are replaced by constants.
    """
    model.save(path)
    _repack(path)


def load(path: Path) -> keras.Model:
    """Load a saved model, not compiled; raise StageError that names the file if it cannot be.

    Layers of the user's own are those that `network` registers: nothing else in the file may
    bring code.
    """
    if not path.is_file():
        raise StageError(f"{path}: not found; run `dvc repro train`")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                archive.read(name)  # checks its CRC, which Keras does not for every part
    except _DAMAGED as error:
        raise StageError(
            f"{path}: is damaged: {error}; run `make verify`, then `dvc repro`"
        ) from None
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise StageError(
            f"{path}: not a model that Keras {keras.__version__} can load with the layers of "
            f"{network.__name__}: {_cause(error)}; run `dvc repro --force train`"
        ) from None


def check(model: keras.Model, image_shape: tuple[int, int, int], classes: int) -> None:
    """Raise StageError unless `model` fits the data and gives the same after saving and loading.

    A Sequential without an Input is built; build it in the scope of the strategy that trains it.
    """
    # A class of the user's own could compute what neither the file nor `fused` knows.
    if type(model).__module__.partition(".")[0] != "keras":
        raise StageError(
            f"{_NETWORK}: build must return keras.Model(inputs, outputs) or keras.Sequential, but "
            f"returns {type(model).__name__}; put code of your own into a layer"
        )
    if not model.built:
        model.build((None, *image_shape))
    found = [tuple(x.shape) for x in (*model.inputs, *model.outputs)]
    wanted = [(None, *image_shape), (None, classes)]
    if found != wanted:
        raise StageError(
            f"{_NETWORK}: the network takes and gives {_shapes(found)}; it must take and give "
            f"{_shapes(wanted)}: images from keras.Input(image_shape), with no batch size, and a "
            "probability for each class"
        )
    # From bright to dark: probabilities of 0 and 1 alone would hide a difference.
    noise = np.random.default_rng(0).integers(0, 256, (8, *image_shape), np.uint8)
    noise >>= np.arange(8, dtype=np.uint8)[:, None, None, None]
    outputs = model(noise, training=False).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            model.save(path)
            loaded = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise StageError(
                f"{_NETWORK}: the trained network could not be loaded again: {_cause(error)}; in "
                "place of a Lambda layer write what it computes, such as `x = x / 255`; decorate "
                "your own classes and functions with @keras.saving.register_keras_serializable()"
            ) from None
    if not np.allclose(loaded(noise, training=False), outputs, atol=1e-5):
        raise StageError(
            f"{_NETWORK}: the network gives other probabilities once it is saved and loaded; a "
            "layer of your own must make its weights with add_weight, and give all its settings in "
            "get_config"
        )


def _cause(error: Exception) -> str:
    """Return the first sentence of the innermost reason that Keras gives."""
    reason = str(error).rpartition("Exception encountered: ")[2] or type(error).__name__
    return re.split(r"\.\s|: \{|\.$", " ".join(reason.split()))[0]


def _shapes(shapes: list[tuple[int | None, ...]]) -> str:
    return " and ".join(map(str, shapes))


def _repack(path: Path) -> None:
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in sorted(source.namelist())}
    metadata = json.loads(parts["metadata.json"]) | {"date_saved": "1980-01-01@00:00:00"}
    parts["metadata.json"] = json.dumps(metadata).encode()
    numbers: dict[bytes, int] = {}  # for memory addresses, in the order of their first appearance
    parts["config.json"] = re.sub(
        rb'(?<="shared_object_id": )\d+',
        lambda address: b"%d" % numbers.setdefault(address[0], len(numbers)),
        parts["config.json"],
    )
    with zipfile.ZipFile(path, "w") as target:
        for name, content in parts.items():
            target.writestr(zipfile.ZipInfo(name), content)  # of 1980-01-01 unless told otherwise
