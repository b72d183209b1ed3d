"""Verified files from unreliable mirrors: http(s) addresses and folders.

Whatever a mirror does, a file has the size and the SHA-256 that the catalogue says, or MirrorError
says why not.
"""

import gzip
import hashlib
import io
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from pydantic import Field
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
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
    """A mirror failed; says why, in a few words."""


class NoAnswerError(MirrorError):
    """It does not answer at all, and need not be asked for the other files."""


def session(limits: Limits) -> requests.Session:
    """Return connections for `chunks`; a mirror that says "later" is asked again."""
    again = Retry(
        status=limits.retries,
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


def chunks(
    web: requests.Session, mirror: str, name: str, expected: catalogue.File, limits: Limits
) -> Iterator[bytes]:
    """Yield the file that `mirror` has as `<name>.gz`, unpacked and piece by piece.

    Raises MirrorError if the mirror fails; after the last piece, if together they are not the
    file that is expected. There are never more bytes than there should be.
    """
    size, digest = 0, hashlib.sha256()
    folder, address = catalogue.folder(mirror), f"{mirror.rstrip('/')}/{name}.gz"
    try:
        with _open(folder, name) if folder else _ask(web, address, expected, limits) as source:
            # Its bytes say whether it is packed, not its name. An IDX file starts with 0.
            packed = source.peek(1)[:1] == b"\x1f"
            content = gzip.GzipFile(fileobj=source) if packed else source
            while chunk := content.read(1 << 17):
                size += len(chunk)
                digest.update(chunk)
                if size > expected.size:
                    raise MirrorError(f"unpacked, it has more than {expected.size} bytes")
                yield chunk
    except requests.RequestException as error:
        raise NoAnswerError(_reason(error)) from None
    except (OSError, EOFError, ValueError, zlib.error, HTTPError) as error:
        raise MirrorError(_reason(error)) from None
    if (size, found := digest.hexdigest()) != (expected.size, expected.sha256):
        raise MirrorError(
            f"unpacked, it has {size} bytes with SHA-256 {found}, "
            f"not {expected.size} with {expected.sha256}"
        )


def _open(folder: Path, name: str) -> "io.BufferedReader[Any]":
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path.open("rb")
    raise MirrorError(f"no file {name}.gz or {name}")


@contextmanager
def _ask(
    web: requests.Session, address: str, expected: catalogue.File, limits: Limits
) -> "Iterator[io.BufferedReader[Any]]":
    timeouts = (limits.connect_timeout, limits.stall_timeout)
    with web.get(address, stream=True, timeout=timeouts) as response:
        if response.status_code != 200:
            raise MirrorError(f"HTTP {response.status_code}")
        yield io.BufferedReader(_Body(response.raw, expected.size, limits.stall_timeout), _BLOCK)


class _Body(io.RawIOBase):
    """The body of an answer, which must make progress and end."""

    def __init__(self, body: Any, size: int, stall_timeout: float) -> None:
        self._body, self._stall_timeout = body, stall_timeout
        self._left = 2 * size + _BLOCK  # ample, even for bytes that do not compress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read a block, unless the body ends before."""
        block, wanted = b"", min(len(buffer), _BLOCK)
        deadline = time.monotonic() + self._stall_timeout
        while len(block) < wanted and (piece := self._body.read1(wanted - len(block))):
            block += piece
            if time.monotonic() > deadline:
                raise MirrorError("no progress in time")
        self._left -= len(block)
        if self._left < 0:
            raise MirrorError("it has far more bytes than the unpacked file should have")
        buffer[: len(block)] = block
        return len(block)


def _reason(error: Exception) -> str:
    """Say why a mirror failed: what it is called, and the first cause, without those between."""
    root: BaseException = error
    while root.__context__:
        root = root.__context__
    return f"{type(error).__name__}: {root}"
