"""Verified files from unreliable mirrors: http(s) addresses and folders.

Whatever a mirror does, a file has the size and the SHA-256 that the catalogue says, or MirrorError
says why not.
"""

import gzip
import hashlib
import io
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from http.client import responses
from pathlib import Path
from typing import Any

import requests
from pydantic import Field
from requests.adapters import HTTPAdapter
from urllib3 import exceptions
from urllib3.util import Retry

from stages.common import params
from stages.dataset import catalogue

_BLOCK = 1 << 14  # bytes that must arrive within the stall timeout


class Limits(params.Section, extra="ignore"):
    """What downloads need of the section `limits` of params.yaml; other keys are for others."""

    connect_timeout: float = Field(gt=0, le=600)  # seconds
    stall_timeout: float = Field(gt=0, le=600)  # seconds
    retries: int = Field(ge=0, le=10)


class MirrorError(Exception):
    """One mirror failed; if it is `dead`, it need not be asked for the other files."""

    def __init__(self, reason: str, dead: bool = False) -> None:
        super().__init__(reason)
        self.dead = dead


class _BrokenOffError(MirrorError):
    """The connection ended early, which may not happen again."""


def session(limits: Limits) -> requests.Session:
    """Return connections for `fetch`; a mirror that says "later" is asked again."""
    again = Retry(
        limits.retries,
        connect=0,
        read=False,
        other=0,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=0.5,
        raise_on_status=False,
        retry_after_max=int(limits.stall_timeout),
    )
    web = requests.Session()
    web.headers["Accept-Encoding"] = "identity"  # the files are packed already
    for scheme in ("http://", "https://"):
        web.mount(scheme, HTTPAdapter(max_retries=again))
    return web


def fetch(
    web: requests.Session,
    mirror: str,
    name: str,
    expected: catalogue.File,
    target: Path,
    limits: Limits,
    progress: Callable[[int], object],
) -> None:
    """Write the file that `mirror` has as `<name>.gz`, unpacked, to `target`.

    `progress` is told again and again how many bytes are written.
    Raises MirrorError if the mirror fails, and OSError if `target` cannot be written; what it
    holds is then undefined.
    """
    if folder := catalogue.folder(mirror):
        with _open(folder, name) as source:
            _write(source, expected, target, progress)
        return
    address = f"{mirror.rstrip('/')}/{name}.gz"
    for attempt in range(limits.retries + 1):
        try:
            with _request(web, address, limits) as response:
                body = io.BufferedReader(_Body(response, expected.size, limits), _BLOCK)
                _write(body, expected, target, progress)
            break
        except _BrokenOffError:
            if attempt == limits.retries:
                raise


def _open(folder: Path, name: str) -> io.BufferedReader:
    try:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():  # opening a pipe could take for ever
                return path.open("rb")
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise MirrorError(_words(error)) from None
    others = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
    raise MirrorError(f"no file {name}.gz or {name}, but {others or 'nothing'}")


def _request(web: requests.Session, address: str, limits: Limits) -> requests.Response:
    timeouts = (limits.connect_timeout, limits.stall_timeout)
    try:
        response = web.get(address, stream=True, timeout=timeouts)
    except (OSError, ValueError, exceptions.HTTPError) as error:
        raise _failure(error, limits) from None
    if (status := response.status_code) != 200:
        response.close()
        # Our own words: the mirror's may hold anything.
        raise MirrorError(f"HTTP {status} {responses.get(status, '')}".strip())
    return response


class _Body(io.RawIOBase):
    """The body of an answer, which must make progress and end."""

    def __init__(self, response: requests.Response, size: int, limits: Limits) -> None:
        self._response, self._limits = response, limits
        # More than gzip makes of bytes that do not compress, even in small pieces.
        self._left = size + size // 8 + (1 << 16)
        self._block, self._waited = 0, 0.0  # bytes of the present block, and seconds for them

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        start = time.monotonic()
        try:
            # Unpacked, if the server says that it has packed the archive once more.
            piece: bytes = self._response.raw.read1(len(buffer), decode_content=True)
        except exceptions.HTTPError as error:
            raise _failure(error, self._limits) from None
        self._left -= len(piece)
        if self._left < 0:
            raise MirrorError("it has far more bytes than the unpacked file should have")
        self._block += len(piece)
        self._waited += time.monotonic() - start
        if self._waited > self._limits.stall_timeout:
            raise MirrorError(f"no progress in {self._limits.stall_timeout:g} s")
        if self._block >= _BLOCK:
            self._block, self._waited = 0, 0.0
        buffer[: len(piece)] = piece
        return len(piece)


def _write(
    source: "io.BufferedReader[Any]",
    expected: catalogue.File,
    target: Path,
    progress: Callable[[int], object],
) -> None:
    """Write what `source` holds, unpacked, to `target`."""
    size, digest = 0, hashlib.sha256()
    with target.open("wb") as file:
        for chunk in _unpacked(source):
            size += len(chunk)
            if size > expected.size:
                raise MirrorError(f"unpacked, it has more than {expected.size} bytes")
            file.write(chunk)
            digest.update(chunk)
            progress(size)
    if (size, found := digest.hexdigest()) != (expected.size, expected.sha256):
        raise MirrorError(
            f"unpacked, it has {size} bytes with SHA-256 {found}, "
            f"not {expected.size} with {expected.sha256}"
        )


def _unpacked(source: "io.BufferedReader[Any]") -> Iterator[bytes]:
    try:
        # Its bytes say whether it is packed, not its name. An IDX file starts with 0.
        packed = source.peek(1)[:1] == b"\x1f"
        content = gzip.GzipFile(fileobj=source) if packed else source
        while chunk := content.read(1 << 17):
            yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise MirrorError(f"its gzip is damaged or cut short: {_words(error)}") from None
    except OSError as error:
        raise MirrorError(_words(error)) from None


def _failure(error: Exception, limits: Limits) -> MirrorError:
    """Say in a few words why a request or its answer failed."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    root = chain[-1]
    if any(isinstance(link, exceptions.ProtocolError) for link in chain):
        return _BrokenOffError(f"broke off: {_words(root)}")
    if isinstance(error, exceptions.ReadTimeoutError):
        return MirrorError(f"no progress in {limits.stall_timeout:g} s")
    if isinstance(error, requests.ConnectTimeout) or "handshake operation" in str(root):
        why = f"no connection in {limits.connect_timeout:g} s"
    elif isinstance(error, requests.Timeout):
        why = f"no answer in {limits.stall_timeout:g} s"
    elif isinstance(root, ssl.SSLCertVerificationError):
        why = (
            f"its certificate cannot be verified: {root.verify_message} "
            "(REQUESTS_CA_BUNDLE names the file of authorities to trust)"
        )
    elif isinstance(error, requests.exceptions.ProxyError):
        why = f"no connection through the proxy of the environment: {_words(root)}"
    elif isinstance(root, socket.gaierror):
        why = "no connection: its name cannot be resolved"
    elif isinstance(error, requests.ConnectionError):
        why = f"no connection: {_words(root)}"
    else:
        return MirrorError(f"no usable address or answer: {_words(error)}")
    return MirrorError(why, dead=True)


def _words(error: BaseException) -> str:
    """Return what an error says, as part of a line: it may quote what a mirror sent."""
    text = getattr(error, "strerror", None) or str(error)
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
