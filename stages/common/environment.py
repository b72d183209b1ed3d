"""The process of a stage, shielded from settings that would change its results or break it."""

import io
import logging
import os
import sys
import warnings

# Variables that libraries read: they change the bits of a result, or end in a traceback.
DROPPED = (
    *("CUBLAS_", "CUDNN_", "DNNL_", "FREETYPE_", "KERAS_", "KMP_", "MATPLOTLIB", "MKL_", "MPL"),
    *("NPY_", "NVIDIA_TF32_", "OMP_", "ONEDNN_", "TF_", "TQDM_", "XLA_"),
)
# Of these, the ones that only say where to run and what to log.
KEPT = {"ONEDNN_VERBOSE", "TF_CONFIG", "TF_CPP_MIN_LOG_LEVEL", "TF_GPU_ALLOCATOR"}


def isolate() -> None:
    """Drop settings of the user's that libraries would read, and silence their warnings.

    To be called before any library is imported. What a library raises is not silenced.
    """
    for name in os.environ:
        if name.startswith(DROPPED) and name not in KEPT:
            del os.environ[name]
    os.environ["MATPLOTLIBRC"] = os.devnull  # read instead of the user's
    warnings.simplefilter("ignore")  # also where PYTHONWARNINGS says "error"
    logging.disable(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have letters that ASCII lacks
            stream.reconfigure(errors="backslashreplace")
