"""DVC remotes for tests, behind real servers on loopback: a folder, S3 storage, an SSH server."""

import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from project import Project

SECTION = "'remote \"team\"'"  # of DVC's settings
BUCKET = "team"
LOCAL = fsspec.filesystem("file")
SEAWEEDFS = ("master", "volume", "filer", "s3")  # the servers in one
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Remote:
    """A DVC remote, and its objects as its server has them; keys are MD5 hashes."""

    url: str
    folder: str
    fs: Any = LOCAL  # on which its server keeps objects
    shared: dict[str, str] = field(default_factory=dict)  # settings committed to Git
    private: dict[str, str] = field(default_factory=dict)  # settings of one person

    def configure(self, project: Project) -> None:
        """Add the remote as the commands of docs/team.md do, and commit it."""
        project.configure(
            {"core": {"remote": "team"}, SECTION: {"url": self.url, "verify": "true"} | self.shared}
        )
        project.commit("Remote")
        self.log_in(project)

    def log_in(self, project: Project) -> None:
        """Set what a new clone lacks: one person's credentials."""
        project.configure({SECTION: self.private}, "config.local")

    def keys(self) -> set[str]:
        return {"".join(file.split("/")[-2:]) for file in self.fs.find(f"{self.folder}/files/md5")}

    def read(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(self._file(key)))

    def delete(self, key: str) -> None:
        self.fs.rm_file(self._file(key))

    def write(self, key: str, content: bytes) -> None:
        self.delete(key)
        self.fs.pipe_file(self._file(key), content)

    def _file(self, key: str) -> str:
        return f"{self.folder}/files/md5/{key[:2]}/{key[2:]}"


def share(project: Project, path: Path) -> None:
    """Give a project a folder as its remote."""
    Remote(str(path), str(path)).configure(project)


def free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as long as the context lasts; what it says goes to `log`."""
    # Should the tests themselves be killed, the server is too.
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        try:
            yield run
        finally:
            run.kill()  # seaweedfs ignores a polite request


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    """An S3 server that has a bucket: its address, credentials as DVC names them, a client."""
    folder = tmp_path_factory.mktemp("s3")
    login = {"access_key_id": "someone", "secret_access_key": secrets.token_hex()}
    key = {"accessKey": login["access_key_id"], "secretKey": login["secret_access_key"]}
    identity = {"name": "someone", "credentials": [key], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"{server}.port{kind}" for server in SEAWEEDFS for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "s3.config": folder / "s3.json",
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 50,
        "volume.minFreeSpace": "1MiB",
    }
    command = [f"{Path(sys.executable).parent}/weed", f"-logdir={folder}", "server", "-s3"]
    command += [f"-{name}={value}" for name, value in (options | ports).items()]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    client = fsspec.filesystem(
        "s3",
        key=login["access_key_id"],
        secret=login["secret_access_key"],
        endpoint_url=url,
        use_listings_cache=False,
        config_kwargs={"retries": {"max_attempts": 0}},
    )

    def make_bucket() -> None:
        client.makedirs(BUCKET, exist_ok=True)
        # The server makes buckets before it can store anything in them.
        client.pipe_file(f"{BUCKET}/probe", b"probe")

    with serving(command, folder / "log"):
        patiently(make_bucket)
        yield url, login, client
    for port in ports.values():  # what a killed server leaves outside its folder
        for file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            file.unlink()


@pytest.fixture(scope="session")
def ssh_server(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an SSH server that lets in the projects' user, who knows its host key."""
    if SSHD is None:
        pytest.skip("OpenSSH's sshd is not installed")
    folder = tmp_path_factory.mktemp("ssh")
    home = Path(template.env["HOME"], ".ssh")
    home.mkdir(mode=0o700)
    for key in (folder / "host_key", home / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    [port] = free_ports(1)
    host_key = (folder / "host_key.pub").read_text()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": home / "id_ed25519.pub",
        "StrictModes": "no",  # temporary folders may be anyone's
        "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd insists on it
    with serving([SSHD, "-D", "-e", "-f", str(config)], folder / "log"):
        patiently(lambda: socket.create_connection(("127.0.0.1", port)).close())
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}"


def patiently(action: Callable[[], object]) -> None:
    """Repeat an action that fails until a server is ready."""
    deadline = time.monotonic() + 60
    while True:
        try:
            action()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(params=["folder", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """An empty remote of each kind."""
    path = str(tmp_path / "remote")
    if request.param == "folder":
        return Remote(path, path)
    if request.param == "ssh":
        return Remote(request.getfixturevalue("ssh_server") + path, path)
    url, login, client = request.getfixturevalue("s3_server")
    folder = f"{BUCKET}/digits"
    return Remote(f"s3://{folder}", folder, client, {"endpointurl": url}, login)


def publish(project: Project, path: Path) -> None:
    """Push a project to a new bare Git repository, its `origin` from now on."""
    project.git("init", "-q", "--bare", "-b", "main", str(path))
    project.git("remote", "add", "origin", str(path))
    project.git("push", "-q", "-u", "origin", "main")
