"""One device, two of one machine, two machines: the train stage on loopback."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folder import OUTPUTS, Folder
from remotes import free_ports

pytestmark = pytest.mark.slow


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
    ports = free_ports(2)
    running = [worker(folders["workers"], 0, ports), worker(second, 1, ports)]
    printed = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed[0][0].startswith("training accuracy")
    assert printed[1] == ("worker 1 of 2: trained on 840 images\n", "")
    assert second.outputs() == {}  # only the first worker writes
    return folders


def test_two_devices_and_two_workers_give_the_same_bits(trained: dict[str, Folder]) -> None:
    assert tuple(trained["two"].outputs()) == OUTPUTS
    assert trained["two"].outputs() == trained["workers"].outputs()


def test_one_device_sees_the_same_images_at_the_same_rate(trained: dict[str, Folder]) -> None:
    one, two = (pd.read_csv(trained[name].path / OUTPUTS[1]) for name in ("one", "two"))
    same = ["step", "epoch", "images_seen", "learning_rate"]
    pd.testing.assert_frame_equal(one[same], two[same])
    # Not the same bits: each device normalises its own half of a batch.
    assert trained["one"].outputs() != trained["two"].outputs()
    np.testing.assert_allclose(one["loss"].iloc[-3:], two["loss"].iloc[-3:], rtol=0.2)


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


@pytest.mark.parametrize(
    ("victim", "number"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGTERM)],
)
def test_a_worker_that_dies_or_stops(tmp_path: Path, victim: int, number: signal.Signals) -> None:
    folder = Folder(tmp_path)
    folder.write_tensors(range(60))
    folder.write_params(strategy="multi_worker", epochs=100_000)
    for name in OUTPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the run before")
    before = folder.outputs()
    ports = free_ports(2)
    running = [worker(folder, own, ports) for own in (0, 1)]
    try:
        assert running[0].stderr
        progress = running[0].stderr.readline()  # ten seconds into the training
        assert progress.startswith("train: ")
        running[victim].send_signal(number)
        start = time.monotonic()
        survivor = running[1 - victim]
        _, printed = survivor.communicate(timeout=60)
        assert time.monotonic() - start < 40
        assert survivor.returncode == 1
        (line,) = [line for line in printed.splitlines() if not line.startswith("train: ")]
        assert line == (
            f"error: worker {1 - victim} of 2 lost another one; "
            "see what that one says, then start all again"
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


def test_a_call_that_takes_too_long(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_params(strategy="multi_worker")
    # The first worker is stopped by its input, while TensorFlow goes on to say that it lives.
    stuck = Folder(tmp_path / "stuck")
    stuck.write_params(strategy="multi_worker")
    stuck.command = [
        sys.executable,
        "-c",
        "import time\n"
        "from stages import train\n"
        "from stages.common import errors\n"
        "from stages.model import training\n"
        "training.batches = lambda *_: time.sleep(600)\n"
        "errors.run(train.main)",
    ]
    for each in (folder, stuck):
        each.limits["worker_timeout"] = 15
        each.write_params(strategy="multi_worker")
    ports = free_ports(2)
    running = [worker(folder, 0, ports), worker(stuck, 1, ports)]
    printed = [process.communicate(timeout=100)[1] for process in running]
    assert [process.returncode for process in running] == [1, 1]
    assert printed[0].startswith("error: worker 0 of 2 ")
    assert (
        "error: worker 1 of 2 waited 15 s for the others; see what they say, or raise" in printed[1]
    )
