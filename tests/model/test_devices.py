"""One device, two of one machine, two machines: the train stage on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT
from folder import OUTPUTS, Folder
from remotes import free_ports

from stages.common.errors import StageError
from stages.model import devices
from stages.model.devices import Devices


def two_devices(folder: Folder) -> None:
    folder.command = [sys.executable, "-m", "benchmarks.two_devices"]


def worker(folder: Folder, own: int, ports: list[int]) -> subprocess.Popen[str]:
    """Start the stage as one of two workers."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": own}}
    return subprocess.Popen(
        folder.command,
        cwd=folder.path,
        env=folder.environment | {"TF_CONFIG": json.dumps(config)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def changed(*lines: str) -> list[str]:
    """Return the command that runs the stage after lines of Python that change it."""
    start = (
        "import os, sys, time",
        "sys.argv[0] = '-m'",
        "from stages import train",
        "from stages.common import errors",
    )
    return [sys.executable, "-c", "\n".join([*start, *lines, "errors.run(train.main)"])]


def in_a_hurry(folder: Folder, change: str = "pass") -> None:
    """Bound what the stage does after the workers have met to ten seconds, and change it.

    To meet they keep 60 s: on a busy machine, to import TensorFlow takes more than ten.
    """
    folder.limits["worker_timeout"] = 10
    folder.write_params(strategy="multi_worker")
    folder.command = changed(
        "from stages.model import runtime",
        "start_quietly = runtime.start",
        "def start(*settings):",
        "    start_quietly(*settings)",
        "    from stages.model import devices, training, workers",
        "    meet = workers.meet",
        "    workers.meet = lambda found, versions, _: meet(found, versions, timeout=60)",
        f"    {change}",
        "runtime.start = start",
    )


def run_both(first: Folder, second: Folder) -> tuple[list[int], list[tuple[str, str]]]:
    """Run the stage as two workers; return the statuses, and what each printed and complained."""
    ports = free_ports(2)
    running = [worker(first, 0, ports), worker(second, 1, ports)]
    try:
        printed = [process.communicate(timeout=100) for process in running]
        return [process.returncode for process in running], printed
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """Folders after the same training by one device, two devices, and two workers."""
    folders = {}
    for name, strategy in (("one", "single"), ("two", "mirrored"), ("workers", "multi_worker")):
        folders[name] = folder = Folder(tmp_path_factory.mktemp(name))
        folder.write_tensors(range(420))
        folder.write_params(strategy=strategy, epochs=2)
    for name in ("one", "two"):
        if name == "two":
            two_devices(folders[name])
        result = folders[name].run()
        assert (result.returncode, result.stderr) == (0, "")
    second = Folder(tmp_path_factory.mktemp("second"))
    second.write_tensors(range(420))
    second.write_params(strategy="multi_worker", epochs=2)
    statuses, printed = run_both(folders["workers"], second)
    assert statuses == [0, 0]
    assert printed[0][0].startswith("training accuracy")
    assert printed[1] == ("worker 1 of 2: trained on 840 images\n", "")
    assert second.outputs() == {}  # only the first worker writes
    return folders


@pytest.mark.slow
def test_two_devices_and_two_workers_give_the_same_bits(trained: dict[str, Folder]) -> None:
    assert tuple(trained["two"].outputs()) == OUTPUTS
    assert trained["two"].outputs() == trained["workers"].outputs()


@pytest.mark.slow
def test_one_device_sees_the_same_images_at_the_same_rate(trained: dict[str, Folder]) -> None:
    one, two = (pd.read_csv(trained[name].path / OUTPUTS[1]) for name in ("one", "two"))
    same = ["step", "epoch", "images_seen", "learning_rate"]
    pd.testing.assert_frame_equal(one[same], two[same])
    # Not the same bits: each device normalises its own half of a batch.
    assert trained["one"].outputs() != trained["two"].outputs()
    np.testing.assert_allclose(one["loss"].iloc[-3:], two["loss"].iloc[-3:], rtol=0.2)


@pytest.mark.slow
def test_a_batch_that_devices_cannot_share(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    two_devices(folder)
    folder.write_params(batch_size=5)
    result = folder.run()
    assert result.returncode == 1
    assert result.stderr == (
        "error: params.yaml: train.batch_size is 5, which 2 devices cannot share equally; "
        "make it a multiple of 2\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGTERM)],
)
def test_a_worker_that_dies_or_stops(tmp_path: Path, victim: int, number: signal.Signals) -> None:
    folder = Folder(tmp_path)
    folder.write_tensors(range(60))
    folder.write_params(strategy="multi_worker", epochs=100_000)
    folder.command = changed("train.SECONDS_BETWEEN_LINES = 1")
    for name in OUTPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the run before")
    before = folder.outputs()
    ports = free_ports(2)
    running = [worker(folder, own, ports) for own in (0, 1)]
    try:
        assert running[0].stderr
        progress = running[0].stderr.readline()
        assert progress.startswith("train: ")
        running[victim].send_signal(number)
        start = time.monotonic()
        survivor = running[1 - victim]
        _, printed = survivor.communicate(timeout=60)
        assert time.monotonic() - start < 40
        assert survivor.returncode == 1
        (line,) = [line for line in printed.splitlines() if not line.startswith("train: ")]
        assert line == (
            f"error: worker {1 - victim} of 2 lost another worker; "
            "see its output, then start all workers again"
        )
        if number == signal.SIGTERM:
            _, printed = running[victim].communicate(timeout=60)
            assert printed.endswith("error: stopped by SIGTERM; run it again to complete\n")
            assert running[victim].returncode == 128 + number
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert folder.outputs() == before


@pytest.mark.slow
def test_a_worker_that_dies_between_the_meeting_and_the_connection(tmp_path: Path) -> None:
    folder, gone = Folder(tmp_path), Folder(tmp_path / "gone")
    in_a_hurry(folder)
    in_a_hurry(gone, "devices._connect = lambda *_: os._exit(3)")
    statuses, printed = run_both(folder, gone)
    assert statuses == [1, 3]
    assert printed[0][1] == (
        "error: worker 0 of 2 lost another worker; see its output, then start all workers again\n"
    )
    assert folder.outputs().keys() == gone.outputs().keys() == set()


@pytest.mark.slow
def test_a_call_that_takes_too_long(tmp_path: Path) -> None:
    folder, stuck = Folder(tmp_path), Folder(tmp_path / "stuck")
    in_a_hurry(folder)
    # The second worker is stopped by its input, while TensorFlow goes on to say that it lives.
    in_a_hurry(stuck, "training.batches = lambda *_: time.sleep(600)")
    statuses, printed = run_both(folder, stuck)
    assert statuses == [1, 1]
    assert printed[0][1].startswith("error: worker 0 of 2 ")
    line = "error: worker 1 of 2 waited 10 s for the others; see what they say, or raise"
    assert line in printed[1][1]


# A network without batch normalisation, trained by plain gradient descent: two devices give what
# one gives, and a loss that is scaled wrongly gives something else, which Adam would make up for.
SHARE = """
import json
from stages.model import runtime
runtime.start(seed=1, threads=1, instructions="native")
import keras
import numpy as np
import tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
from stages.model import devices, training
from stages.model.recipe import Recipe

recipe = Recipe(
    seed=3, epochs=1, batch_size=4, learning_rate=0.1, warmup=0.0, label_smoothing=0.1, shift=1,
    distortion=0.1, precision="float32",
)
images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1), np.uint8)
labels = np.eye(3, dtype=np.uint8)[np.arange(24) % 3]
loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)

def build():
    keras.utils.set_random_seed(1)
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(image)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(3, "softmax", kernel_regularizer="l2", name="digit")(x)
    model = keras.Model(image, x)
    model.compile(keras.optimizers.SGD(0.1, name="sgd"), loss)
    model.optimizer.build(model.trainable_variables)
    return model

def weights(model):
    return [array.tolist() for array in model.get_weights()]

stock = build()
for part, its in training.batches((images, labels), recipe):
    for first in range(0, 24, 4):
        stock.train_on_batch(part[first : first + 4], its[first : first + 4].astype("f4"))
report = {"stock": weights(stock)}
for choice in ("single", "auto"):
    found = devices.start(choice, {}, timeout=1)
    with found.strategy.scope():
        model = build()
    (row,) = training.run(model, (images, labels), (images[:0], labels[:0]), recipe, found)
    count = found.strategy.num_replicas_in_sync
    report[choice] = {"devices": count, "weights": weights(model), "row": row}
print(json.dumps(report))
"""


@pytest.mark.slow
def test_two_devices_share_a_batch_and_train_as_one_does() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHARE], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    report = json.loads(shown)
    single, both = report["single"], report["auto"]
    assert (single["devices"], both["devices"]) == (1, 2)
    assert both["row"][:6] == pytest.approx(single["row"][:6], rel=1e-4)
    for one, two, stock in zip(single["weights"], both["weights"], report["stock"], strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)
        np.testing.assert_allclose(one, stock, atol=1e-5)


def test_alone_nothing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "_give_up", lambda _: pytest.fail("there is nobody to wait for"))
    with Devices(tf.distribute.get_strategy(), timeout=0.01).waiting():
        time.sleep(0.1)
    with pytest.raises(tf.errors.AbortedError), Devices(tf.distribute.get_strategy()).waiting():
        raise tf.errors.AbortedError(None, None, "of its own")


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
def test_a_lost_worker_is_one_line(kind: type[tf.errors.OpError]) -> None:
    two = Devices(tf.distribute.get_strategy(), worker=1, workers=2, timeout=60)
    with pytest.raises(StageError) as caught, two.waiting():
        raise kind(None, None, "the connection was closed")
    assert str(caught.value) == (
        "worker 1 of 2 lost another worker; see its output, then start all workers again"
    )


def test_the_end_of_a_call_stops_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Devices] = []
    monkeypatch.setattr(Devices, "_give_up", lambda self: late.append(self))
    two = Devices(tf.distribute.get_strategy(), worker=1, workers=2, timeout=0.2)
    with pytest.raises(StageError), two.waiting():
        raise tf.errors.AbortedError(None, None, "the connection was closed")
    with pytest.raises(ZeroDivisionError), two.waiting():
        raise ZeroDivisionError
    time.sleep(0.4)
    assert late == []
    with two.waiting():
        time.sleep(0.4)
    assert late == [two]


def test_a_call_that_comes_too_late_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with Devices(tf.distribute.get_strategy(), worker=1, workers=3, timeout=0.1).waiting():
        time.sleep(0.4)
    assert statuses == [1]
    assert capsys.readouterr().err == (
        "error: worker 1 of 3 waited 0.1 s for the others; see what they say, or raise "
        "limits.worker_timeout in params.yaml\n"
    )


def test_workers_meet_before_tensorflow_connects_them(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    task = {"type": "worker", "index": 0}
    config = {"cluster": {"worker": addresses}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda: pytest.fail("the other worker does not appear, and might have other code"),
    )
    with pytest.raises(StageError, match=r"worker 1 .* did not come in time"):
        devices.start("multi_worker", {"code": "a"}, timeout=0.3)
