"""One device, two of one machine, two machines: the train stage on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tensorflow as tf
from folder import OUTPUTS, Folder
from remotes import free_ports

from stages.common.errors import StageError
from stages.model import devices
from stages.model.devices import Devices

# Runs the stage with callbacks of Keras' that write beside it.
CALLBACKS = """
import json, os, sys
sys.argv[0] = "-m"
from stages import train
from stages.common import errors
from stages.model import runtime
from benchmarks import two_devices
prepare = two_devices.start if sys.argv[1] == "two" else runtime.start
def start(*settings):
    prepare(*settings)
    import keras
    from stages.model import callbacks
    told = open("told.json", "w")
    tell = lambda *place: print(json.dumps(place), file=told, flush=True)
    kinds = keras.callbacks
    callbacks.callbacks = lambda: [
        kinds.LambdaCallback(on_epoch_end=tell),
        kinds.EarlyStopping("val_loss", patience=1, min_delta=1e6, restore_best_weights=True),
        kinds.ModelCheckpoint("{epoch}.keras"),
        kinds.CSVLogger("log.csv"),
        kinds.TerminateOnNaN(),
    ]
runtime.start = start
errors.run(train.main)
"""


def worker(folder: Folder, own: int, addresses: list[str]) -> subprocess.Popen[str]:
    """Start the stage as one of the workers."""
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": own}}
    return subprocess.Popen(
        folder.command,
        cwd=folder.path,
        env=folder.environment | {"TF_CONFIG": json.dumps(config)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def loopback(host: str = "127.0.0.1") -> list[str]:
    return [f"{host}:{port}" for port in free_ports(2)]


def errors_of(printed: str) -> list[str]:
    """Return what a worker complained of, without the line that says whom it waits for."""
    return [line for line in printed.splitlines() if line and not line.startswith("train: worker ")]


def run_both(first: Folder, second: Folder) -> tuple[list[int], list[tuple[str, str]]]:
    """Run the stage as two workers; return the statuses, and what each printed and complained."""
    addresses = loopback()
    running = [worker(first, 0, addresses), worker(second, 1, addresses)]
    try:
        printed = [process.communicate(timeout=150) for process in running]
        return [process.returncode for process in running], printed
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
def test_one_device_two_and_two_workers(tmp_path: Path) -> None:
    folders = {name: Folder(tmp_path / name) for name in ("one", "two", "first", "second")}
    strategies = ("single", "mirrored", "multi_worker", "multi_worker")
    for (name, folder), strategy in zip(folders.items(), strategies, strict=True):
        folder.write_tensors(range(100))
        folder.write_params(strategy=strategy, epochs=4)
        folder.command = [sys.executable, "-c", CALLBACKS, name]
    for name in ("one", "two"):
        result = folders[name].run()
        assert (result.returncode, result.stderr) == (0, "")
    statuses, printed = run_both(folders["first"], folders["second"])
    assert statuses == [0, 0]
    assert printed[0][0].startswith("training accuracy")
    assert printed[1][0] == "worker 1 of 2: trained on 200 images\n"
    assert errors_of(printed[0][1]) == errors_of(printed[1][1]) == []

    # Two devices and two workers give the same bits.
    one, two, first, second = (folder.outputs() for folder in folders.values())
    assert two.keys() > set(OUTPUTS)
    assert {name: two[name] for name in OUTPUTS} == {name: first[name] for name in OUTPUTS}
    # Only the first worker writes, but for what callbacks of the user's write.
    assert {*second} == {"1.keras", "2.keras", "log.csv", "told.json"}

    # All callbacks are told the same, and it stops in the second epoch.
    assert first["told.json"] == second["told.json"] == two["told.json"]
    told = [json.loads(line) for line in (folders["one"].path / "told.json").open()]
    assert [epoch for epoch, _ in told] == [0, 1]
    assert {"loss", "val_loss", "val_accuracy"} <= told[0][1].keys()
    for folder in folders.values():
        assert len(pd.read_csv(folder.path / "log.csv")) == 2

    # What is saved is the model whose figures are told: the first, for no later one was better.
    for name in ("one", "two", "first"):
        folder = folders[name]
        figures = json.loads((folder.path / OUTPUTS[2]).read_text())["validation"]
        history = pd.read_csv(folder.path / OUTPUTS[1])
        best = history[history["epoch"] == 1].iloc[-1]
        assert figures["loss"] == pytest.approx(best["validation_loss"], rel=1e-5)
        assert len(history["epoch"].unique()) == 2
        found = folder.evaluate()
        assert found["cross_entropy"] == pytest.approx(figures["loss"], rel=1e-4)
        assert found["accuracy"] == pytest.approx(figures["accuracy"], abs=1e-6)

    # One device sees the same images at the same rate, but each normalises its half of a batch.
    same = ["step", "epoch", "images_seen", "learning_rate"]
    sees_one, sees_two = (pd.read_csv(folders[n].path / OUTPUTS[1])[same] for n in ("one", "two"))
    pd.testing.assert_frame_equal(sees_one, sees_two)
    assert one[OUTPUTS[0]] != two[OUTPUTS[0]]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_worker_that_dies(tmp_path: Path, victim: int, number: signal.Signals) -> None:
    folder = Folder(tmp_path)
    folder.write_tensors(range(60))
    folder.write_params(strategy="multi_worker", epochs=100_000)
    addresses = loopback()
    running = [worker(folder, own, addresses) for own in (0, 1)]
    try:
        history = tmp_path / OUTPUTS[1]
        deadline = time.monotonic() + 120
        while not history.exists() or len(history.read_text().splitlines()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running[victim].send_signal(number)
        survivor = running[1 - victim]
        _, printed = survivor.communicate(timeout=60)
        assert survivor.returncode == 1
        assert errors_of(printed) == [
            f"error: worker {1 - victim} of 2 lost another worker; "
            "see its output, then start all workers again"
        ]
        if number == signal.SIGTERM:
            _, printed = running[victim].communicate(timeout=60)
            assert errors_of(printed) == ["error: stopped by SIGTERM; run it again to complete"]
            assert running[victim].returncode == 128 + number
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert set(folder.outputs()) == {OUTPUTS[1]}  # the history, as far as it came


@pytest.mark.slow
def test_workers_that_differ_all_end(tmp_path: Path) -> None:
    folder, other = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    folder.write_params(strategy="multi_worker")
    other.write_params(strategy="multi_worker", learning_rate=0.02)
    statuses, printed = run_both(folder, other)
    assert statuses == [1, 1]
    for own, (_, complaint) in enumerate(printed):
        assert errors_of(complaint) == [
            f"error: worker {own} and others differ in their parameters; "
            "give all workers the same commit, parameters, data and data/checkpoints"
        ]
    assert folder.outputs() == other.outputs() == {}


@pytest.mark.slow
def test_a_worker_that_does_not_come_is_named_before_the_wait_is_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.limits["worker_timeout"] = 2
    folder.write_params(strategy="multi_worker")
    addresses = loopback()
    with worker(folder, 1, addresses) as process:
        _, printed = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGALRM
    assert printed == (
        f"train: worker 1 ({addresses[1]}) waits for worker 0 ({addresses[0]}). If one has not "
        "come in 2 s (limits.worker_timeout in params.yaml), this ends by SIGALRM.\n"
    )
    assert folder.outputs() == {}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the strategies that are made, on a machine with three devices."""
    made: list[int] = []

    class Mirrored:
        def __init__(self, names: list[str]) -> None:
            made.append(len(names))
            self.num_replicas_in_sync = len(names)

    three = [tf.config.LogicalDevice(f"GPU:{number}", "GPU") for number in range(3)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: three)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", Mirrored)
    return made


def test_auto_takes_as_many_devices_as_share_a_batch(sizes: list[int]) -> None:
    for batch_size in (64, 6, 5):
        devices.start("auto", batch_size, timeout=1)
    devices.start("mirrored", 6, timeout=1)
    devices.start("single", 5, timeout=1)
    assert sizes == [2, 3, 3]
    with pytest.raises(StageError) as caught:
        devices.start("mirrored", 64, timeout=1)
    assert str(caught.value) == (
        "params.yaml: train.batch_size is 64, which 3 devices cannot share equally; "
        "make it a multiple of 3, or set train.strategy to single"
    )


@pytest.mark.parametrize(
    "kind",
    [
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnavailableError,
    ],
)
def test_a_lost_worker_is_one_line_and_alone_it_is_a_bug(kind: type[tf.errors.OpError]) -> None:
    lost = kind(None, None, "the connection was closed")
    with pytest.raises(StageError) as caught, Devices(None, worker=1, workers=2).together():
        raise lost
    assert str(caught.value) == (
        "worker 1 of 2 lost another worker; see its output, then start all workers again"
    )
    with pytest.raises(kind), Devices(None).together():
        raise lost


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "own"),
    [
        ({"worker": ["a:1", "b:2"]}, "worker", 0, 0),
        ({"worker": ["a:1", "b:2"]}, "worker", 1, 1),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "chief", 0, 0),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "worker", 0, 1),
    ],
)
def test_tf_config_names_the_workers(cluster: Any, kind: str, index: int, own: int) -> None:
    config = {"cluster": cluster, "task": {"type": kind, "index": index}, "environment": "cloud"}
    assert devices._read_config(json.dumps(config)) == (["a:1", "b:2"], own)


@pytest.mark.parametrize(
    ("cluster", "task", "words"),
    [
        ({}, None, "KeyError: 'task'"),
        ({"worker": ["a:1"]}, ("ps", 0), "KeyError: 'ps'"),
        ({"worker": ["a:1"]}, ("worker", 1), "IndexError"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 1), "IndexError"),
        ({"worker": ["a"]}, ("worker", 0), "'a' must be HOST:PORT"),
        ({"worker": ["::1:5"]}, ("worker", 0), "'::1:5' must be HOST:PORT"),
        (["a:1"], ("worker", 0), "AttributeError"),
    ],
)
def test_tf_config_that_is_wrong(cluster: Any, task: Any, words: str) -> None:
    config = {"cluster": cluster}
    if task:
        config["task"] = dict(zip(("type", "index"), task, strict=True))
    with pytest.raises(StageError, match=r"^TF_CONFIG: ") as caught:
        devices._read_config(json.dumps(config))
    assert words in str(caught.value)
    assert "docs/scale.md has an example" in str(caught.value)


def test_tf_config_that_is_no_json_and_neither_tf_config_nor_slurm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StageError, match=r"TF_CONFIG: .*JSON"):
        devices._read_config("{")
    for name in ("TF_CONFIG", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StageError, match=r"train.strategy is multi_worker, but there is no TF_CO"):
        devices.start("multi_worker", 4, timeout=1)


def set_slurm(
    monkeypatch: pytest.MonkeyPatch, folder: Path, nodes: str, rank: int, node: str, tasks: int
) -> None:
    """Be a task of Slurm's, whose `scontrol` expands any list of nodes to these."""
    scontrol = folder / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show hostnames some[1-9]" ] && echo {nodes}\n')
    scontrol.chmod(0o755)
    for name, value in {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "30012",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": "some[1-9]",
        "SLURMD_NODENAME": node,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "nodes", [["n9", "n10"], ["rack1n1", "rack1n2", "rack2n1"], ["n1-ib", "n2-ib"]]
)
def test_slurm_names_the_workers_in_its_own_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: list[str]
) -> None:
    for rank, node in enumerate(nodes):
        set_slurm(monkeypatch, tmp_path, " ".join(nodes), rank, node, len(nodes))
        expected = [f"{name}:20012" for name in nodes]
        assert devices._read_config(devices._ask_slurm()) == (expected, rank)


@pytest.mark.parametrize(("rank", "node", "tasks"), [(0, "n1", 4), (1, "n1", 2), (1, "n1", 3)])
def test_slurm_with_other_than_a_task_a_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int, node: str, tasks: int
) -> None:
    set_slurm(monkeypatch, tmp_path, "n1 n2", rank, node, tasks)
    with pytest.raises(StageError) as caught:
        devices._ask_slurm()
    assert str(caught.value) == (
        f"Slurm runs {tasks} tasks on n1 n2, and task {rank} on {node}: it must be one task a "
        "node, in their order; use srun --ntasks-per-node=1, without --distribution"
    )
