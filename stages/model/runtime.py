"""TensorFlow started quietly, and so that its arithmetic repeats to the bit."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

CPUINFO = Path("/proc/cpuinfo")

# Keras imports these where they are installed, for layers and functions that are not used here.
UNUSED = ("PIL", "matplotlib", "pandas", "scipy", "sklearn")

Instructions: TypeAlias = Literal["native", "avx2"]


def start(seed: int, threads: int, instructions: Instructions) -> None:
    """Import TensorFlow and Keras and pin everything that decides the bits of a result.

    `seed` is for the generators of Python, NumPy and Keras. The bits depend on `threads`, the
    number of threads that share an operation, and not on the number of cores. `instructions` limits
    those that the CPU may use: with "avx2" the bits are the same on all x86 CPUs that have them.

    Call this once, before anything else imports TensorFlow.
    """
    # The default depends on the CPU, so another CPU would use other kernels.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    # TensorFlow's own kernels need no limit: they are compiled for AVX.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "ALL" if instructions == "native" else "AVX2"
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


def has_fast_bfloat16() -> bool:
    """Return whether training in bfloat16 is faster than in float32 here; call `start` first.

    True on a GPU. On a CPU, Linux' /proc/cpuinfo decides; without that file the answer is False.
    Intel's avx512_bf16 alone does not count: a Xeon with it took 1.4 times as long as in float32.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return True
    try:
        words = set(CPUINFO.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "bf16"}) or {"AuthenticAMD", "avx512_bf16"} <= words


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is printed on file descriptor 2; print it if the block fails.

    TensorFlow's C++ code logs there before it reads its log level.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            sys.stderr.flush()
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
