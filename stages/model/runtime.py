"""TensorFlow started quietly, and so that its arithmetic repeats to the bit."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

# Keras imports these where they are installed, for layers and functions that are not used here.
UNUSED = ("PIL", "matplotlib", "pandas", "scipy", "sklearn")

Instructions: TypeAlias = Literal["native", "portable"]


def start(seed: int, threads: int, instructions: Instructions) -> None:
    """Import TensorFlow and Keras and pin everything that decides the bits of a result.

    `seed` is for the generators of Python, NumPy and Keras. The bits depend on `threads`, the
    number of threads that share an operation, and not on the number of cores. With "portable"
    `instructions` the bits are the same on all x86-64 CPUs that have AVX.

    Call this once, before anything else imports TensorFlow.
    """
    # The default depends on the CPU, so another CPU would use other kernels.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    # TensorFlow's own kernels need no limit: they are compiled for AVX. With AVX2, oneDNN cuts
    # large matrix products by the size of the caches, and so sums differ from CPU to CPU.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "ALL" if instructions == "native" else "AVX"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = os.devnull  # no keras.json, so that Keras has its own defaults
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        with _faster_import():
            import keras
            import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # Operations that run side by side each sum in their own order, so no bit changes.
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed on file descriptor 2.

    TensorFlow's C++ code logs there before it reads its log level. What Python raises is shown
    later.
    """
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def _faster_import() -> Iterator[None]:
    """Import Keras and TensorFlow in 1.9 s instead of 4.3 s, with 90 MB less.

    Half of that is due to hiding the packages in UNUSED, half to collecting no garbage: imports
    make none, but Python searches their many objects for it, during the imports and at exit.
    """
    hidden = [package for package in UNUSED if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: not found
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for package in hidden:
            del sys.modules[package]
