"""Who the workers are, and how they meet: on real sockets, without TensorFlow's."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from remotes import free_ports

from stages.common.errors import StageError
from stages.model import workers
from stages.model.workers import Workers

pytestmark = pytest.mark.slow  # servers
VERSIONS = {"code": "a", "parameters": "b", "tensors": "c"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def set_config(monkeypatch: pytest.MonkeyPatch, cluster: Any, kind: str, index: int) -> None:
    config = {"cluster": cluster, "task": {"type": kind, "index": index}, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "own"),
    [
        ({"worker": ["a:1", "b:2"]}, "worker", 0, 0),
        ({"worker": ["a:1", "b:2"]}, "worker", 1, 1),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "chief", 0, 0),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "worker", 0, 1),
    ],
)
def test_tf_config_names_them(
    monkeypatch: pytest.MonkeyPatch, cluster: Any, kind: str, index: int, own: int
) -> None:
    set_config(monkeypatch, cluster, kind, index)
    assert workers.find() == Workers(["a:1", "b:2"], own)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "TF_CONFIG: the whole text: Invalid JSON"),
        ("{}", "TF_CONFIG: cluster: Field required"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG: task: Field required"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
            "TF_CONFIG: task.type: Input should be 'chief' or 'worker'",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "TF_CONFIG: the cluster has no worker 1",
        ),
        (
            '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, '
            '"task": {"type": "chief", "index": 1}}',
            "TF_CONFIG: the cluster has no chief 1",
        ),
        (
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            "TF_CONFIG: 'a' must be HOST:PORT",
        ),
        (
            '{"cluster": {"worker": ["a:65536"]}, "task": {"type": "worker", "index": 0}}',
            "TF_CONFIG: 'a:65536' must be HOST:PORT",
        ),
    ],
)
def test_tf_config_that_is_wrong(monkeypatch: pytest.MonkeyPatch, config: str, words: str) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(StageError) as caught:
        workers.find()
    assert words in str(caught.value)
    assert "docs/scale.md" in str(caught.value)


def test_without_tf_config_and_slurm() -> None:
    with pytest.raises(StageError, match=r"train.strategy is multi_worker, but there is no TF_CO"):
        workers.find()


def set_slurm(monkeypatch: pytest.MonkeyPatch, rank: int, node: str) -> None:
    for name, value in {
        "SLURM_JOB_ID": "12",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "n[09-10]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURMD_NODENAME": node,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("rank", "node"), [(0, "n09"), (1, "n09"), (2, "n10")])
def test_slurm_names_them(monkeypatch: pytest.MonkeyPatch, rank: int, node: str) -> None:
    set_slurm(monkeypatch, rank, node)
    assert workers.find() == Workers(["n09:20012", "n09:20013", "n10:20012"], rank)


def test_slurm_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, 0, "n10")
    with pytest.raises(StageError, match="task 0 on n10, but TensorFlow expects it on n09:20012"):
        workers.find()


def meet(
    addresses: list[str], versions: dict[int, dict[str, str]], timeout: float = 10
) -> dict[int, str]:
    """Let workers meet, each in a thread of its own; return what was wrong, by worker."""
    problems = {}

    def run(own: int) -> None:
        try:
            workers.meet(Workers(addresses, own), versions[own], timeout)
            problems[own] = ""
        except StageError as error:
            problems[own] = str(error)

    threads = [threading.Thread(target=run, args=[own]) for own in versions]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # the last in the list comes last
    for thread in threads:
        thread.join()
    return problems


@pytest.fixture
def addresses() -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_they_meet_whoever_comes_first_and_leave_their_ports(
    addresses: list[str], order: tuple[int, ...]
) -> None:
    for _ in range(2):
        assert set(meet(addresses, dict.fromkeys(order, VERSIONS)).values()) == {""}


@pytest.mark.parametrize("name", VERSIONS)
def test_all_hear_of_a_worker_with_another_version(addresses: list[str], name: str) -> None:
    versions = {0: VERSIONS, 1: VERSIONS, 2: VERSIONS | {name: "other"}}
    problems = set(meet(addresses, versions).values())
    assert problems == {
        f"worker 2 ({addresses[2]}) and worker 0 differ in their {name}; "
        "give all workers the same commit, parameters and data"
    }


@pytest.mark.parametrize("missing", [0, 1])
def test_all_hear_of_a_worker_that_does_not_come(addresses: list[str], missing: int) -> None:
    versions = {own: VERSIONS for own in range(3) if own != missing}
    start = time.monotonic()
    problems = set(meet(addresses, versions, timeout=1).values())
    assert time.monotonic() - start < 8
    assert problems == {
        f"worker {missing} ({addresses[missing]}) did not come in time; "
        "start all of them, or raise limits.worker_timeout in params.yaml"
    }


def test_strangers_are_not_taken_for_workers(addresses: list[str]) -> None:
    def knock(text: bytes) -> Callable[[], None]:
        def run() -> None:
            port = int(addresses[0].split(":")[1])
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(text)

        return run

    web, numbers = b"GET / HTTP/1.1\r\n\r\n", b"[7, {}]\n"
    for text in (b"", web, numbers, b"7\n", b'{"worker": 1}\n', b"[1, {}]\n"):
        timer = threading.Timer(0.5, knock(text))
        timer.start()
        # The first worker alone: a stranger must not make up for the one that is missing.
        problems = meet(addresses[:2], {0: VERSIONS}, timeout=1)
        timer.join()
        assert "worker 1" in problems[0]


@pytest.mark.parametrize("lingering", [0, 1])
def test_a_first_worker_that_goes_away(addresses: list[str], lingering: int) -> None:
    port = int(addresses[0].split(":")[1])

    def go_away() -> None:
        with server.accept()[0] as connection:
            connection.makefile().readline()
            # Without lingering the other side sees a reset instead of an end.
            linger = struct.pack("ii", 1, lingering)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with socket.create_server(("127.0.0.1", port)) as server:
        thread = threading.Thread(target=go_away)
        thread.start()
        problems = meet(addresses, {1: VERSIONS})
        thread.join()
    assert problems[1].startswith(f"worker 0 ({addresses[0]}) went away; see what it says")


def test_a_port_in_use(addresses: list[str]) -> None:
    with socket.create_server(("", int(addresses[0].split(":")[1]))):
        problems = meet(addresses, {0: VERSIONS})
    assert problems[0].startswith(
        f"{addresses[0]}: this worker cannot use its port: Address already"
    )
