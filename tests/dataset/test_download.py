"""Whatever a mirror does, a download gives the right bytes or says why not.

Each mirror is a real server on loopback; the names of the tests follow what it does.
"""

import gzip
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from servers import (
    Request,
    bomb,
    full,
    mirror,
    presenting,
    refusing,
    separate,
    serving,
    silent,
)

from stages.dataset import catalogue, download
from stages.dataset.download import Limits, MirrorError, NoAnswerError

NAME = "train-images-idx3-ubyte"
# Bytes that do not compress, so that every block counts, then some that do.
CONTENT = bytes([0, 0, 8, 3]) + random.Random(0).randbytes(150_000) + bytes(50_000)
ARCHIVE = gzip.compress(CONTENT, mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = catalogue.File(size=len(CONTENT), sha256=SHA256)
FLIPPED = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
HALVES = gzip.compress(CONTENT[:70_000]) + gzip.compress(CONTENT[70_000:])

PATIENT = Limits(connect_timeout=20, stall_timeout=20, retries=1)  # ample on a busy machine
HASTY = Limits(connect_timeout=20, stall_timeout=0.5, retries=1)


@pytest.fixture(autouse=True)
def separated(monkeypatch: pytest.MonkeyPatch) -> None:
    separate(monkeypatch)


def get(source: str, limits: Limits = PATIENT, file: catalogue.File = FILE) -> None:
    """Download from a mirror; check what came, of which there is never too much."""
    came = b""
    try:
        with download.session(limits) as web:
            for chunk in download.chunks(web, source, NAME, file, limits):
                came += chunk
    finally:
        assert len(came) <= file.size
    assert came == CONTENT


def fault(source: str, limits: Limits = PATIENT) -> MirrorError:
    """Download from a mirror that fails; return how."""
    with pytest.raises(MirrorError) as error:
        get(source, limits)
    assert str(error.value).isprintable()
    return error.value


# --- It cannot be reached, or does not answer ---------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(15)
def test_it_cannot_be_reached_or_does_not_answer() -> None:
    slow = Limits(connect_timeout=0.3, stall_timeout=20, retries=1)
    with full() as address, silent() as mute:
        for source, limits, why in (
            ("http://mirror.invalid/", PATIENT, "no connection: its name cannot be resolved"),
            (f"http://{refusing()}/", PATIENT, "no connection: Connection refused"),
            (f"http://{address}/", slow, "no connection in time"),
            (f"https://{mute}/", slow, "no answer in time"),  # the handshake
            (f"http://{mute}/", HASTY, "no answer in time"),
        ):
            failed = fault(source, limits)
            assert str(failed) == why
            assert isinstance(failed, NoAnswerError)


@pytest.mark.parametrize("address", ["http://a:99999/", "http://a b/", "http://.../", "http://[a"])
def test_no_address(address: str) -> None:
    assert re.search("Failed to parse|[Ii]nvalid ", str(fault(address)))


# --- It answers with something else -------------------------------------------------------------


def shorter(request: Request) -> None:
    request.answer(ARCHIVE[:-20_000], Content_Length=str(len(ARCHIVE)))
    request.close_connection = True


def reset(request: Request) -> None:
    request.answer(ARCHIVE[:-20_000], Content_Length=str(len(ARCHIVE)))
    request.reset()


def hang_up(request: Request) -> None:
    request.close_connection = True


def no_http(request: Request) -> None:
    request.wfile.write(b"220 \x1b[31m ESMTP\r\n\r\n")
    request.close_connection = True


def repeated(block: bytes) -> Callable[[Request], None]:
    def respond(request: Request) -> None:
        request.answer(Content_Length="")
        while request.sleep(0):
            request.wfile.write(block)

    return respond


def stops(request: Request) -> None:
    request.answer(ARCHIVE[:100_000], Content_Length=str(len(ARCHIVE)))
    request.sleep(60)


def one_byte_at_a_time(request: Request) -> None:
    request.answer(Content_Length=str(len(ARCHIVE)))
    for byte in ARCHIVE:
        request.wfile.write(bytes([byte]))
        if not request.sleep(0.02):
            return


def sha256(content: bytes) -> str:
    return f"it has {len(content)} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}, not "


def redirecting(where: str) -> Callable[[Request], None]:
    return serving(status=302, Location=where)


PAGE = b"<!doctype html>"
CUT = "Compressed file ended before the end-of-stream marker"
MORE = f"unpacked, it has more than {len(CONTENT)} bytes"
FAULTS: dict[str, tuple[Callable[[Request], None], str]] = {
    "404": (serving(status=404), "HTTP 404"),
    "206": (serving(ARCHIVE, 206), "HTTP 206"),
    "302 to nowhere": (serving(ARCHIVE, 302), "HTTP 302"),
    "two lengths": (serving(ARCHIVE, Content_Length="5, 6"), "Content-Length contained multiple"),
    "web page": (serving(PAGE), sha256(PAGE)),
    "nothing": (serving(b""), sha256(b"")),
    "archive of nothing": (serving(gzip.compress(b"")), sha256(b"")),
    "flipped bit": (serving(gzip.compress(FLIPPED)), sha256(FLIPPED)),
    "flipped bit, unpacked": (serving(FLIPPED), sha256(FLIPPED)),
    "one byte more": (serving(gzip.compress(CONTENT + b"\0")), MORE),
    "gzip cut short": (serving(ARCHIVE[:-1]), CUT),
    "its second member cut short": (serving(HALVES[:-1]), CUT),
    "junk after its end": (serving(ARCHIVE + b"junk"), "Not a gzipped file"),
    "wrong CRC": (serving(ARCHIVE[:-8] + bytes(8)), "CRC check failed"),
    "no such block": (serving(ARCHIVE[:10] + b"\xff" * 99), "invalid block type"),
    "gzip bomb of 10 GB": (serving(bomb(10_000)), MORE),
    "endless": (repeated(bytes(65536)), MORE),
    "endless archive of nothing": (repeated(gzip.compress(b"") * 1000), "it has far more bytes"),
    "redirect to a file": (
        redirecting("file:///etc/passwd"),
        "No connection adapters were found for 'file:///etc/passwd'",
    ),
    "redirect to ftp": (redirecting("ftp://a/"), "No connection adapters were found"),
    "redirect to nonsense": (redirecting("http://["), "Invalid IPv6 URL"),
    "redirect to control characters": (redirecting("http://\x1b.../"), "Failed to parse"),
    "redirect loop": (redirecting("/data/"), "Exceeded 30 redirects"),
    "short body": (shorter, "broke off: IncompleteRead"),
    "reset": (reset, "broke off: Connection reset by peer"),
    "hang up": (hang_up, "broke off: Remote end closed"),
    "no HTTP": (no_http, "broke off: 220 ?[31m ESMTP"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FAULTS)
def test_what_is_asked_once_and_why_it_failed(name: str) -> None:
    respond, why = FAULTS[name]
    with mirror(respond) as bad:
        assert why in str(fault(bad.url))
        assert len(bad.requests) == (31 if name == "redirect loop" else 1)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    def once(request: Request) -> None:
        (serving(ARCHIVE) if len(bad.requests) > 1 else serving(status=status))(request)

    with mirror(serving(status=status)) as bad:
        assert str(fault(bad.url)) == f"HTTP {status}"
        assert len(bad.requests) == 1 + PATIENT.retries
    with mirror(once) as bad:
        get(bad.url)
        assert len(bad.requests) == 2


@pytest.mark.slow
@pytest.mark.timeout(15)
def test_it_says_when_to_ask_again_but_is_not_waited_for_without_end() -> None:
    def respond(request: Request) -> None:
        if len(bad.requests) == 1:
            request.answer(status=503, Retry_After="1")
        else:
            request.answer(ARCHIVE)

    start = time.monotonic()
    with mirror(respond) as bad:
        get(bad.url)
    assert time.monotonic() - start > 0.9
    with mirror(serving(status=503, Retry_After="9999")) as bad:
        assert str(fault(bad.url, HASTY)).startswith("HTTP 503")


@pytest.mark.slow
@pytest.mark.timeout(15)
@pytest.mark.parametrize("respond", [stops, one_byte_at_a_time])
def test_no_progress(respond: Callable[[Request], None]) -> None:
    with mirror(respond) as bad:
        failed = fault(bad.url, HASTY)
        assert str(failed) == "no progress in time"
        assert len(bad.requests) == 1


def test_size_and_hash_must_both_be_right() -> None:
    file = catalogue.File(size=len(CONTENT) + 1, sha256=SHA256)
    with mirror(serving(ARCHIVE)) as bad, pytest.raises(MirrorError) as error:
        get(bad.url, file=file)
    assert f"has {len(CONTENT)} bytes with SHA-256 {SHA256}, not {file.size} with" in str(
        error.value
    )


# --- It sends the right bytes in an unusual way -------------------------------------------------


def without_length(request: Request) -> None:
    request.answer(ARCHIVE, Content_Length="")
    request.close_connection = True


def small_pieces(request: Request) -> None:
    request.answer(Content_Length=str(len(ARCHIVE)))
    for start in range(100):
        request.wfile.write(ARCHIVE[start : start + 1])
        request.wfile.flush()
    request.wfile.write(ARCHIVE[100:])


def slowly(request: Request) -> None:
    """Take longer than the stall timeout, but never stall."""
    request.answer(Content_Length=str(len(CONTENT)))
    for start in range(0, len(CONTENT), 1 << 15):
        request.wfile.write(CONTENT[start : start + (1 << 15)])
        request.sleep(0.2)


def elsewhere(request: Request) -> None:
    if "elsewhere" in request.path:
        request.answer(ARCHIVE)
    else:
        request.answer(status=301, Location="../elsewhere")


RIGHT: dict[str, Callable[[Request], None]] = {
    "properly": serving(ARCHIVE),
    "no Content-Length": without_length,
    "small pieces": small_pieces,
    "redirect": elsewhere,
    "Content-Encoding for the gz": serving(ARCHIVE, Content_Encoding="gzip"),
    "plain IDX under the gz name": serving(CONTENT),
    "two members": serving(HALVES),
    "padded with zeros, as tapes are": serving(ARCHIVE + bytes(1000)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_bytes_sent(name: str) -> None:
    with mirror(RIGHT[name]) as good:
        get(good.url)


@pytest.mark.slow
def test_slow_but_making_progress_is_waited_for() -> None:
    with mirror(slowly) as slow:
        start = time.monotonic()
        get(slow.url, HASTY)
        assert time.monotonic() - start > HASTY.stall_timeout


def test_it_is_asked_not_to_pack_what_is_packed_already() -> None:
    def respond(request: Request) -> None:
        asked.append((request.path, request.headers.get_all("Accept-Encoding")))
        request.answer(ARCHIVE)

    asked: list[tuple[str, list[str] | None]] = []
    with mirror(respond) as good:
        get(good.url)
    assert asked == [(f"/data/{NAME}.gz", ["identity"])]


# --- Certificates, proxies, passwords -----------------------------------------------------------


def test_a_certificate_of_an_authority_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    with mirror(serving(ARCHIVE), presenting(authority.issue_cert("127.0.0.1"))) as good:
        failed = fault(good.url)
        assert str(failed) == (
            "its certificate cannot be verified: unable to get local issuer certificate "
            "(set REQUESTS_CA_BUNDLE)"
        )
        assert good.requests == []
        bundle = tmp_path / "ca.pem"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        assert f"invalid path: {bundle}" in str(fault(good.url))
        authority.cert_pem.write_to_path(str(bundle))
        get(good.url)


def test_https_is_not_spoken() -> None:
    with mirror(serving(ARCHIVE)) as plain:
        failed = fault(plain.url.replace("http:", "https:"))
        assert str(failed).startswith("no connection: [SSL")
        assert plain.requests == []


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_login(request: Request) -> None:
        if request.headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0":  # me:secret
            request.answer(ARCHIVE)
        else:
            request.answer(status=407)

    with mirror(after_login) as proxy:
        address = f"127.0.0.1:{proxy.server_port}"
        monkeypatch.setenv("http_proxy", f"http://me:secret@{address}")
        get("http://mirror.invalid/data/")
        assert proxy.requests == [f"http://mirror.invalid/data/{NAME}.gz"]
        monkeypatch.setenv("ALL_PROXY", address)
        failed = fault("https://mirror.invalid/")
        assert str(failed) == (
            "no connection through the proxy of the environment: "
            "Tunnel connection failed: 407 Proxy Authentication Required"
        )
        assert proxy.requests[1:] == ["mirror.invalid:443"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "refused" in str(fault(f"http://{refusing()}/"))


def test_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:secret@{refusing()}")
    why = "no connection through the proxy of the environment: Connection refused"
    assert str(fault("http://mirror.invalid/")) == why


def test_passwords_in_the_address_and_in_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_login(request: Request) -> None:
        if request.headers["Authorization"] == "Basic bWU6YS9zZWNyZXQ=":  # me:a/secret
            request.answer(ARCHIVE)
        else:
            request.answer(status=401)

    with mirror(after_login) as good:
        get(good.url.replace("//", "//me:a%2Fsecret@"))
        assert str(fault(good.url)) == "HTTP 401"
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password a/secret\n")
        monkeypatch.delenv("NETRC")
        monkeypatch.setenv("HOME", str(tmp_path))
        get(good.url)


# --- Folders ------------------------------------------------------------------------------------


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.gz").write_bytes(ARCHIVE)
    (tmp_path / NAME).write_bytes(b"not this one: there is an archive too")
    get(str(tmp_path))


@pytest.mark.parametrize("name", [NAME, f"{NAME}.gz"])
def test_a_file_that_a_browser_has_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    get(str(tmp_path))


@pytest.mark.timeout(20)
def test_folders_that_do_not_have_the_file(tmp_path: Path) -> None:
    def why() -> str:
        return str(fault(f"{folder}/"))

    folder = tmp_path / "folder"
    assert why() == "No such file or directory"
    folder.symlink_to(folder)
    assert "ymbolic links" in why()  # too many of them
    folder.unlink()
    folder.write_text("a file")
    assert why() == "Not a directory"
    folder.unlink()
    folder.mkdir()
    assert why() == f"no file {NAME}.gz or {NAME}, but nothing"
    os.mkfifo(folder / f"{NAME}.gz")  # opening it would wait for a writer, for ever
    (folder / NAME).mkdir()
    assert why() == f"no file {NAME}.gz or {NAME}, but {NAME}, {NAME}.gz"
    for name in ("images", "labels"):  # as Kaggle has them
        (folder / f"train-{name}.idx3-ubyte").touch()
        (folder / f"t10k-{name}.idx3-ubyte").touch()
    assert why() == (
        f"no file {NAME}.gz or {NAME}, but t10k-images.idx3-ubyte, t10k-labels.idx3-ubyte, "
        f"{NAME}, {NAME}.gz, train-images.idx3-ubyte, train-labels.idx3-ubyte"
    )
    for number in range(20):
        (folder / f"another {number}").touch()
    assert why().endswith(", another 6, ...")
    (folder / f"{NAME}.gz").unlink()
    (folder / f"{NAME}.gz").symlink_to("/proc/self/mem")  # reading its start fails
    assert why() == "Input/output error"
    (folder / f"{NAME}.gz").unlink()
    (folder / f"{NAME}.gz").write_bytes(gzip.compress(FLIPPED))
    assert SHA256 in why()
