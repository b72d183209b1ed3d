"""Verified files from unreliable mirrors.

A mirror is an http(s) address or a local folder. Whatever it does, a file either has the size and
the SHA-256 that were asked for, or `UnavailableError` is raised.
"""

import asyncio
import hashlib
import socket
import threading
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import responses
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stages.common.errors import StageError

_BLOCK = 1 << 14  # bytes that must arrive within the stall timeout
_CHUNK = 1 << 18  # bytes unpacked at a time
_MAX_REDIRECTS = 10
_ADVICE = "check the network, or put the file into a local mirror"
_TRY_AGAIN = (429, 500, 502, 503, 504)


class UnavailableError(StageError):
    """No mirror has the file; the text lists each with its reason."""


class MirrorError(Exception):
    """One mirror failed; `again` says whether the same request may succeed a little later."""

    def __init__(self, reason: str, again: bool = False, wait: float = 0) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait  # seconds that the mirror asked for


@dataclass(frozen=True)
class Patience:
    """How long and how often to try; times in seconds."""

    connect: float = 5
    stall: float = 15
    retries: int = 2
    backoff: float = 0.5  # before the first retry; doubled each time


@dataclass
class _Host:
    """What is known of a server. One file makes the first contact while the others wait."""

    contact: asyncio.Lock = field(default_factory=asyncio.Lock)
    reached: bool = False
    failure: str = ""


class Downloads:
    """Downloads that share connections, and the memory of which hosts are dead.

    Use as an asynchronous context manager, in the event loop that `fetch` runs in.
    """

    def __init__(self, patience: Patience, progress: Callable[[int], object]) -> None:
        self._patience = patience
        self._progress = progress  # told the bytes written; negative when they are discarded
        self._hosts: dict[URL, _Host] = {}

    async def __aenter__(self) -> "Downloads":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_Resolver()),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._patience.connect),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # what is gzip is told from the bytes, see Unpacking
            trust_env=True,  # proxies
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(
        self, name: str, mirrors: list[str], size: int, sha256: str, target: Path
    ) -> tuple[str, dict[str, str]]:
        """Write the file `name`, unpacked, to `target`, from the first mirror that has it.

        Args:
            name: the file's name; a mirror holds `<name>.gz`, packed or not.
            mirrors: http(s) addresses or folders, in the order to try.
            size: bytes of the unpacked file.
            sha256: hexadecimal SHA-256 of the unpacked file.
            target: where to write; what it holds is undefined after an exception.

        Returns the mirror that had it, and for each mirror before that why it had not.
        Raises UnavailableError when none has it, and OSError when `target` cannot be written.
        """
        failures: dict[str, str] = {}
        for mirror in mirrors:
            try:
                await self._persist(f"{mirror.rstrip('/')}/{name}.gz", size, sha256, target)
            except MirrorError as error:
                failures[mirror] = str(error)
            else:
                return mirror, failures
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        raise UnavailableError(f"{name}.gz: no mirror has it: {reasons}; {_ADVICE}")

    async def _persist(self, source: str, size: int, sha256: str, target: Path) -> None:
        """Try one mirror, and again, later and later, where that may help."""
        pause = self._patience.backoff
        for left in reversed(range(self._patience.retries + 1)):
            try:
                await self._attempt(source, size, sha256, target)
            except MirrorError as error:
                if not (error.again and left):
                    raise
                if error.wait > self._patience.stall:
                    raise MirrorError(f"{error}, asks to wait {error.wait:.0f} s") from None
                await asyncio.sleep(max(error.wait, pause))
                pause *= 2
            else:
                return

    async def _attempt(self, source: str, size: int, sha256: str, target: Path) -> None:
        web = source.lower().startswith(("http://", "https://"))
        blocks = self._from_web(source) if web else _from_folder(Path(source))
        with target.open("wb") as file:
            unpacking = Unpacking(file, size, sha256)
            reported = 0
            try:
                async with aclosing(blocks):
                    async for block in blocks:
                        await asyncio.to_thread(unpacking.feed, block)
                        self._progress(unpacking.written - reported)
                        reported = unpacking.written
                unpacking.finish()
            except BaseException:
                unpacking.stop()
                self._progress(-reported)
                raise

    async def _from_web(self, source: str) -> AsyncGenerator[bytes, None]:
        """Yield the body at an http(s) address, redirects followed."""
        try:
            response = await self._follow(URL(source))
            async with response:
                while True:
                    # A whole block, so that one byte a second counts as a stall.
                    async with asyncio.timeout(self._patience.stall):
                        try:
                            block = await response.content.readexactly(_BLOCK)
                        except asyncio.IncompleteReadError as end:
                            block = end.partial
                    yield block
                    if len(block) < _BLOCK:
                        return
        except TimeoutError:
            raise MirrorError(f"no progress in {self._patience.stall:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise MirrorError(f"broke off: {error}", again=True) from None
        except ValueError as error:
            raise MirrorError(f"not a usable address: {error}") from None

    async def _follow(self, url: URL) -> aiohttp.ClientResponse:
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._get(url)
            if response.status == 200:
                return response
            response.close()
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                again = response.status in _TRY_AGAIN
                # Our own words: the mirror's may hold anything.
                reason = f"HTTP {response.status} {responses.get(response.status, '')}".strip()
                raise MirrorError(reason, again, _retry_after(response))
            origin, url = url, url.join(URL(target))
            if url.scheme != origin.scheme and (origin.scheme, url.scheme) != ("http", "https"):
                raise MirrorError(f"redirect to {url} refused")
        raise MirrorError(f"more than {_MAX_REDIRECTS} redirects")

    async def _get(self, url: URL) -> aiohttp.ClientResponse:
        """Ask one host, unless it is known to be dead."""
        host = self._hosts.setdefault(url.origin(), _Host())
        async with host.contact:
            if host.failure:
                raise MirrorError(host.failure)
            if not host.reached:
                return await self._request(url, host)
        return await self._request(url, host)

    async def _request(self, url: URL, host: _Host) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self._patience.connect + self._patience.stall):
                response = await self._session.get(url, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError:
            host.failure = f"no connection in {self._patience.connect:g} s"
        except TimeoutError:
            host.failure = f"no answer in {self._patience.stall:g} s"
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            host.failure = f"no connection: {error}"
        except (aiohttp.ClientConnectionError, OSError) as error:
            host.reached = True
            raise MirrorError(f"broke off: {error}", again=True) from None
        except aiohttp.ClientError as error:
            raise MirrorError(f"not understood: {error}") from None
        else:
            host.reached = True
            return response
        raise MirrorError(host.failure)


class Unpacking:
    """Takes gzip off a stream, writes what is left and checks it.

    Up to two layers come off, as the bytes demand: names and headers are not to be relied on (a
    server may pack the `.gz` file again, or unpack it). Raises MirrorError.
    """

    def __init__(self, file: BinaryIO, size: int, sha256: str) -> None:
        self.written = 0
        self._file = file
        self._size = size
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._stopped = False
        # More than gzip makes of bytes that do not compress, even in small pieces.
        packed = size + size // 8 + (1 << 16)
        self._outer, self._inner = _Layer(packed), _Layer(packed)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the stream."""
        for part in self._outer.feed(block):
            if self._stopped:
                return
            for chunk in self._inner.feed(part):
                self._write(chunk)

    def stop(self) -> None:
        """Make a `feed` that runs in another thread return soon."""
        self._stopped = True

    def finish(self) -> None:
        """Check what was written, at the end of the stream."""
        self._outer.finish()
        self._inner.finish()
        self._file.flush()
        found = self._digest.hexdigest()
        if (self.written, found) != (self._size, self._sha256):
            raise MirrorError(
                f"unpacked, it has {self.written} bytes with SHA-256 {found}, "
                f"not {self._size} with {self._sha256}"
            )

    def _write(self, chunk: bytes) -> None:
        if self.written + len(chunk) > self._size:
            raise MirrorError(f"unpacked, it has more than {self._size} bytes")
        self._digest.update(chunk)
        self._file.write(chunk)
        self.written += len(chunk)


class _Layer:
    """One layer of gzip, or none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes that may come in
        self._packed: bool | None = None
        self._member: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._limit -= len(data)
        if self._limit < 0:
            raise MirrorError("it has far more bytes than it unpacks to")
        if data and self._packed is None:
            self._packed = data[0] == 0x1F  # an IDX file starts with 0
        if self._packed:
            yield from self._unpack(data)
        else:
            yield data

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")  # gzip, too, ignores zeros between and after members
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            try:
                yield self._member.decompress(data, _CHUNK)
                data = self._member.unconsumed_tail
            except zlib.error as error:
                raise MirrorError(f"damaged gzip: {error}") from None
            if self._member.eof:
                data, self._member = self._member.unused_data, None

    def finish(self) -> None:
        if self._packed and self._member is not None:
            raise MirrorError("gzip is cut short")


async def _from_folder(path: Path) -> AsyncGenerator[bytes, None]:
    if not path.is_file():  # opening a pipe could take for ever
        raise MirrorError("no such file")
    try:
        with path.open("rb") as file:
            while block := await asyncio.to_thread(file.read, 1 << 16):
                yield block
    except OSError as error:
        raise MirrorError(error.strerror or str(error)) from None


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds that the answer asks to wait; 0 when it does not."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0


class _Resolver(AbstractResolver):
    """Looks names up in daemon threads: one that hangs must not delay the end of the program."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer: Future[list[Any]] = Future()
        answer.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                answer.set_result(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await asyncio.wrap_future(answer)
        ]

    async def close(self) -> None:
        pass
