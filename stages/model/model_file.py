"""The model file: a .keras archive that has the same bytes whenever it holds the same model."""

import json
import re
import tempfile
import zipfile
from pathlib import Path

import keras

from stages.common.errors import StageError

_DATE = "1980-01-01"  # the earliest that a ZIP archive can say


def save(model: keras.Model, path: Path) -> None:
    """Save `model` with its optimizer, in a form that stock Keras loads.

    Keras puts the time, memory addresses (`shared_object_id`) and the archive's own dates into
    the file: they are replaced by constants.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keras-", suffix=".tmp") as folder:
        original = Path(folder, "model.keras")
        model.save(original)
        _repack(original, path)


def load(path: Path) -> keras.Model:
    """Load a saved model; raise StageError that names the file if it is missing or damaged."""
    if not path.is_file():
        raise StageError(f"{path}: not found; run `dvc repro train`")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                archive.read(name)  # checks its CRC, which Keras does not for every part
        # The network is of stock layers: nothing in the file may bring code of its own.
        return keras.models.load_model(path, safe_mode=True)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError) as error:
        raise StageError(
            f"{path}: not a model that Keras {keras.__version__} can load: {error}; "
            "run `make verify`, then `dvc repro`"
        ) from None


def _repack(original: Path, path: Path) -> None:
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w") as target:
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == "metadata.json":
                metadata = json.loads(content) | {"date_saved": f"{_DATE}@00:00:00"}
                content = json.dumps(metadata).encode()
            elif name == "config.json":
                content = _renumber(content.decode()).encode()
            year, month, day = map(int, _DATE.split("-"))
            target.writestr(zipfile.ZipInfo(name, (year, month, day, 0, 0, 0)), content)


def _renumber(config: str) -> str:
    """Replace memory addresses by numbers in the order of their first appearance."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return match[1] + str(numbers.setdefault(match[2], len(numbers)))

    return re.sub(r'("shared_object_id": )(\d+)', number, config)
