"""The model file: a .keras archive that has the same bytes whenever it holds the same model."""

import json
import re
import zipfile
import zlib
from pathlib import Path

import keras

from stages.common.errors import StageError
from stages.model import network

# What zipfile raises, depending on where a file is damaged.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


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
            f"{network.__name__}: {cause(error)}; run `dvc repro --force train`"
        ) from None


def cause(error: Exception) -> str:
    """Return the first sentence of the innermost reason that Keras gives."""
    reason = str(error).rpartition("Exception encountered: ")[2] or type(error).__name__
    return re.split(r"\.\s|: \{|\.$", " ".join(reason.split()))[0]


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
