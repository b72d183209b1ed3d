"""Whatever a mirror does, a download gives the right bytes or goes on to the next mirror.

Each mirror is a real server on loopback; the names of the tests follow what it does.
"""

import asyncio
import functools
import gzip
import hashlib
import io
import os
import random
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from servers import Request, bomb, forward, full, mirror, refusing, silent

from stages.common.errors import StageError
from stages.dataset import catalogue
from stages.dataset import download as module
from stages.dataset.download import Downloads
from stages.dataset.web import Limits, MirrorError

pytestmark = pytest.mark.slow  # servers
NAME = "train-images-idx3-ubyte"
# Bytes that do not compress, so that every block counts, then some that do.
CONTENT = bytes([0, 0, 8, 3]) + random.Random(0).randbytes(150_000) + bytes(50_000)
ARCHIVE = gzip.compress(CONTENT, mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FLIPPED = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]

FILE = catalogue.File(size=len(CONTENT), sha256=SHA256)

PATIENT = Limits(connect_timeout=20, stall_timeout=20, retries=2)
HASTY = Limits(connect_timeout=1, stall_timeout=0.7, retries=2)
STALLED = Limits(connect_timeout=20, stall_timeout=0.7, retries=2)


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.01)


@pytest.fixture
def bundled(tmp_path: Path) -> str:
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / f"{NAME}.gz").write_bytes(ARCHIVE)
    return f"{folder}/"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def download(
    target: Path, *mirrors: str, limits: Limits = PATIENT, names: tuple[str, ...] = (NAME,)
) -> tuple[str, dict[str, str]]:
    """Download `names`, all of the same content; return which mirror had the last, and failures."""

    async def run() -> tuple[str, dict[str, str]]:
        async with aclosing(Downloads(limits, written.append)) as downloads:
            tasks = [
                downloads.fetch(name, list(mirrors), FILE, Path(f"{target}{n}"))
                for n, name in enumerate(names)
            ]
            return (await asyncio.gather(*tasks))[-1]

    written: list[int] = []
    result = asyncio.run(run())
    for n in range(len(names)):
        assert Path(f"{target}{n}").read_bytes() == CONTENT
    assert sum(written) == len(CONTENT) * len(names)  # what failed is taken back
    return result


def reason(target: Path, bad: str, bundled: str, limits: Limits = PATIENT) -> str:
    """Download from `bundled` because `bad` fails; return why it does."""
    used, failures = download(target, bad, bundled, limits=limits)
    assert used == bundled
    assert list(failures) == [bad]
    return failures[bad]


def serving(body: bytes, status: int = 200, **headers: str) -> Callable[[Request], None]:
    return lambda request: request.answer(body, status, **headers)


# --- It cannot be reached, or does not answer -------------------------------------------------


def test_name_does_not_resolve(target: Path, bundled: str) -> None:
    assert "no connection" in reason(target, "http://mirror.invalid/", bundled)


def test_connection_refused(target: Path, bundled: str) -> None:
    assert "no connection" in reason(target, f"http://{refusing()}/", bundled)


def test_connecting_takes_for_ever(target: Path, bundled: str) -> None:
    with full() as address:
        start = time.monotonic()
        assert reason(target, f"http://{address}/", bundled, HASTY) == "no connection in 1 s"
        assert time.monotonic() - start < 6


def test_tls_handshake_takes_for_ever(target: Path, bundled: str) -> None:
    with silent() as address:
        assert reason(target, f"https://{address}/", bundled, HASTY) == "no connection in 1 s"


def test_accepts_and_never_answers(target: Path, bundled: str) -> None:
    with silent() as address:
        start = time.monotonic()
        assert reason(target, f"http://{address}/", bundled, HASTY) == "no answer in 0.7 s"
        assert time.monotonic() - start < 6


def test_headers_of_one_byte_at_a_time(target: Path, bundled: str) -> None:
    def respond(request: Request) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 1000:
            request.wfile.write(bytes([byte]))
            if not request.sleep(0.02):
                return

    with mirror(respond) as bad:
        assert reason(target, bad.url, bundled, HASTY) == "no answer in 0.7 s"


def test_body_of_one_byte_at_a_time(target: Path, bundled: str) -> None:
    def respond(request: Request) -> None:
        request.answer(Content_Length=str(len(ARCHIVE)))
        for byte in ARCHIVE:
            request.wfile.write(bytes([byte]))
            if not request.sleep(0.02):
                return

    with mirror(respond) as bad:
        start = time.monotonic()
        assert reason(target, bad.url, bundled, STALLED) == "no progress in 0.7 s"
        assert time.monotonic() - start < 6
        assert len(bad.requests) == 1  # one that stalls is not asked twice


def test_stops_in_the_middle_of_the_body(target: Path, bundled: str) -> None:
    def respond(request: Request) -> None:
        request.answer(ARCHIVE[:100_000], Content_Length=str(len(ARCHIVE)))
        request.sleep(60)

    with mirror(respond) as bad:
        assert reason(target, bad.url, bundled, STALLED) == "no progress in 0.7 s"


def test_slow_but_making_progress_is_waited_for(target: Path) -> None:
    def respond(request: Request) -> None:
        request.answer(Content_Length=str(len(ARCHIVE)))
        for start in range(0, len(ARCHIVE), 16384):
            request.wfile.write(ARCHIVE[start : start + 16384])
            request.sleep(0.3)

    limits = Limits(connect_timeout=20, stall_timeout=1.5, retries=0)
    with mirror(respond) as slow:  # takes longer than the stall timeout, but never stalls
        start = time.monotonic()
        assert download(target, slow.url, limits=limits) == (slow.url, {})
        assert time.monotonic() - start > limits.stall_timeout


def test_a_mirror_that_failed_to_connect_is_not_asked_for_the_other_files(
    target: Path, bundled: str
) -> None:
    limits = Limits(connect_timeout=1, stall_timeout=20, retries=2)
    with full() as address:
        start = time.monotonic()
        download(target, f"http://{address}/", bundled, limits=limits, names=(NAME,) * 4)
        assert time.monotonic() - start < 3  # one timeout, not one for each file


def test_a_mirror_whose_handshake_failed_is_not_asked_for_the_other_files(
    target: Path, bundled: str
) -> None:
    with mirror(serving(ARCHIVE)) as plain:  # does not speak TLS
        url = plain.url.replace("http:", "https:")
        download(target, url, bundled, names=(NAME,) * 4)
        assert plain.connections == 1


def test_a_mirror_that_never_answers_is_asked_once_for_four_files(
    target: Path, bundled: str
) -> None:
    def respond(request: Request) -> None:
        request.sleep(60)

    with mirror(respond) as bad:
        download(target, bad.url, bundled, limits=HASTY, names=(NAME,) * 4)
        assert bad.connections == 1


def test_a_dead_host_behind_a_redirect_is_asked_once(target: Path, bundled: str) -> None:
    def hang(request: Request) -> None:
        request.sleep(60)

    with mirror(hang) as dead:
        with mirror(serving(b"", 302, Location=dead.url)) as bad:
            download(target, bad.url, bundled, limits=HASTY, names=(NAME,) * 4)
            assert len(bad.requests) == 4
        assert dead.connections == 1


# --- It answers with an error -----------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 204, 206, 304, 501])
def test_status_that_is_final_goes_on_at_once(status: int, target: Path, bundled: str) -> None:
    with mirror(serving(ARCHIVE if status == 206 else b"", status)) as bad:
        assert reason(target, bad.url, bundled).startswith(f"HTTP {status} ")
        assert len(bad.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_status_that_may_pass_is_retried_with_back_off_then_next(
    status: int, target: Path, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.1)
    with mirror(serving(b"", status)) as bad:
        assert reason(target, bad.url, bundled).startswith(f"HTTP {status} ")
        first, second, third = bad.times
        assert second - first >= 0.1
        assert third - second >= 0.2


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_status_that_passes_gives_the_file(status: int, target: Path) -> None:
    def respond(request: Request) -> None:
        request.answer(*((b"", status) if len(bad.requests) < 3 else (ARCHIVE,)))

    with mirror(respond) as bad:
        assert download(target, bad.url) == (bad.url, {})


def test_retry_after_is_honoured(target: Path) -> None:
    def respond(request: Request) -> None:
        if len(bad.requests) > 1:
            request.answer(ARCHIVE)
        else:
            request.answer(status=503, Retry_After="1")

    with mirror(respond) as bad:
        download(target, bad.url)
        assert 0.9 < bad.times[1] - bad.times[0] < 5


@pytest.mark.parametrize("value", ["86400", "9" * 400])
def test_retry_after_longer_than_the_stall_timeout_goes_on(
    value: str, target: Path, bundled: str
) -> None:
    with mirror(serving(b"", 429, Retry_After=value)) as bad:
        assert "asks to wait" in reason(target, bad.url, bundled)
        assert len(bad.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_retry_after_that_is_no_number_is_ignored(value: str, target: Path, bundled: str) -> None:
    with mirror(serving(b"", 503, Retry_After=value)) as bad:
        reason(target, bad.url, bundled)
        assert len(bad.requests) == 3


@pytest.mark.parametrize(
    "line", [b"220 ftp.example ESMTP\r\n\r\n", b"\0" * 100, b"HTTP/1.1 OK\r\n\r\n"]
)
def test_answer_is_not_http(line: bytes, target: Path, bundled: str) -> None:
    def respond(request: Request) -> None:
        request.wfile.write(line)
        request.close_connection = True

    with mirror(respond) as bad:
        assert "not understood" in reason(target, bad.url, bundled)


# --- It answers with something else -----------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<!doctype html><title>Welcome</title>", id="HTML page"),
        pytest.param(gzip.compress(bytes([0, 0, 8, 1]) + bytes(60)), id="another data set"),
        pytest.param(gzip.compress(FLIPPED), id="right size, one bit flipped"),
        pytest.param(FLIPPED, id="right size, one bit flipped, not packed"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\0", id="one byte"),
        pytest.param(gzip.compress(b""), id="archive of nothing"),
        pytest.param(gzip.compress(gzip.compress(ARCHIVE)), id="packed three times"),
    ],
)
def test_wrong_content_names_both_hashes(body: bytes, target: Path, bundled: str) -> None:
    unpacked = body
    for _ in range(2):
        if unpacked.startswith(b"\x1f\x8b"):
            unpacked = gzip.decompress(unpacked)
    with mirror(serving(body)) as bad:
        why = reason(target, bad.url, bundled)
        assert hashlib.sha256(unpacked).hexdigest() in why
        assert SHA256 in why
        assert f"{len(unpacked)} bytes" in why
        assert len(bad.requests) == 1


@pytest.mark.parametrize("body", [CONTENT + b"\0", gzip.compress(CONTENT + b"\0")])
def test_one_byte_too_many(body: bytes, target: Path, bundled: str) -> None:
    with mirror(serving(body)) as bad:
        assert "more than 200004 bytes" in reason(target, bad.url, bundled)


# --- It breaks off ----------------------------------------------------------------------------


def shorter(request: Request) -> None:
    request.answer(ARCHIVE[:-20_000], Content_Length=str(len(ARCHIVE)))
    request.close_connection = True


def reset(request: Request) -> None:
    request.answer(ARCHIVE[:-20_000], Content_Length=str(len(ARCHIVE)))
    request.reset()


def hang_up(request: Request) -> None:
    request.close_connection = True


def chunk_cut_short(request: Request) -> None:
    request.answer(Content_Length="", Transfer_Encoding="chunked")
    request.wfile.write(b"30000\r\n" + ARCHIVE[:1000])
    request.close_connection = True


BREAKS = pytest.mark.parametrize("respond", [shorter, reset, hang_up, chunk_cut_short])


@BREAKS
def test_breaks_off_each_time_is_retried_then_next(
    respond: Callable[[Request], None], target: Path, bundled: str
) -> None:
    with mirror(respond) as bad:
        assert "broke off" in reason(target, bad.url, bundled)
        # aiohttp itself asks again, once, when the connection ends before the answer.
        attempts = len(bad.requests) / (2 if respond is hang_up else 1)
        assert attempts == PATIENT.retries + 1


@BREAKS
def test_breaks_off_once_gives_the_file(respond: Callable[[Request], None], target: Path) -> None:
    def once(request: Request) -> None:
        (respond if len(bad.requests) == 1 else serving(ARCHIVE))(request)

    with mirror(once) as bad:
        assert download(target, bad.url) == (bad.url, {})


# --- It sends the right bytes in an unusual way -----------------------------------------------


def without_length(request: Request) -> None:
    request.answer(ARCHIVE, Content_Length="")
    request.close_connection = True


def chunked(request: Request) -> None:
    request.answer(Content_Length="", Transfer_Encoding="chunked")
    for start in range(0, len(ARCHIVE), 7001):
        piece = ARCHIVE[start : start + 7001]
        request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    request.wfile.write(b"0\r\n\r\n")


HALVES = gzip.compress(CONTENT[:70_000]) + gzip.compress(CONTENT[70_000:])


@pytest.mark.parametrize(
    "respond",
    [
        pytest.param(serving(ARCHIVE), id="properly"),
        pytest.param(without_length, id="no Content-Length"),
        pytest.param(chunked, id="chunked"),
        pytest.param(
            serving(gzip.compress(ARCHIVE), Content_Encoding="gzip"),
            id="Content-Encoding gzip on top of gz",
        ),
        pytest.param(serving(ARCHIVE, Content_Encoding="gzip"), id="Content-Encoding for the gz"),
        pytest.param(serving(CONTENT), id="plain IDX under the gz name"),
        pytest.param(serving(CONTENT, Content_Encoding="gzip"), id="plain, said to be encoded"),
        pytest.param(serving(CONTENT, Content_Type="application/gzip"), id="plain, called gzip"),
        pytest.param(serving(HALVES), id="two members"),
        pytest.param(serving(gzip.compress(b"") + HALVES + gzip.compress(b"")), id="empty members"),
        pytest.param(serving(ARCHIVE + bytes(1000)), id="padded with zeros, as tapes are"),
        pytest.param(serving(gzip.compress(CONTENT, 0)), id="stored, not compressed"),
    ],
)
def test_right_bytes_sent(respond: Callable[[Request], None], target: Path) -> None:
    with mirror(respond) as good:
        assert download(target, good.url) == (good.url, {})


def test_no_content_encoding_is_asked_for(target: Path) -> None:
    # An archive that is packed again is more work for both sides, and some servers do it wrong.
    def respond(request: Request) -> None:
        asked.append(request.headers.get_all("Accept-Encoding"))
        request.answer(ARCHIVE)

    asked: list[list[str] | None] = []
    with mirror(respond) as good:
        download(target, good.url)
    assert asked == [["identity"]]


def test_scheme_in_capitals(target: Path) -> None:
    with mirror(serving(ARCHIVE)) as good:
        url = good.url.replace("http", "HTTP")
        assert download(target, url) == (url, {})


def read_at_most(file: io.BytesIO, step: int, count: int) -> bytes:
    return file.read(min(step, count))


@pytest.mark.parametrize("kind", ["zeros", "random"])
@pytest.mark.parametrize("size", [1 << 14, 1 << 18, 1 << 19, (1 << 19) + 1])
def test_sizes_at_the_borders_of_blocks_and_chunks(kind: str, size: int) -> None:
    content = bytes(size) if kind == "zeros" else random.Random(0).randbytes(size)
    archive = gzip.compress(content)
    for packed in (archive, gzip.compress(archive), content):
        for step in (1000, 1 << 14, len(packed)):
            read = functools.partial(read_at_most, io.BytesIO(packed), step)
            assert b"".join(module._unpacked(read, size)) == content


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000])
def test_right_bytes_in_small_pieces(size: int, target: Path) -> None:
    def respond(request: Request) -> None:
        request.answer(Content_Length=str(len(HALVES)))
        for start in range(0, 100 * size, size):
            request.wfile.write(HALVES[start : start + size])
        request.wfile.write(HALVES[100 * size :])

    with mirror(respond) as good:
        assert download(target, good.url) == (good.url, {})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(ARCHIVE[:-1], "cut short", id="last byte missing"),
        pytest.param(ARCHIVE[:-100_000], "cut short", id="half"),
        pytest.param(ARCHIVE[:5], "cut short", id="within the header"),
        pytest.param(HALVES[:-1], "cut short", id="second member cut short"),
        pytest.param(ARCHIVE[:-8] + bytes(4) + ARCHIVE[-4:], "damaged", id="CRC wrong"),
        pytest.param(ARCHIVE[:-4] + bytes(4), "damaged", id="length wrong"),
        pytest.param(ARCHIVE + b"junk", "damaged", id="junk after the end"),
        pytest.param(ARCHIVE + b"\x1f", "cut short", id="one byte of a member after the end"),
        pytest.param(ARCHIVE[:500] + bytes(50) + ARCHIVE[550:], "damaged|SHA", id="hole"),
        pytest.param(ARCHIVE[:10] + b"\xff" * 100, "damaged", id="no block of that type"),
        pytest.param(gzip.compress(ARCHIVE[:-1]), "cut short", id="cut short, then packed"),
    ],
)
def test_damaged_gzip(body: bytes, why: str, target: Path, bundled: str) -> None:
    with mirror(serving(body)) as bad:
        assert re.search(why, reason(target, bad.url, bundled))
        assert len(bad.requests) == 1


# --- It never ends ----------------------------------------------------------------------------


def repeated(block: bytes) -> Callable[[Request], None]:
    def respond(request: Request) -> None:
        request.answer(Content_Length="")
        while request.sleep(0):
            request.wfile.write(block)

    return respond


EMPTY_MEMBERS = gzip.compress(b"", mtime=0) * 1000


def test_a_short_body_that_unpacks_to_gzip_of_nothing_again_and_again(
    target: Path, bundled: str
) -> None:
    with mirror(serving(gzip.compress(EMPTY_MEMBERS * 100))) as bad:
        assert "far more bytes" in reason(target, bad.url, bundled)


def test_size_and_hash_must_both_be_right() -> None:
    file = catalogue.File(size=len(CONTENT) + 1, sha256=SHA256)
    with pytest.raises(MirrorError, match=f"it has {len(CONTENT)} bytes"):
        list(module._verified(io.BytesIO(CONTENT).read, file))


@pytest.mark.parametrize(
    ("block", "why"),
    [
        pytest.param(bytes(65536), "more than 200004 bytes", id="zeros"),
        pytest.param(EMPTY_MEMBERS, "far more bytes", id="gzip of nothing, again and again"),
        pytest.param(gzip.compress(EMPTY_MEMBERS * 100), "far more bytes", id="the same, packed"),
    ],
)
def test_endless_body_is_stopped(block: bytes, why: str, target: Path, bundled: str) -> None:
    with mirror(repeated(block)) as bad:
        assert why in reason(target, bad.url, bundled)
        assert len(bad.requests) == 1


@pytest.mark.parametrize("layers", [1, 2])
def test_gzip_bomb_of_10_gb_is_stopped_and_memory_stays_flat(
    layers: int, target: Path, bundled: str
) -> None:
    body = bomb(10_000)
    assert len(body) < 12_000_000
    body = gzip.compress(body, 1) if layers == 2 else body
    with mirror(serving(body)) as bad:
        tracemalloc.start()
        try:
            why = reason(target, bad.url, bundled)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "more" in why
    assert peak < 4_000_000
    # The file never held more than it should.
    assert Path(f"{target}0").stat().st_size == len(CONTENT)


# --- It redirects -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_chain_is_followed(status: int, target: Path) -> None:
    def respond(request: Request) -> None:
        hop = len(bad.requests)
        where = f"{other.url}{NAME}.gz" if hop == 5 else f"../hop{hop}/file"
        request.answer(status=status, Location=where)

    with mirror(serving(ARCHIVE)) as other, mirror(respond) as bad:
        assert download(target, bad.url) == (bad.url, {})
        assert [path for _, path in other.requests] == [f"/data/{NAME}.gz"]


def test_redirect_loop(target: Path, bundled: str) -> None:
    with mirror(lambda request: request.answer(status=302, Location=request.path)) as bad:
        assert reason(target, bad.url, bundled) == "more than 10 redirects"
        assert len(bad.requests) == 11


@pytest.mark.parametrize("scheme", ["file", "ftp", "gopher", "data"])
def test_redirect_to_another_scheme_is_refused(
    scheme: str, target: Path, bundled: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)  # what a redirect to `file:` would pass off
    where = "data:,x" if scheme == "data" else f"{scheme}://{tmp_path}/secret"
    with mirror(serving(b"", 302, Location=where)) as bad:
        assert reason(target, bad.url, bundled).startswith(f"redirect to {scheme}:")


@pytest.mark.parametrize("where", ["http://[", "http://", "http://a:99999/", "//"])
def test_redirect_to_nonsense(where: str, target: Path, bundled: str) -> None:
    with mirror(serving(b"", 302, Location=where)) as bad:
        reason(target, bad.url, bundled)
        assert len(bad.requests) <= 11


def test_redirect_without_an_address(target: Path, bundled: str) -> None:
    with mirror(serving(ARCHIVE, 302)) as bad:
        assert reason(target, bad.url, bundled) == "HTTP 302 Found"


# --- Proxies, folders, and the end of the list -------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("http_proxy", "http://{}/"),
        ("HTTP_PROXY", "http://{}"),
        ("http_proxy", "{}"),
        ("HTTP_PROXY", "{}/"),
        ("http_proxy", " {} "),
        ("all_proxy", "http://{}"),
        ("ALL_PROXY", "{}"),
    ],
)
def test_proxies_are_taken_as_other_programs_take_them(
    target: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror(forward) as proxy, mirror(serving(ARCHIVE)) as origin:
        monkeypatch.setenv(name, form.format(f"127.0.0.1:{proxy.server_port}"))
        assert download(target, origin.url) == (origin.url, {})
        assert [path for _, path in proxy.requests] == [f"{origin.url}{NAME}.gz"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        download(target, origin.url)
        assert len(proxy.requests) == 1


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        "socks5://me:secret@a",
        "http://",
        "http://[",
        "a:99999",
        "ftp://a",
        "me:secret@a:port",
        "://",
    ],
)
def test_a_proxy_setting_that_is_at_fault_is_named(
    target: Path, bundled: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with mirror(serving(ARCHIVE)) as good:
        rule = f"{name} in the environment must be like http://proxy.example:3128"
        assert reason(target, good.url, bundled) == rule
        assert good.requests == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert download(target, good.url) == (good.url, {})


@pytest.mark.usefixtures("no_proxies")
def test_a_specific_proxy_comes_before_the_general_one(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror(forward) as proxy, mirror(serving(ARCHIVE)) as origin:
        monkeypatch.setenv("all_proxy", "socks5://a")
        monkeypatch.setenv("https_proxy", "socks5://a")
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_port}")
        assert download(target, origin.url) == (origin.url, {})
        assert len(proxy.requests) == 1


@pytest.mark.usefixtures("no_proxies")
def test_proxy_that_is_dead_goes_on_and_is_named(
    target: Path, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{refusing()}")
    why = reason(target, "http://mirror.invalid/", bundled)
    assert why.startswith("no connection: ")
    assert why.endswith(", through the proxy of http_proxy")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"nonsense", b"machine 127.0.0.1 login"])
def test_a_broken_netrc_is_no_matter(
    target: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    netrc = target.with_name(".netrc")
    netrc.write_bytes(content)
    monkeypatch.setenv("HOME", str(target.parent))
    monkeypatch.setenv("NETRC", str(netrc))
    with mirror(serving(ARCHIVE)) as good:
        assert download(target, good.url) == (good.url, {})
    assert caplog.records == []


def test_folder_that_has_no_such_file(target: Path, bundled: str, tmp_path: Path) -> None:
    assert "no such file" in reason(target, str(tmp_path), bundled)


@pytest.mark.timeout(20)
def test_folder_with_a_pipe_of_that_name(target: Path, bundled: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{NAME}.gz")  # opening it would wait for a writer, for ever
    assert reason(target, str(tmp_path), bundled) == "no such file"


def test_folder_of_plain_files_and_no_slash(target: Path, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.gz").write_bytes(CONTENT)
    assert download(target, str(tmp_path)) == (str(tmp_path), {})


def test_folder_with_a_damaged_file(target: Path, bundled: str, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(FLIPPED))
    assert SHA256 in reason(target, str(tmp_path), bundled)


def test_all_mirrors_fail_lists_each_with_its_reason(target: Path, tmp_path: Path) -> None:
    dead = f"http://{refusing()}/"
    with mirror(serving(b"", 404)) as missing, mirror(serving(b"<html>")) as page:
        mirrors = [dead, missing.url, page.url, str(tmp_path)]
        with pytest.raises(StageError) as error:
            download(target, *mirrors)
    text = str(error.value)
    assert text.startswith(f"{NAME}.gz: no mirror has it: ")
    for address, why in zip(mirrors, ["no conn", "HTTP 404", "unpacked", "no such"], strict=True):
        assert f"{address}: {why}" in text
    assert "\n" not in text


def test_the_four_are_downloaded_at_the_same_time(target: Path) -> None:
    def respond(request: Request) -> None:
        request.answer(Content_Length=str(len(ARCHIVE)))
        while len(good.requests) < 4:  # nobody gets a body before all have asked
            if not request.sleep(0.01):
                return
        request.wfile.write(ARCHIVE)

    with mirror(respond) as good:
        assert download(target, good.url, names=(NAME,) * 4) == (good.url, {})
