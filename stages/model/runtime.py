"""TensorFlow started quietly, and so that its arithmetic repeats to the bit."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

CPUINFO = Path("/proc/cpuinfo")

# Keras imports these where they are installed, for layers and functions that nothing here uses.
UNUSED = ("PIL", "matplotlib", "pandas", "scipy", "sklearn")


Instructions: TypeAlias = Literal["native", "avx2"]


def start(seed: int, threads: int, instructions: Instructions) -> None:
    """Import TensorFlow and Keras and pin everything that decides the bits of a result.

    `seed` feeds Python's, NumPy's and Keras' generators; `threads` splits each operation. Both
    count, the cores present do not. `instructions` are those of the CPU that are used: with
    "avx2" the bits are the same on all x86 CPUs that have them. To be called once, before anything
    else imports TensorFlow.
    """
    # Its default follows the CPU's features, so that another CPU would take other kernels.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    # Only oneDNN has kernels for more: TensorFlow's own are compiled for AVX.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "ALL" if instructions == "native" else "AVX2"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _quiet():
        with _hiding(UNUSED), _without_garbage_collection():
            import keras
            import tensorflow as tf

        # Where ~/.keras/keras.json says otherwise, it would be another network.
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # Whole operations side by side: each sums as it did alone, so that no bit changes.
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.list_logical_devices()


def has_fast_bfloat16() -> bool:
    """Whether the device at hand computes in bfloat16 itself; to be called after `start`.

    A GPU is taken to. A CPU says so in Linux' /proc/cpuinfo; without that file the answer is no.
    Intel's AVX512 does not count: it has the instructions, but takes longer than in float32
    (benchmarks/results/compare.md).
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
def _hiding(packages: Iterable[str]) -> Iterator[None]:
    """Let imports of `packages` fail in the block, except of those imported before.

    That saves a third of the time that importing Keras takes, and 125 MB.
    """
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: not found
    try:
        yield
    finally:
        for package in hidden:
            sys.modules.pop(package, None)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Make objects in the block that are never looked at as garbage.

    Imports make hardly any; looking for it takes a tenth of their time, and as much at exit.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what is printed on file descriptor 2; show it if the block fails.

    TensorFlow's C++ code logs there before any of its log levels is in force.
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
