"""TensorFlow's start: fast, without a word, and what the CPU is good at."""

import gc
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

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


def test_tensorflows_noise_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with runtime.quiet():
        os.write(2, b"noise\n")
    assert capfd.readouterr().err == ""


def test_tensorflows_noise_shows_if_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with runtime.quiet():
            os.write(2, b"reason\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert capfd.readouterr().err == "reason\n"


@pytest.mark.parametrize(
    ("cpuinfo", "gpus", "fast"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: avx2 avx512f avx512_bf16 fma\n", [], True),
        ("vendor_id\t: GenuineIntel\nflags\t: avx2 avx512f avx512_bf16 fma\n", [], False),
        ("vendor_id\t: GenuineIntel\nflags\t: avx512_bf16 amx_bf16 fma\n", [], True),
        ("flags\t: avx2 avx512f fma\n", [], False),
        ("flags\t: avx2\n", ["a GPU"], True),
        (None, [], False),
    ],
)
def test_who_computes_in_bfloat16(
    cpuinfo: str | None,
    gpus: list[str],
    fast: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: Callable[[str], list[str]] = lambda kind: gpus if kind == "GPU" else []  # noqa: E731
    monkeypatch.setattr(tf.config, "list_physical_devices", devices)
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        runtime.CPUINFO.write_text(cpuinfo)
    assert runtime.has_fast_bfloat16() is fast
