"""The workers on several machines: who they are, and how they meet before they train."""

import json
import os
import socket
import time
from contextlib import ExitStack, suppress
from typing import Literal, NamedTuple

import tensorflow as tf
from pydantic import BaseModel, Field, ValidationError

from stages.common import paths
from stages.common.errors import StageError

_EXAMPLE = "docs/scale.md has an example"
_LATE = f"start all of them, or raise limits.worker_timeout in {paths.PARAMS}"
_FIRST_PORT = 20000
_MAX_LINE = 1 << 16  # characters


class Workers(NamedTuple):
    """The workers' addresses, HOST:PORT, in their order, and the place of this one: 0 writes."""

    addresses: list[str]
    own: int


class _Task(BaseModel):
    type: Literal["chief", "worker"]
    index: int = Field(ge=0)


class _Cluster(BaseModel):
    chief: list[str] = []
    worker: list[str] = []


class _TFConfig(BaseModel):
    """What we read of the variable TF_CONFIG; the rest of it is left to TensorFlow."""

    cluster: _Cluster
    task: _Task


def find() -> Workers:
    """Return what the variable TF_CONFIG says, or else Slurm; set TF_CONFIG for TensorFlow.

    Raises StageError if neither says who the workers are.
    """
    if "TF_CONFIG" not in os.environ:
        os.environ["TF_CONFIG"] = _ask_slurm()
    try:
        config = _TFConfig.model_validate_json(os.environ["TF_CONFIG"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole text"
        raise StageError(f"TF_CONFIG: {where}: {problem['msg']}; {_EXAMPLE}") from None
    chief, worker = config.cluster.chief, config.cluster.worker
    addresses = chief + worker
    own = config.task.index + (len(chief) if config.task.type == "worker" else 0)
    if config.task.index >= len(getattr(config.cluster, config.task.type)):
        raise StageError(
            f"TF_CONFIG: the cluster has no {config.task.type} {config.task.index}; {_EXAMPLE}"
        )
    for address in addresses:
        port = address.rpartition(":")[2]
        if not (port.isdecimal() and 0 < int(port) < 65536):
            raise StageError(f"TF_CONFIG: {address!r} must be HOST:PORT; {_EXAMPLE}")
    return Workers(addresses, own)


def _ask_slurm() -> str:
    """Return what TF_CONFIG would say of the tasks that Slurm's `srun` has started."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        raise StageError(
            f"{paths.PARAMS}: train.strategy is multi_worker, but there is no TF_CONFIG, nor was "
            "this started by Slurm's srun; docs/scale.md shows how to start the workers"
        )
    tasks, job = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_JOB_ID"])
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=_FIRST_PORT + job % 10000,  # two jobs may share a machine
        # Slurm itself gives each task its GPUs; the resolver would ask nvidia-smi.
        gpus_per_node=tasks,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    addresses, node = resolver.cluster_spec().job_tasks("worker"), os.environ["SLURMD_NODENAME"]
    if addresses[resolver.task_id].rpartition(":")[0] != node:
        raise StageError(
            f"Slurm runs task {resolver.task_id} on {node}, but TensorFlow expects it on "
            f"{addresses[resolver.task_id]}: it sorts the nodes by name; use srun without "
            "--distribution, and nodes whose names sort as their numbers do"
        )
    task = {"type": "worker", "index": resolver.task_id}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def meet(workers: Workers, versions: dict[str, str], timeout: float) -> None:
    """Wait until all workers are here, and compare their versions of code, data and the like.

    TensorFlow itself would wait without end for a worker that does not come. Raises StageError, on
    all workers, if one is not here in `timeout` seconds or has other versions than the first.
    """
    deadline = time.monotonic() + timeout
    address = workers.addresses[workers.own]
    try:
        # The port that TensorFlow will use: one more reason to look at it now.
        server = socket.create_server(("", _split(address)[1]))
    except OSError as error:
        raise StageError(f"{address}: this worker cannot use its port: {error.strerror}") from None
    with server:
        if workers.own == 0:
            problem = _gather(server, workers.addresses, versions, deadline)
        else:
            problem = _report(workers, versions, deadline)
    if problem:
        raise StageError(problem)


def _gather(
    server: socket.socket, addresses: list[str], versions: dict[str, str], deadline: float
) -> str:
    """Hear all other workers and tell them what is wrong; return it, or nothing."""
    missing = dict(enumerate(addresses[1:], start=1))
    problem = ""
    with ExitStack() as stack:
        answers = []
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            # Whatever else connects to the port is ignored.
            with suppress(OSError, ValueError, KeyError, TypeError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(left)
                file = stack.enter_context(connection.makefile("rw", encoding="utf-8"))
                worker, theirs = json.loads(file.readline(_MAX_LINE))
                others = [name for name in versions if theirs[name] != versions[name]]
                del missing[worker]
                answers.append(file)
                if others and not problem:
                    problem = (
                        f"worker {worker} ({addresses[worker]}) and worker 0 differ in their "
                        f"{others[0]}; give all workers the same commit, parameters and data"
                    )
        if missing:
            names = ", ".join(f"{worker} ({address})" for worker, address in missing.items())
            problem = f"worker {names} did not come in time; {_LATE}"
        for file in answers:
            with suppress(OSError):
                print(json.dumps(problem), file=file, flush=True)
    return problem


def _report(workers: Workers, versions: dict[str, str], deadline: float) -> str:
    """Report to the first worker, and return what it says is wrong, or nothing."""
    first = workers.addresses[0]
    try:
        while True:
            try:
                connection = socket.create_connection(_split(first), timeout=1)
                break
            except OSError:
                if time.monotonic() > deadline:
                    return f"worker 0 ({first}) did not come in time; {_LATE}"
                time.sleep(0.1)
        with connection, connection.makefile("rw", encoding="utf-8") as file:
            connection.settimeout(max(1.0, deadline - time.monotonic()) * 2)
            print(json.dumps([workers.own, versions]), file=file, flush=True)
            return str(json.loads(file.readline(_MAX_LINE)))
    except (OSError, ValueError):
        return f"worker 0 ({first}) went away; see what it says, then start all again"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
