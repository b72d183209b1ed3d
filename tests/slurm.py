"""A real Slurm cluster for tests: two machines, each in a network namespace of its own."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import Project, alone

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "ip", "nsenter", "unshare")
CONTROLLER = "10.213.77.1"
# In the order of their numbers, as Slurm has it: not in that of their letters.
MACHINES = {"n9": "10.213.77.11", "n10": "10.213.77.12"}

CONFIG = """
ClusterName=digits
SlurmctldHost={host}({controller})
SlurmctldPort=26817
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    env: dict[str, str]  # what its commands need

    def run(self, project: Project, *command: str, status: int = 0) -> str:
        """Run `srun` or `sbatch` in a project; return what it printed."""
        return project.run(*command, status=status, env=self.env, timeout=200)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], env={"PATH": PATH}, check=True, capture_output=True)


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def network(name: str) -> Iterator[dict[str, str]]:
    """Make a bridge and a namespace a machine; yield the namespaces by the machines' names."""
    with ExitStack() as stack:
        ip("link", "add", name, "type", "bridge")
        stack.callback(ip, "link", "del", name)
        ip("addr", "add", f"{CONTROLLER}/24", "dev", name)
        ip("link", "set", name, "up")
        spaces = {}
        for machine, address in MACHINES.items():
            spaces[machine] = space = f"{name}-{machine}"
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)
            cable = f"{name}{machine}"
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", cable, "master", name, "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield spaces


@contextmanager
def server(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server in the foreground; stop it, and it alone, at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two machines with a CPU each; skipped where it cannot be made."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    if missing or os.getuid() != 0:
        pytest.skip(f"a Slurm cluster needs root, and {', '.join(missing) or 'all is installed'}")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged trusts no folder that others may write to
    host = os.uname().nodename
    nodes = (
        f"NodeName={name} NodeAddr={addr} Port=26818 CPUs=1" for name, addr in MACHINES.items()
    )
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(host=host, controller=CONTROLLER, folder=folder, nodes="\n".join(nodes))
    )
    hosts = folder / "hosts"
    names = {"localhost": "127.0.0.1", host: CONTROLLER, **MACHINES}
    hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    env = {"PATH": PATH, "SLURM_CONF": str(config)}

    with ExitStack() as stack:
        stack.enter_context(alone("slurm", tmp_path_factory))  # a machine can have one Slurm
        try:
            spaces = stack.enter_context(network(f"dg{os.getpid()}"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr!r}")
        munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
        munged += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        munged += [f"--socket={folder}/munge.socket"]
        stack.enter_context(server(munged, env, folder / "munged.out"))
        wait_until((folder / "munge.socket").exists)
        stack.enter_context(server(["slurmctld", "-D"], env, folder / "slurmctld.out"))
        for name, space in spaces.items():
            start = f"mount --bind {hosts} /etc/hosts; exec slurmd -D -N {name}"
            command = ["nsenter", f"--net=/run/netns/{space}", "unshare", "-m", "sh", "-c", start]
            stack.enter_context(server(command, env, folder / f"{name}.out"))

        def idle() -> bool:
            command = ["sinfo", "--noheader", "--format=%D %T"]
            answer = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            return answer.stdout.strip() == f"{len(MACHINES)} idle"

        wait_until(idle)
        yield Cluster(env)
