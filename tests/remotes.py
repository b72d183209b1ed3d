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

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from project import Project

SECTION = "'remote \"team\"'"  # of DVC's settings
BUCKET = "team"
SEAWEEDFS = ("master", "volume", "filer", "s3")  # the servers in one
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Remote:
    """A DVC remote."""

    url: str
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


@dataclass(frozen=True)
class Folder(Remote):
    """A folder of this machine, reached as such or through a server; keys are MD5 hashes."""

    path: Path = field(kw_only=True)

    def keys(self) -> set[str]:
        return {file.parent.name + file.name for file in self._objects.glob("??/*")}

    def read(self, key: str) -> bytes:
        return self._file(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        self.delete(key)
        self._file(key).write_bytes(content)

    def delete(self, key: str) -> None:
        self._file(key).unlink()

    @property
    def _objects(self) -> Path:
        return self.path / "files/md5"

    def _file(self, key: str) -> Path:
        return self._objects / key[:2] / key[2:]


@dataclass(frozen=True)
class Bucket(Remote):
    """A prefix in a bucket of S3 storage."""

    client: Any = field(kw_only=True)
    prefix: str = field(kw_only=True)

    def keys(self) -> set[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self._key(""))
        return {"".join(item["Key"].split("/")[-2:]) for item in listed.get("Contents", [])}

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=self._key(key))["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self._key(key), Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=self._key(key))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/files/md5/{key[:2]}/{key[2:]}".rstrip("/")


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
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server: its address and credentials, by the names of DVC's settings."""
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
    with serving(command, folder / "log"):
        yield login | {"endpointurl": f"http://127.0.0.1:{ports['s3.port']}"}
    for port in ports.values():  # what a killed server leaves outside its folder
        for file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            file.unlink()


@pytest.fixture(scope="session")
def s3_client(s3_server: dict[str, str]) -> Any:
    """A client of the S3 server, which has the bucket."""
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=s3_server["endpointurl"],
        region_name="us-east-1",
        aws_access_key_id=s3_server["access_key_id"],
        aws_secret_access_key=s3_server["secret_access_key"],
        config=Config(retries={"max_attempts": 0}),
    )

    def make_bucket() -> None:
        client.create_bucket(Bucket=BUCKET)
        # The server makes buckets before it can store anything in them.
        client.put_object(Bucket=BUCKET, Key="probe", Body=b"probe")

    patiently(make_bucket, BotoCoreError, ClientError)
    return client


@pytest.fixture(scope="session")
def ssh_server(
    template: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """An SSH server that lets in the projects' user, who knows its host key."""
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
        patiently(lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError)
        yield {"host": "127.0.0.1", "port": str(port), "user": getpass.getuser()}


def patiently(action: Callable[[], object], *errors: type[Exception], seconds: float = 60) -> None:
    """Repeat an action that fails until a server is ready."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            action()
        except errors:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(params=["folder", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Folder | Bucket:
    """An empty remote of each kind."""
    path = tmp_path / "remote"
    if request.param == "folder":
        return Folder(str(path), path=path)
    if request.param == "ssh":
        server = request.getfixturevalue("ssh_server")
        url = f"ssh://{server['user']}@{server['host']}:{server['port']}{path}"
        return Folder(url, path=path)
    server = request.getfixturevalue("s3_server")
    prefix = f"digits-{secrets.token_hex(8)}"
    shared = {"endpointurl": server["endpointurl"]}
    private = {name: value for name, value in server.items() if name not in shared}
    client = request.getfixturevalue("s3_client")
    return Bucket(f"s3://{BUCKET}/{prefix}", shared, private, client=client, prefix=prefix)


def publish(project: Project, path: Path) -> None:
    """Push a project to a new bare Git repository, its `origin` from now on."""
    project.git("init", "-q", "--bare", "-b", "main", str(path))
    project.git("remote", "add", "origin", str(path))
    project.git("push", "-q", "-u", "origin", "main")
