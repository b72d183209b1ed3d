"""data/raw gets all four files, right and whole, or stays as it was."""

import base64
import contextlib
import ctypes
import datetime
import errno
import gzip
import hashlib
import os
import pty
import random
import re
import resource
import signal
import ssl
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from conftest import ROOT
from servers import Request, bomb, forward, full, mirror, refusing, silent

from stages import fetch
from stages.common.errors import StageError
from stages.dataset.catalogue import FILE_NAMES

CONTENTS: dict[str, bytes] = {
    name: bytes([0, 0, 8, 1]) + random.Random(name).randbytes(50_000 * n)
    for n, name in enumerate(FILE_NAMES, start=1)
}
LARGEST = FILE_NAMES[-1]
LIMITS = {"connect_timeout": 20, "stall_timeout": 20, "retries": 1}  # ample on a busy machine
FETCH = [sys.executable, "-m", "stages.fetch"]

pytestmark = pytest.mark.slow  # servers


class Place:
    """A folder that fetch can run in, with a catalogue of one data set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path / "data/raw"
        self.bundled = path / "data/mirror/small"
        self.bundled.mkdir(parents=True)
        for name, content in CONTENTS.items():
            (self.bundled / f"{name}.gz").write_bytes(gzip.compress(content))
        self.params()
        self.mirrors("data/mirror/small/")

    def params(self, **sections: dict[str, Any]) -> None:
        content = {"fetch": {"dataset": "small"}, "limits": LIMITS} | sections
        (self.path / "params.yaml").write_text(yaml.safe_dump(content))

    def mirrors(self, *mirrors: str, **sizes: int) -> None:
        files = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in CONTENTS.items()
        }
        for name, size in sizes.items():
            files[name.replace("_", "-")]["size"] = size
        entry = {
            "title": "Small",
            "licence": "none",
            "credit": "nobody",
            "classes": ["a", "b"],
            "mirrors": list(mirrors),
            "files": files,
        }
        (self.path / "data/datasets.yaml").write_text(yaml.safe_dump({"small": entry}))

    def start(self, *command: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        return subprocess.Popen(
            command or FETCH,
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            **options,
        )

    def run(self, *command: str, status: int = 0, **options: Any) -> tuple[str, str]:
        """Run fetch; check its exit status; return what it wrote to stdout and stderr."""
        with self.start(*command, **options) as process:
            out, err = process.communicate()
        assert process.returncode == status, out + err
        return out, err

    def error(self, *command: str, **options: Any) -> str:
        """Run fetch, which fails; return the one line that it says."""
        out, err = self.run(*command, status=1, **options)
        assert out == ""
        assert re.fullmatch(r"error: .+\n", err), err
        return err

    def has(self, contents: dict[str, bytes]) -> bool:
        """Tell whether data/raw holds exactly this."""
        found = {path.name: path.read_bytes() for path in self.raw.iterdir()}
        return found == contents


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


def respond(request: Request) -> None:
    request.answer(gzip.compress(CONTENTS[Path(request.path).stem]))


# --- What it writes and says -------------------------------------------------------------------


def test_fetches_the_four_files_from_the_first_mirror(place: Place) -> None:
    with mirror(respond) as good:
        place.mirrors(good.url, "data/mirror/small/")
        assert place.run() == (f"fetched Small from {good.url}\n", "")
        assert len(good.requests) == 4
    assert place.has(CONTENTS)


def test_one_line_says_that_the_bundled_copy_was_used_and_why(place: Place) -> None:
    dead = f"http://{refusing()}/"
    place.mirrors(dead, "data/mirror/small/")
    out, err = place.run()
    assert out == "fetched Small from data/mirror/small/\n"
    assert err.startswith(f"using data/mirror/small/, because {dead}: no connection")
    assert err.count("\n") == 1
    assert place.has(CONTENTS)


def test_files_from_different_mirrors(place: Place) -> None:
    (place.bundled / f"{LARGEST}.gz").unlink()
    with mirror(respond) as good:
        place.mirrors("data/mirror/small/", good.url)
        out, err = place.run()
        assert out == f"fetched Small from data/mirror/small/, {good.url}\n"
        assert "because data/mirror/small/: no such file" in err
    assert place.has(CONTENTS)


def test_all_mirrors_fail_gives_one_line_and_leaves_no_folder(place: Place) -> None:
    (place.bundled / f"{LARGEST}.gz").write_bytes(b"<html>")
    dead = f"http://{refusing()}/"
    place.mirrors(dead, "data/mirror/small/")
    line = place.error()
    assert f"{LARGEST}.gz: no mirror has it: {dead}: no connection" in line
    assert "data/mirror/small/: unpacked, it has 6 bytes" in line
    assert not place.raw.exists()


def test_a_failure_leaves_data_raw_as_it_was(place: Place) -> None:
    old = {FILE_NAMES[0]: b"old", "other": b"kept"}
    place.raw.mkdir()
    for name, content in old.items():
        (place.raw / name).write_bytes(content)
    (place.bundled / f"{LARGEST}.gz").write_bytes(b"<html>")
    place.error()
    assert place.has(old)


def test_none_is_replaced_before_all_are_verified(place: Place) -> None:
    def wait(request: Request) -> None:
        if LARGEST in request.path:
            while not release.exists():
                request.sleep(0.01)
        respond(request)

    release = place.path / "release"
    place.params(limits=LIMITS | {"stall_timeout": 60})
    with mirror(wait) as good:
        place.mirrors(good.url)
        with place.start() as process:
            wait_for(lambda: len(good.requests) == 4)
            time.sleep(0.3)  # ample for the three small ones
            assert [path.suffix for path in place.raw.iterdir()] == [".tmp"] * 4
            release.touch()
            process.communicate()
    assert place.has(CONTENTS)


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o022, 0o644), (0o077, 0o600)])
def test_files_get_the_modes_that_the_umask_asks_for(place: Place, umask: int, mode: int) -> None:
    place.run(umask=umask)
    assert {path.stat().st_mode & 0o777 for path in place.raw.iterdir()} == {mode}


def test_a_bar_shows_progress_on_a_terminal_and_nothing_elsewhere(place: Place) -> None:
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))
    place.run(stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    assert b"100%|" in shown
    assert place.run()[1] == ""


# --- On this side ------------------------------------------------------------------------------


def test_disk_full(place: Place) -> None:
    limit = (len(CONTENTS[LARGEST]) - 1,) * 2
    line = place.error(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert f"data/raw/{LARGEST}: not written: {os.strerror(errno.EFBIG)}" in line
    assert not place.raw.exists()


def without_override() -> None:
    """Take from root the rights to write and read where modes forbid it (PR_CAPBSET_DROP)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("folder", ["data", "data/raw"])
def test_read_only_folder(place: Place, folder: str) -> None:
    (place.path / folder).mkdir(exist_ok=True)
    (place.path / folder).chmod(0o555)
    line = place.error(preexec_fn=without_override)
    assert line.startswith("error: data/raw")
    assert "Permission denied" in line
    assert folder == "data" or place.has({})


def test_target_folder_is_a_file(place: Place) -> None:
    place.raw.write_text("a file")
    assert place.error().startswith("error: data/raw")
    assert place.raw.read_text() == "a file"


def test_unwritable_target_is_noticed_before_anything_is_replaced(place: Place) -> None:
    (place.raw / FILE_NAMES[2]).mkdir(parents=True)
    assert f"data/raw/{FILE_NAMES[2]}: is a folder; remove it" in place.error()
    assert [path.name for path in place.raw.iterdir()] == [FILE_NAMES[2]]


def test_symlinked_targets_are_replaced_not_written_through(place: Place) -> None:
    place.raw.mkdir()
    cached = place.path / "cached"
    cached.write_text("cached")
    cached.chmod(0o444)
    (place.raw / FILE_NAMES[0]).symlink_to(cached)
    (place.raw / FILE_NAMES[1]).symlink_to(place.path / "nowhere")
    place.run()
    assert place.has(CONTENTS)
    assert not any(path.is_symlink() for path in place.raw.iterdir())
    assert cached.read_text() == "cached"


def test_symlinked_folder_stays_one(place: Place) -> None:
    (place.path / "elsewhere").mkdir()
    place.raw.symlink_to(place.path / "elsewhere")
    place.run()
    assert place.raw.is_symlink()
    assert place.has(CONTENTS)


def test_fetches_at_once_do_not_disturb_each_other(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(place.start()) for _ in range(4)]
        outputs = [process.communicate() for process in processes]
    assert outputs == [("fetched Small from data/mirror/small/\n", "")] * 4
    assert place.has(CONTENTS)


REPLACE = """
import sys
from pathlib import Path
from stages.common import files
for _ in range(500):
    with files.replacing(Path("file")) as temporary:
        temporary.write_text("whole")
"""


def test_temporary_files_in_use_are_never_taken_for_leftovers(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", REPLACE]
        processes = [stack.enter_context(place.start(*command)) for _ in range(3)]
        assert [process.communicate()[1] for process in processes] == [""] * 3


# --- Mirrors that are folders ------------------------------------------------------------------


def forbidden_folder(folder: Path) -> None:
    folder.mkdir(mode=0)


def forbidden_files(folder: Path) -> None:
    folder.mkdir()
    for name in FILE_NAMES:
        (folder / f"{name}.gz").touch(mode=0)


def forbidden_parent(folder: Path) -> None:
    folder.mkdir()
    folder.parent.chmod(0)


def loop_of_links(folder: Path) -> None:
    folder.symlink_to(folder)


def unreadable_device(folder: Path) -> None:
    folder.mkdir()
    for name in FILE_NAMES:
        (folder / f"{name}.gz").symlink_to("/proc/self/mem")  # reading its start fails


def file_in_place_of_the_folder(folder: Path) -> None:
    folder.write_text("a file")


def folders_in_place_of_the_files(folder: Path) -> None:
    for name in FILE_NAMES:
        (folder / f"{name}.gz").mkdir(parents=True)


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (forbidden_folder, errno.EACCES),
        (forbidden_files, errno.EACCES),
        (forbidden_parent, errno.EACCES),
        (loop_of_links, errno.ELOOP),
        (unreadable_device, errno.EIO),
        (file_in_place_of_the_folder, "no such file"),
        (folders_in_place_of_the_files, "no such file"),
        (nothing, errno.ENOENT),
    ],
)
def test_a_folder_that_fails_is_its_own_fault_and_the_next_mirror_is_tried(
    place: Place, tmp_path: Path, make: Callable[[Path], None], why: str | int
) -> None:
    folder = tmp_path / "parent/scans"
    folder.parent.mkdir()
    make(folder)
    place.mirrors(f"{folder}/", "data/mirror/small/")
    try:
        out, err = place.run(preexec_fn=without_override)
    finally:
        folder.parent.chmod(0o755)
    assert out == "fetched Small from data/mirror/small/\n"
    reason = os.strerror(why) if isinstance(why, int) else why
    assert err == f"using data/mirror/small/, because {folder}/: {reason}\n"
    assert place.has(CONTENTS)


@pytest.mark.parametrize("form", ["~/my scans/", "$HOME/my scans", "file://{}/my%20scans/"])
def test_a_folder_may_be_below_home_or_a_file_address(
    place: Place, tmp_path: Path, form: str
) -> None:
    place.bundled.rename(tmp_path / "my scans")
    address = form.format(tmp_path)
    place.mirrors(address)
    assert place.run(env={"HOME": str(tmp_path)}) == (f"fetched Small from {address}\n", "")
    assert place.has(CONTENTS)


def test_a_folder_of_files_that_a_browser_has_unpacked(place: Place) -> None:
    for name in FILE_NAMES[:3]:
        (place.bundled / f"{name}.gz").unlink()
        (place.bundled / name).write_bytes(CONTENTS[name])
    (place.bundled / FILE_NAMES[3]).write_bytes(b"not this one: there is an archive too")
    assert place.run() == ("fetched Small from data/mirror/small/\n", "")
    assert place.has(CONTENTS)


# --- Names and passwords -----------------------------------------------------------------------


def demanding(login: str) -> Callable[[Request], None]:
    """Respond to those who log in."""
    expected = "Basic " + base64.b64encode(login.encode()).decode()

    def respond_to_login(request: Request) -> None:
        if request.headers["Authorization"] == expected:
            respond(request)
        else:
            request.answer(status=401)

    return respond_to_login


@pytest.mark.parametrize(
    ("written", "login"), [("me:secret", "me:secret"), ("secret@x:a%2Fsecret", "secret@x:a/secret")]
)
def test_a_password_in_an_address_is_used_and_never_printed(
    place: Place, written: str, login: str
) -> None:
    with mirror(demanding(login)) as good:
        address = good.url.replace("//", f"//{written}@")
        place.mirrors(address)
        assert place.run() == (f"fetched Small from {good.url}\n", "")
    assert place.has(CONTENTS)
    place.mirrors(address, "data/mirror/small/")  # nobody serves it any more
    _, err = place.run()
    assert err.startswith(f"using data/mirror/small/, because {good.url}: no connection")
    assert "secret" not in err
    place.mirrors(address)
    line = place.error()
    assert f"{good.url}: no connection" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "where",
    [
        "ftp://me:secret@a/",
        "http://me:secret@a:99999/",
        "http://me:secret@[/",
    ],
)
def test_a_password_in_a_redirect_is_not_printed(place: Place, where: str) -> None:
    with mirror(lambda request: request.answer(status=302, Location=where)) as bad:
        place.mirrors(bad.url.replace("//", "//me:secret@"))
        line = place.error()
        assert "refused" in line or "not a usable address" in line or "not understood" in line
        assert "secret" not in line


# --- Interrupted and killed --------------------------------------------------------------------


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def busy(place: Place, moment: str) -> Iterator[Any]:
    """Start fetch and yield its process at the moment."""

    def hang(request: Request) -> None:
        if moment == "body":
            request.answer(bytes(30_000), Content_Length="1000000")
        if moment == "pause before the next attempt":
            request.answer(status=503, Retry_After="50")
        else:
            request.sleep(60)

    place.params(limits=LIMITS | {"connect_timeout": 60, "stall_timeout": 60})
    with full() as address, mirror(hang) as bad:
        env = {}
        if moment == "connecting":
            place.mirrors(f"http://{address}/")
        elif moment == "unpacking":
            (place.bundled / f"{LARGEST}.gz").write_bytes(bomb(10_000))
            place.mirrors("data/mirror/small/", **{LARGEST: 10_000 << 20})
        elif moment == "look-up":
            # A resolver that hangs: the one thing here that cannot be had on loopback.
            place.mirrors("http://mirror.invalid/")
            hook = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
            (place.path / "sitecustomize.py").write_text(hook)
            env = {"PYTHONPATH": f"{place.path}:{ROOT}"}
        else:
            place.mirrors(bad.url)
        with place.start(env=env) as process:
            wait_for(lambda: place.raw.exists() and len(list(place.raw.iterdir())) == 4)
            if moment in ("headers", "body", "pause before the next attempt"):
                wait_for(lambda: bad.requests)
            if moment == "unpacking":
                wait_for(lambda: any(p.stat().st_size > 1 << 20 for p in place.raw.rglob("*")))
            time.sleep(0.1)
            yield process


MOMENTS = [
    "look-up",
    "connecting",
    "headers",
    "body",
    "pause before the next attempt",
    "unpacking",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_within_a_second_with_one_line(place: Place, moment: str) -> None:
    for _ in range(3):  # a busy machine may be slow once; a look-up that hangs is so each time
        with busy(place, moment) as process:
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
            seconds = time.monotonic() - start
        assert (out, err) == ("", "error: interrupted; run it again to complete\n")
        assert process.returncode == 130
        assert not place.raw.exists()
        if seconds < 1:
            return
    pytest.fail(f"took {seconds:.1f} s")


@pytest.mark.parametrize("moment", ["headers", "body", "unpacking"])
def test_killed_leaves_nothing_visible_and_the_next_run_completes(
    place: Place, moment: str
) -> None:
    with busy(place, moment) as process:
        process.kill()
        process.communicate()
    assert all(path.suffix == ".tmp" for path in place.raw.iterdir())
    for name, content in CONTENTS.items():
        (place.bundled / f"{name}.gz").write_bytes(gzip.compress(content))
    place.mirrors("data/mirror/small/")
    place.run()
    assert place.has(CONTENTS)  # and nothing else: what was left is gone


def test_killed_at_any_moment_what_is_visible_is_right(place: Place) -> None:
    for delay in (0.2, 0.4, 0.45, 0.5, 0.55, 0.6):
        with place.start() as process:
            time.sleep(delay)
            process.kill()
        for path in place.raw.glob("[!.]*") if place.raw.exists() else ():
            assert path.read_bytes() == CONTENTS[path.name]
    place.run()
    assert place.has(CONTENTS)


# --- TLS and proxies ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trust(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """Return the environment that makes fetch trust `authority`."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    proxies = {f"{name}_proxy": "" for name in ("http", "https", "no")}
    return {"SSL_CERT_FILE": str(tmp_path / "ca.pem")} | proxies


def presenting(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_certificate_that_is_valid(
    place: Place, authority: trustme.CA, trust: dict[str, str]
) -> None:
    with mirror(respond, presenting(authority.issue_cert("127.0.0.1"))) as good:
        place.mirrors(good.url)
        assert place.run(env=trust)[0] == f"fetched Small from {good.url}\n"
    assert place.has(CONTENTS)


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "another host's"])
def test_certificate_that_is_not_goes_on_and_nothing_is_asked(
    place: Place, authority: trustme.CA, trust: dict[str, str], fault: str
) -> None:
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    certificate = {
        "unknown authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
        "expired": lambda: authority.issue_cert(
            "127.0.0.1", not_before=now - 2 * day, not_after=now - day
        ),
        "another host's": lambda: authority.issue_cert("mirror.example"),
    }[fault]()
    with mirror(respond, presenting(certificate)) as bad:
        place.mirrors(bad.url, "data/mirror/small/")
        out, err = place.run(env=trust)
        assert bad.requests == []
        assert bad.connections == 1
    assert out == "fetched Small from data/mirror/small/\n"
    assert "CERTIFICATE_VERIFY_FAILED" in err or "certificate" in err


def test_https_never_falls_back_to_http(place: Place) -> None:
    with mirror(respond) as plain:  # would give the right files
        place.mirrors(plain.url.replace("http:", "https:"), "data/mirror/small/")
        assert place.run()[0] == "fetched Small from data/mirror/small/\n"
        assert plain.requests == []


def test_redirect_from_https_to_http_is_refused(
    place: Place, authority: trustme.CA, trust: dict[str, str]
) -> None:
    def redirect(request: Request) -> None:
        request.answer(status=302, Location=plain.url)

    tls = presenting(authority.issue_cert("127.0.0.1"))
    with mirror(respond) as plain, mirror(redirect, tls) as bad:
        place.mirrors(bad.url, "data/mirror/small/")
        assert f"redirect to {plain.url} refused" in place.run(env=trust)[1]
        assert plain.requests == []


def test_https_goes_through_the_proxy_and_is_still_verified(
    place: Place, authority: trustme.CA, trust: dict[str, str]
) -> None:
    tls = presenting(authority.issue_cert("127.0.0.1"))
    with mirror(forward) as proxy, mirror(respond, tls) as good:
        place.mirrors(good.url, "data/mirror/small/")
        env = trust | {"https_proxy": proxy.url.removesuffix("data/")}
        assert place.run(env=env) == (f"fetched Small from {good.url}\n", "")
        assert {path for _, path in proxy.requests} == {f"127.0.0.1:{good.server_port}"}
        assert "CERTIFICATE" in place.run(env=env | {"SSL_CERT_FILE": os.devnull})[1]


NO_PROXY = {f"{name}_proxy": "" for name in ("http", "https", "all", "no")}


def test_a_proxy_with_a_password(place: Place) -> None:
    def forward_after_login(request: Request) -> None:
        if request.headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0":  # me:secret
            forward(request)
        else:
            request.answer(status=407)

    with mirror(forward_after_login) as proxy, mirror(respond) as good:
        place.mirrors(good.url)
        place.run(env=NO_PROXY | {"http_proxy": f"me:secret@127.0.0.1:{proxy.server_port}"})
        line = place.error(env=NO_PROXY | {"http_proxy": f"me@127.0.0.1:{proxy.server_port}"})
        assert f"{good.url}: HTTP 407 Proxy Authentication Required" in line


def test_a_dead_proxy_is_named_without_its_password(place: Place) -> None:
    with mirror(respond) as good:
        place.mirrors(good.url, "data/mirror/small/")
        _, err = place.run(env=NO_PROXY | {"http_proxy": f"me:secret@{refusing()}"})
        assert f"{good.url}: no connection: " in err
        assert err.endswith(", through the proxy of http_proxy\n")
        assert "secret" not in err


def test_proxy_that_refuses_goes_on(place: Place, trust: dict[str, str]) -> None:
    with mirror(lambda request: request.answer(status=403)) as proxy:
        place.mirrors("https://mirror.invalid/", "data/mirror/small/")
        env = trust | {"https_proxy": proxy.url.removesuffix("data/")}
        assert "no connection: 403" in place.run(env=env)[1]
        assert len(proxy.requests) == 1  # not for each of the four files


# --- Parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"connect_timeout": 0}, "limits.connect_timeout must be greater than 0, got 0"),
        ({"connect_timeout": 601}, "limits.connect_timeout must be less than or equal to 600"),
        ({"stall_timeout": -1}, "limits.stall_timeout must be greater than 0, got -1"),
        ({"stall_timeout": float("nan")}, "limits.stall_timeout must be a finite number, got .nan"),
        ({"stall_timeout": "15"}, "limits.stall_timeout must be a valid number, got '15'"),
        ({"retries": -1}, "limits.retries must be greater than or equal to 0, got -1"),
        ({"retries": 11}, "limits.retries must be less than or equal to 10, got 11"),
        ({"retries": 1.5}, "limits.retries must be a valid integer, got 1.5"),
        ({"retries": True}, "limits.retries must be a valid integer, got true"),
        ({"retries": None}, "limits.retries must be a valid integer, got null"),
    ],
)
def test_limits_are_validated_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], rule: str
) -> None:
    place.params(limits=LIMITS | change)
    monkeypatch.chdir(place.path)
    with pytest.raises(StageError, match=re.escape(f"params.yaml: {rule}")):
        fetch.main()
    assert not place.raw.exists()


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"dataset": "x"}, "fetch.dataset must be one of small, got 'x'"),
        ({"dataset": 1}, "fetch.dataset must be a valid string, got 1"),
        ({}, "fetch.dataset is missing"),
        ({"dataset": "small", "retries": 1}, "fetch.retries is not a known key"),
    ],
)
def test_parameters_are_validated_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], rule: str
) -> None:
    place.params(fetch=section)
    monkeypatch.chdir(place.path)
    with pytest.raises(StageError, match=re.escape(f"params.yaml: {rule}")):
        fetch.main()
    assert not place.raw.exists()


def test_limits_bound_the_attempts(place: Place) -> None:
    with full() as slow, silent() as mute, mirror(lambda r: r.answer(status=503)) as busy_one:
        place.mirrors(f"http://{slow}/", f"http://{mute}/", busy_one.url)
        place.params(limits={"connect_timeout": 0.6, "stall_timeout": 0.7, "retries": 1})
        line = place.error()
        assert "no connection in 0.6 s" in line
        assert "no answer in 0.7 s" in line
        assert "HTTP 503" in line
        assert max(Counter(path for _, path in busy_one.requests).values()) == 2


@pytest.mark.parametrize("missing", list(LIMITS))
def test_missing_limit(place: Place, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    place.params(limits={name: value for name, value in LIMITS.items() if name != missing})
    monkeypatch.chdir(place.path)
    with pytest.raises(StageError, match=f"params.yaml: limits.{missing} is missing"):
        fetch.main()


def test_limits_of_other_stages_are_theirs(place: Place) -> None:
    place.params(limits=LIMITS | {"worker_timeout": 60})
    place.run()
    assert place.has(CONTENTS)


def test_main_in_this_process(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.path)
    fetch.main()
    assert capsys.readouterr().out == "fetched Small from data/mirror/small/\n"
    assert place.has(CONTENTS)
