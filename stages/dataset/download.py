"""Verified files from unreliable mirrors.

A mirror is an http(s) address or a folder. Whatever it does, a file either has the size and the
SHA-256 that the catalogue says, or an exception is raised.
"""

import asyncio
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stages.common.errors import StageError, hide_credentials
from stages.dataset import catalogue
from stages.dataset.web import Limits, MirrorError, Read, Web

_CHUNK = 1 << 17  # bytes unpacked at a time
_BACKOFF = 0.5  # seconds before the first retry; doubled each time


class Downloads:
    """Downloads of several files at once.

    To be made in the event loop that `fetch` runs in, and closed with `aclose`.
    """

    def __init__(self, limits: Limits, progress: Callable[[int], object]) -> None:
        self._web = Web(limits)
        self._retries = limits.retries
        self._progress = progress  # told the bytes written; negative when they are discarded
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def aclose(self) -> None:
        """Close all connections, and let threads that unpack end soon."""
        self._closed = True
        await self._web.session.close()

    async def fetch(
        self, name: str, mirrors: list[str], file: catalogue.File, target: Path
    ) -> tuple[str, dict[str, str]]:
        """Write a file, unpacked, to `target`, from the first mirror that has `<name>.gz`.

        Returns the mirror that had it, and for each mirror before that why it did not.
        Raises StageError if none has it or if `target` cannot be written; what `target` holds is
        then undefined.
        """
        failures: dict[str, str] = {}
        for mirror in mirrors:
            try:
                await self._retry(mirror, name, file, target)
            except MirrorError as error:
                failures[mirror] = str(error)
            except OSError as error:
                why = f"not written: {error.strerror}; make room for it"
                raise StageError(f"{target.parent.with_name(name)}: {why}") from None
            else:
                return mirror, failures
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        advice = "check the network, or put the file into a local mirror"
        raise StageError(hide_credentials(f"{name}.gz: no mirror has it: {reasons}; {advice}"))

    async def _retry(self, mirror: str, name: str, file: catalogue.File, target: Path) -> None:
        """Try one mirror, and again, later and later, where that may help."""
        for attempt in range(self._retries + 1):
            try:
                await self._attempt(mirror, name, file, target)
            except MirrorError as error:
                if error.wait is None or attempt == self._retries:
                    raise
                await asyncio.sleep(max(error.wait, _BACKOFF * 2**attempt))
            else:
                break

    async def _attempt(self, mirror: str, name: str, file: catalogue.File, target: Path) -> None:
        if folder := catalogue.folder(mirror):
            with _open(folder, name) as source:
                await asyncio.to_thread(self._write, source.read, file, target)
        else:
            async with self._web.open(f"{mirror.rstrip('/')}/{name}.gz") as read:
                await asyncio.to_thread(self._write, read, file, target)

    def _write(self, read: Read, expected: catalogue.File, target: Path) -> None:
        """Unpack what `read` gives into `target` and check it, in a thread of its own."""
        written = 0
        try:
            with target.open("wb") as file:
                for chunk in _verified(read, expected):
                    if self._closed:
                        return  # what was read already may unpack to a thousand times as much
                    file.write(chunk)
                    written += len(chunk)
                    self._loop.call_soon_threadsafe(self._progress, len(chunk))
        except BaseException:
            self._loop.call_soon_threadsafe(self._progress, -written)
            raise


def _open(folder: Path, name: str) -> BinaryIO:
    """Open a file in a folder, packed or not."""
    try:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():  # opening a pipe could take for ever
                return path.open("rb", buffering=0)
        folder.stat()
    except OSError as error:
        raise MirrorError(error.strerror or str(error)) from None
    raise MirrorError("no such file")


class _Stream(io.RawIOBase):
    """What `read` gives as a file, but no more than `limit` bytes of it."""

    def __init__(self, read: Read, limit: int) -> None:
        self._read = read
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._read(len(buffer))
        self._left -= len(block)
        if self._left < 0:
            raise MirrorError("it has far more bytes than the unpacked file should have")
        buffer[: len(block)] = block
        return len(block)


def _verified(read: Read, expected: catalogue.File) -> Iterator[bytes]:
    """Yield what `read` gives, unpacked; in the end raise MirrorError unless it was right."""
    size, digest = 0, hashlib.sha256()
    for chunk in _unpacked(read, expected.size):
        size += len(chunk)
        if size > expected.size:
            raise MirrorError(f"unpacked, it has more than {expected.size} bytes")
        digest.update(chunk)
        yield chunk
    if (size, found := digest.hexdigest()) != (expected.size, expected.sha256):
        raise MirrorError(
            f"unpacked, it has {size} bytes with SHA-256 {found}, "
            f"not {expected.size} with {expected.sha256}"
        )


def _unpacked(read: Read, size: int) -> Iterator[bytes]:
    """Yield what `read` gives, without the up to two layers of gzip that its bytes show.

    Names and headers are not reliable: a server may pack the `.gz` file again, or unpack it.
    """
    # More than gzip makes of bytes that do not compress, even in small pieces.
    limit = size + size // 8 + (1 << 16)
    content = io.BufferedReader(_Stream(read, limit), _CHUNK)
    try:
        for _ in range(2):
            if content.peek(1)[:1] == b"\x1f":  # an IDX file starts with 0
                unpacked = gzip.GzipFile(fileobj=content)
                content = io.BufferedReader(_Stream(unpacked.read, limit), _CHUNK)
        while chunk := content.read(_CHUNK):
            yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise MirrorError(f"its gzip is damaged or cut short: {error}") from None
    except OSError as error:
        raise MirrorError(error.strerror or str(error)) from None
