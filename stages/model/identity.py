"""Hashes of what decides the result of a training: its code, parameters and data."""

import hashlib
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel

import stages
from stages.common import paths


def versions(parameters: BaseModel) -> dict[str, str]:
    """Return the SHA-256 in hexadecimal of the code, the parameters and the tensors, by name.

    `checkpoint_every` is left out, because it changes no result.
    """
    libraries = f"{tf.__version__} {keras.__version__} {np.__version__}"
    texts = {
        "code": "\n".join([libraries, *(file.read_text("utf-8") for file in _imported())]),
        "parameters": parameters.model_dump_json(exclude={"checkpoint_every"}),
        "tensors": paths.MANIFEST.read_text("utf-8"),  # which has the hash of each tensor
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _imported() -> list[Path]:
    """Return the files of this project that are in use."""
    folder = Path(stages.__file__).parent
    files = {Path(getattr(module, "__file__", None) or "") for module in sys.modules.values()}
    return sorted(file for file in files if file.is_relative_to(folder))
