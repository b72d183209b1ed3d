"""What the user's environment holds neither reaches the results nor makes a library speak."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, STAGES, Project, contents

# Each of these changed bits or ended a stage in a traceback.
HOSTILE = {
    "FREETYPE_PROPERTIES": "truetype:interpreter-version=35",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "MPLBACKEND": "bogus",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "PYTHONWARNINGS": "error",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "TQDM_MININTERVAL": "abc",
}
HARMLESS = {
    "CUDA_VISIBLE_DEVICES": "0",
    "HTTPS_PROXY": "http://proxy.example.com:3128",
    "ONEDNN_VERBOSE": "0",
    "OPENBLAS_CORETYPE": "Haswell",
    "SLURM_PROCID": "1",
    "TF_CONFIG": "{}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_GPU_ALLOCATOR": "cuda_malloc_async",
}


def test_only_a_stage_drops_variables_and_only_those_that_libraries_read() -> None:
    code = "import os, sys; sys.argv[0] = {!r}; import stages; print(*os.environ)"
    env = os.environ | HOSTILE | HARMLESS | {"PYTHONPATH": str(ROOT)}
    names = {
        argument: set(
            subprocess.run(
                [sys.executable, "-c", code.format(argument)],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
        )
        for argument in ("-m", "notebook.py")
    }
    assert names["notebook.py"] >= {*HOSTILE, *HARMLESS}
    assert names["-m"] >= {*HARMLESS, "PATH"}
    # Python itself has read its own by then.
    assert names["-m"] & {*HOSTILE} == {"PYTHONWARNINGS"}


@pytest.mark.slow
def test_a_hostile_environment_changes_no_bit_and_makes_no_library_speak(
    finished: Project, tmp_path: Path
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    settings = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first"}
    for name, text in {
        ".keras/keras.json": json.dumps(settings | {"backend": "torch"}),
        ".config/matplotlib/matplotlibrc": "font.size: 20\nno.such.key: 1\n\xff",
        ".cache": "a file, so that libraries have no place for theirs",
        "site/sitecustomize.py": "import os\nos.environ['TF_DISABLE_MKL'] = '1'\n",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="latin-1")
    temporary.mkdir()
    env = HOSTILE | {"HOME": str(home), "PYTHONPATH": str(home / "site")}
    env |= {"TMPDIR": str(temporary), "PYTHONIOENCODING": "ascii"}
    env |= {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "LANG": "tr_TR.UTF-8"}
    catalogue = finished.path / "data/datasets.yaml"
    text = catalogue.read_text(encoding="utf-8")
    catalogue.write_text(text.replace("title: Small", "title: Kuzushi-七"), encoding="utf-8")
    finished.set_params({"evaluate": {"batch_size": 7}})  # the last batch is smaller
    before = contents(finished)
    for stage in STAGES:
        result = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=finished.path,
            env=finished.env | env,
            capture_output=True,
            text=True,
            check=False,
            umask=0o027,
        )
        assert (result.returncode, result.stderr) == (0, ""), stage
        assert result.stdout.count("\n") == 1, stage
        if stage == "fetch":
            assert result.stdout == "fetched Kuzushi-\\u4e03 from data/mirror/small/\n"
    assert contents(finished) == before
    assert list(temporary.iterdir()) == []
    for name in ("metrics/metrics.json", "metrics/figures/match.png"):
        assert (finished.path / name).stat().st_mode & 0o777 == 0o640
