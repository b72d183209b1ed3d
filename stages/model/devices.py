"""The devices that train together: one, those of this machine, or those of several machines."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

import tensorflow as tf

from stages.common import errors, paths
from stages.common.errors import StageError
from stages.model import workers

_SEE = "see its output, then start all workers again"
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
    timeout: float = 0  # seconds that a call may wait for other workers

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Bound the time that the block may take, if there are other workers to wait for.

        Raises StageError if one of them is lost. If none is, but the block takes longer than the
        timeout, the process ends with an `error:` line.
        """
        if self.workers == 1:
            yield
            return
        timer = threading.Timer(self.timeout, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except _LOST:
            raise StageError(
                f"worker {self.worker} of {self.workers} lost another worker; {_SEE}"
            ) from None
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        message = (
            f"worker {self.worker} of {self.workers} waited {self.timeout:g} s for the others; "
            f"see what they say, or raise limits.worker_timeout in {paths.PARAMS}"
        )
        print(errors.line(message), file=sys.stderr, flush=True)
        os._exit(1)  # the main thread is inside of TensorFlow, and cannot be interrupted


def start(choice: str, versions: dict[str, str], timeout: float) -> Devices:
    """Return the devices that `train.strategy` chooses; to be called once, after `runtime.start`.

    `auto` and `mirrored` are all GPUs of this machine, or its CPU; `single` is one device;
    `multi_worker` is all devices of the workers that TF_CONFIG or Slurm names. These have
    `timeout` seconds to appear, with the same `versions` of code and data. Raises StageError.
    """
    if choice == "multi_worker":
        found = workers.find()
        workers.meet(found, versions, timeout)
        return Devices(_connect(found, timeout), found.own, len(found.addresses), timeout)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if choice == "single" or len(devices) == 1:
        return Devices(tf.distribute.get_strategy())
    return Devices(tf.distribute.MirroredStrategy([device.name for device in devices]))


def _connect(found: workers.Workers, timeout: float) -> tf.distribute.Strategy:
    """Let TensorFlow connect the workers; end the process if one has gone since they met."""
    lost = errors.line(f"worker {found.own} of {len(found.addresses)} lost another worker; {_SEE}")
    ours = signal.getsignal(signal.SIGTERM)
    # TensorFlow waits without end, and no Python thread runs meanwhile. Only faulthandler's timer
    # does: what it has to say, a stack, is replaced by the line for the user.
    command = ["sed", "-n", f"1s|.*|{lost}|p"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2) as sed:  # noqa: S603
        faulthandler.dump_traceback_later(timeout, exit=True, file=cast(IO[bytes], sed.stdin))
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGTERM, ours)  # TensorFlow takes it for itself
    return strategy
