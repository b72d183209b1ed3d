"""The devices that train together: one, those of this machine, or those of several machines."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from stages.common import paths
from stages.common.errors import StageError

_FIRST_PORT = 20000
_ADDRESS = re.compile(r"([^\s:\[\]]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}")  # a name, IPv4, or [IPv6]
_EXAMPLE = "docs/scale.md has an example"
_SAME = "give all workers the same commit, parameters, data and data/checkpoints"
# How TensorFlow says that another worker is gone: its heartbeat has not come for ten seconds, the
# connection was closed, or an operation was stopped for one of these reasons.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


@dataclass(frozen=True)
class Devices:
    """A strategy of TensorFlow's, and the place of this process among the workers."""

    strategy: tf.distribute.Strategy
    worker: int = 0  # 0, the first, is the one that writes
    workers: int = 1

    @property
    def name(self) -> str:
        """What messages call this process."""
        return f"worker {self.worker} of {self.workers}"

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise StageError if the block loses another worker."""
        try:
            yield
        except _LOST:
            if self.workers == 1:
                raise
            raise StageError(
                f"{self.name} lost another worker; see its output, then start all workers again"
            ) from None

    def compare(self, versions: dict[str, str]) -> None:
        """Raise StageError, on all workers, if these hashes in hexadecimal are not the same."""
        if self.workers == 1:
            return
        numbers = [int(version[:12], 16) for version in versions.values()]
        replicas = self.strategy.num_replicas_in_sync

        def total() -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            return replica.all_reduce("SUM", tf.constant(numbers, tf.int64))

        with self.together():
            summed = self.strategy.run(tf.function(total, autograph=False))
        (ours, *_) = self.strategy.experimental_local_results(summed)
        for name, number, of_all in zip(versions, numbers, ours.numpy(), strict=True):
            if of_all != number * replicas:
                raise StageError(f"worker {self.worker} and others differ in their {name}; {_SAME}")


def start(choice: str, batch_size: int, timeout: float) -> Devices:
    """Return the devices that `train.strategy` chooses; to be called once, after `runtime.start`.

    `auto` and `mirrored` are all GPUs of this machine, or its CPU; `auto` takes as many as share
    a batch equally. `single` is one device; `multi_worker` is all devices of the workers that
    TF_CONFIG or Slurm names, which have `timeout` seconds to appear. Raises StageError.
    """
    if choice == "multi_worker":
        found = _connect(timeout)
    else:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        names = [device.name for device in devices]
        if choice == "auto":
            shares = (n for n in range(1, len(names) + 1) if batch_size % n == 0)
            names = names[: max(shares)]
        if choice == "single" or len(names) == 1:
            return Devices(tf.distribute.get_strategy())
        found = Devices(tf.distribute.MirroredStrategy(names))
    replicas = found.strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise StageError(
            f"{paths.PARAMS}: train.batch_size is {batch_size}, which {replicas} devices cannot "
            f"share equally; make it a multiple of {replicas}, or set train.strategy to single"
        )
    return found


def _connect(timeout: float) -> Devices:
    """Let TensorFlow connect the workers; the process ends if that takes too long."""
    if "TF_CONFIG" not in os.environ:
        os.environ["TF_CONFIG"] = _ask_slurm()
    addresses, own = _read_config(os.environ["TF_CONFIG"])
    others = ", ".join(f"{n} ({a})" for n, a in enumerate(addresses) if n != own)
    print(
        f"train: worker {own} ({addresses[own]}) waits for worker {others}. If one has not come "
        f"in {timeout:g} s (limits.worker_timeout in {paths.PARAMS}), this ends by SIGALRM.",
        file=sys.stderr,
        flush=True,
    )
    ours = signal.getsignal(signal.SIGTERM)
    # TensorFlow waits without end, in C++, where Python's own handlers do not run.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise StageError(
            f"{addresses[own]}: this worker cannot start: {error.message}; see that nothing else "
            "uses its port, and that the other workers run"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, ours)  # TensorFlow takes it for itself
    return Devices(strategy, own, len(addresses))


def _read_config(text: str) -> tuple[list[str], int]:
    """Return the workers' addresses, HOST:PORT, in their order, and the place of this one."""
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses = [*cluster.get("chief", []), *cluster.get("worker", [])]
        own = addresses.index(cluster[task["type"]][task["index"]])
        wrong = [address for address in addresses if not _ADDRESS.fullmatch(address)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise StageError(
            "TF_CONFIG: must have a cluster of chief and worker, and the type and index of this "
            f"task in it, but: {type(error).__name__}: {error}; {_EXAMPLE}"
        ) from None
    if wrong:
        raise StageError(f"TF_CONFIG: {wrong[0]!r} must be HOST:PORT; {_EXAMPLE}")
    return addresses, own


def _ask_slurm() -> str:
    """Return what TF_CONFIG would say of the tasks that Slurm's `srun` has started."""
    if "SLURM_STEP_NODELIST" not in os.environ:
        raise StageError(
            f"{paths.PARAMS}: train.strategy is multi_worker, but there is no TF_CONFIG, nor was "
            "this started by Slurm's srun; docs/scale.md shows how to start the workers"
        )
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    nodes = subprocess.run(command, text=True, capture_output=True, check=True).stdout.split()  # noqa: S603
    own, tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    if len(nodes) != tasks or nodes[own] != os.environ["SLURMD_NODENAME"]:
        raise StageError(
            f"Slurm runs {tasks} tasks on {' '.join(nodes)}, and task {own} on "
            f"{os.environ['SLURMD_NODENAME']}: it must be one task a node, in their order; "
            "use srun --ntasks-per-node=1, without --distribution"
        )
    port = _FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % 10000  # two jobs may share a machine
    workers = [f"{node}:{port}" for node in nodes]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": own}})
