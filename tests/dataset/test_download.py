"""Whatever a mirror does, a download gives the right bytes or says why not.

Each mirror is a real server on loopback; the names of the tests follow what it does.
"""

import gzip
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from servers import Request, full, mirror, presenting, refusing, separate, serving, silent

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
    return error.value


# --- It cannot be reached, or does not answer ---------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(15)
def test_it_cannot_be_reached_or_does_not_answer() -> None:
    slow = Limits(connect_timeout=0.3, stall_timeout=20, retries=1)
    with full() as address, silent() as mute:
        for source, limits, why in (
            ("http://mirror.invalid/", PATIENT, "ConnectionError: [Errno -"),  # the name's
            (f"http://{refusing()}/", PATIENT, "ConnectionError: [Errno 111] Connection refused"),
            (f"http://{address}/", slow, "ConnectTimeout: timed out"),
            (f"https://{mute}/", slow, "ReadTimeout: "),  # the handshake
            (f"http://{mute}/", HASTY, "ReadTimeout: timed out"),
            ("http://a b/", PATIENT, "InvalidURL: Failed to parse: Host 'a b' contains"),
            ("s3://bucket/", PATIENT, "InvalidSchema: No connection adapters were found for 's3:"),
        ):
            failed = fault(source, limits)
            assert str(failed).startswith(why)
            assert isinstance(failed, NoAnswerError)


# --- It answers with something else -------------------------------------------------------------


def shorter(request: Request) -> None:
    request.answer(ARCHIVE[:-20_000], Content_Length=str(len(ARCHIVE)))
    request.close_connection = True


def hang_up(request: Request) -> None:
    request.close_connection = True


def repeated(block: bytes) -> Callable[[Request], None]:
    def respond(request: Request) -> None:
        request.answer(Content_Length="")
        while request.sleep(0):
            request.wfile.write(block)

    return respond


def sha256(content: bytes) -> str:
    return f"it has {len(content)} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}, not "


def redirecting(where: str) -> Callable[[Request], None]:
    return serving(status=302, Location=where)


PAGE = b"<!doctype html>"
MORE = f"unpacked, it has more than {len(CONTENT)} bytes"
FAULTS: dict[str, tuple[Callable[[Request], None], str]] = {
    "404": (serving(status=404), "HTTP 404"),
    "206": (serving(ARCHIVE, 206), "HTTP 206"),
    "web page": (serving(PAGE), sha256(PAGE)),
    "nothing": (serving(b""), sha256(b"")),
    "flipped bit": (serving(gzip.compress(FLIPPED)), sha256(FLIPPED)),
    "one byte more": (serving(gzip.compress(CONTENT + b"\0")), MORE),
    "gzip cut short": (serving(ARCHIVE[:-1]), "EOFError: Compressed file ended before"),
    "wrong CRC": (serving(ARCHIVE[:-8] + bytes(8)), "BadGzipFile: CRC check failed"),
    "no such block": (serving(ARCHIVE[:10] + b"\xff" * 99), "invalid block type"),
    "gzip bomb": (serving(gzip.compress(bytes(1 << 20)) * 1000), MORE),
    "endless": (repeated(bytes(65536)), MORE),
    "endless archive of nothing": (repeated(gzip.compress(b"") * 1000), "it has far more bytes"),
    "redirect to a file": (redirecting("file:///etc/passwd"), "InvalidSchema: No connection"),
    "redirect to nonsense": (redirecting("http://["), "ValueError: Invalid IPv6 URL"),
    "short body": (shorter, "ProtocolError: IncompleteRead"),
    "hang up": (hang_up, "ConnectionError: Remote end closed"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FAULTS)
def test_what_is_asked_once_and_why_it_failed(name: str) -> None:
    respond, why = FAULTS[name]
    with mirror(respond) as bad:
        assert why in str(fault(bad.url))
        assert len(bad.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    def once(request: Request) -> None:
        (serving(ARCHIVE) if len(bad.requests) > 1 else serving(status=status))(request)

    with mirror(serving(status=status)) as bad:
        assert str(fault(bad.url)) == f"HTTP {status}"
        assert len(bad.requests) == 1 + PATIENT.retries
    with mirror(once) as bad:
        get(bad.url)


@pytest.mark.slow
@pytest.mark.timeout(15)
def test_it_says_when_to_ask_again_but_is_not_waited_for_without_end() -> None:
    with mirror(serving(status=503, Retry_After="9999")) as bad:
        assert str(fault(bad.url, HASTY)) == "HTTP 503"


def stops(request: Request) -> None:
    request.answer(ARCHIVE[:100_000], Content_Length=str(len(ARCHIVE)))
    request.sleep(60)


def one_byte_at_a_time(request: Request) -> None:
    request.answer(Content_Length=str(len(ARCHIVE)))
    for byte in ARCHIVE:
        request.wfile.write(bytes([byte]))
        if not request.sleep(0.02):
            return


@pytest.mark.slow
@pytest.mark.timeout(15)
@pytest.mark.parametrize(
    ("respond", "why"),
    [(stops, "ReadTimeoutError: timed out"), (one_byte_at_a_time, "no progress in time")],
)
def test_no_progress(respond: Callable[[Request], None], why: str) -> None:
    with mirror(respond) as bad:
        assert str(fault(bad.url, HASTY)) == why
        assert len(bad.requests) == 1


def test_size_and_hash_must_both_be_right() -> None:
    file = catalogue.File(size=len(CONTENT) + 1, sha256=SHA256)
    with mirror(serving(ARCHIVE)) as bad, pytest.raises(MirrorError) as error:
        get(bad.url, file=file)
    assert str(error.value).endswith(f"{sha256(CONTENT)}{file.size} with {SHA256}")


# --- It sends the right bytes in an unusual way -------------------------------------------------


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


def packing(request: Request) -> None:
    """Pack what is packed already, unless that is not wanted."""
    wanted = request.headers["Accept-Encoding"]
    request.answer(ARCHIVE if wanted == "identity" else gzip.compress(ARCHIVE))


RIGHT: dict[str, Callable[[Request], None]] = {
    "small pieces": small_pieces,
    "redirect": elsewhere,
    "packed twice, if asked": packing,
    "Content-Encoding for the gz": serving(ARCHIVE, Content_Encoding="gzip"),
    "plain IDX under the gz name": serving(CONTENT),
    "two members": serving(gzip.compress(CONTENT[:70_000]) + gzip.compress(CONTENT[70_000:])),
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


# --- Certificates, proxies, passwords: what the environment says counts -------------------------


def test_a_certificate_of_an_authority_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    with mirror(serving(ARCHIVE), presenting(authority.issue_cert("127.0.0.1"))) as good:
        assert str(fault(good.url)).startswith("SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] ")
        assert good.requests == []
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        get(good.url)


def test_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_login(request: Request) -> None:
        if request.headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0":  # me:secret
            request.answer(ARCHIVE)

    with mirror(after_login) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.server_port}")
        get("http://mirror.invalid/data/")
        assert proxy.requests == [f"http://mirror.invalid/data/{NAME}.gz"]
    why = "ProxyError: [Errno 111] Connection refused"
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


def test_a_folder_without_the_file_or_with_a_wrong_one(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.gz").mkdir()
    assert str(fault(f"{tmp_path}/")) == f"no file {NAME}.gz or {NAME}"
    (tmp_path / NAME).write_bytes(FLIPPED)
    assert sha256(FLIPPED) in str(fault(str(tmp_path)))
