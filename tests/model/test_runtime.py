"""TensorFlow's start: fast, without a word, and with all that decides the bits pinned."""

import contextlib
import gc
import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from project import ROOT

from stages.model import runtime


def test_unused_packages_are_hidden_from_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "UNUSED", ("this", "os"))
    with runtime._faster_import():
        assert not gc.isenabled()
        assert importlib.import_module("os") is os  # imported before, so it stays
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("this")
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert "this" not in sys.modules
    assert sys.modules["os"] is os
    gc.unfreeze()


def test_tensorflows_noise_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ImportError), runtime.quiet():
        os.write(2, b"noise\n")
        raise ImportError  # after which all is heard again
    os.write(2, b"what comes after\n")
    assert capfd.readouterr().err == "what comes after\n"


# Prints what decides the bits, after a start with seed 3 and 5 threads.
PRINT_SETTINGS = """
import json, random
from stages.model import runtime
runtime.start(3, 5, "portable")
import keras, numpy as np, os, tensorflow as tf
from tensorflow.python.framework import config
print(json.dumps({
    "python": random.random(),
    "numpy": np.random.random(),
    "threads": [
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    ],
    "deterministic": config.is_op_determinism_enabled(),
    "keras": [keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()],
    "onednn": [os.environ["TF_ENABLE_ONEDNN_OPTS"], os.environ["ONEDNN_MAX_CPU_ISA"]],
}))
"""


@pytest.mark.slow
def test_a_start_pins_what_decides_the_bits_whatever_the_environment_says(tmp_path: Path) -> None:
    settings = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings | {"backend": "torch"}))
    env = {
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(tmp_path),
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_NUM_INTRAOP_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, "-c", PRINT_SETTINGS],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == {
        "python": random.Random(3).random(),
        "numpy": np.random.RandomState(3).random_sample(),
        "threads": [5, 5],
        "deterministic": True,
        "keras": ["float32", 1e-7, "channels_last"],
        "onednn": ["1", "AVX"],
    }
    assert result.stderr == ""
