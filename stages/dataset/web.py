"""Files at http(s) addresses, whatever their servers and proxies do."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from http.client import responses
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import Field
from yarl import URL

from stages.common import params

_BLOCK = 1 << 14  # bytes that must arrive within the stall timeout
_MAX_REDIRECTS = 10
_TRY_AGAIN = (429, 500, 502, 503, 504)

Read = Callable[[int], bytes]  # returns up to so many bytes, none at the end


class Limits(params.Section, extra="ignore"):
    """What downloads need of the section `limits` of params.yaml; other keys are for others."""

    connect_timeout: float = Field(gt=0, le=600)  # seconds
    stall_timeout: float = Field(gt=0, le=600)  # seconds
    retries: int = Field(ge=0, le=10)


class MirrorError(Exception):
    """One mirror failed; `wait` is the seconds after which to try it again, None for never."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Loop(asyncio.SelectorEventLoop):
    """An event loop that can end while a name look-up hangs, which may take minutes."""

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        """Look a name up in a daemon thread: asyncio's own threads are waited for at the end."""
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                answer.set_result(socket.getaddrinfo(*arguments, **options))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return await asyncio.wrap_future(answer)


class Web:
    """Reads addresses over shared connections, and remembers which hosts are dead.

    To be made in the event loop that `open` runs in. Whoever makes it closes its `session`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._asked: dict[URL, asyncio.Event] = {}  # hosts; set once the first contact is over
        self._dead: dict[URL, str] = {}  # hosts, and why
        self.session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect_timeout),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # what is packed is told from the bytes, not from headers
        )

    @asynccontextmanager
    async def open(self, address: str) -> AsyncIterator[Read]:
        """Ask for an address, and yield a function for another thread to read its body with.

        Both raise MirrorError if anything is wrong.
        """
        loop = asyncio.get_running_loop()
        async with await self._follow(address) as response:

            def read(count: int) -> bytes:
                block = self._block(response, min(count, _BLOCK))
                return asyncio.run_coroutine_threadsafe(block, loop).result()

            yield read

    async def _block(self, response: aiohttp.ClientResponse, count: int) -> bytes:
        """Return the next `count` bytes of a body, or what is left of it."""
        if response.content.at_eof():
            return b""
        try:
            # All of them, so that one byte a second counts as a stall.
            async with asyncio.timeout(self._limits.stall_timeout):
                return await response.content.readexactly(count)
        except asyncio.IncompleteReadError as end:
            return end.partial
        except TimeoutError:
            raise MirrorError(f"no progress in {self._limits.stall_timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise MirrorError(f"broke off: {error}", wait=0) from None

    async def _follow(self, address: str) -> aiohttp.ClientResponse:
        """Ask for an address and follow redirects; raise MirrorError unless all is well."""
        try:
            url = URL(address)
            for _ in range(_MAX_REDIRECTS + 1):
                response = await self._request(url)
                if response.status == 200:
                    return response
                response.close()
                target = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or target is None:
                    raise self._refused(response)
                origin, url = url, url.join(URL(target))
                if url.scheme != origin.scheme and (origin.scheme, url.scheme) != ("http", "https"):
                    raise MirrorError(f"redirect to {url} refused")
        except ValueError as error:
            raise MirrorError(f"not a usable address: {error}") from None
        raise MirrorError(f"more than {_MAX_REDIRECTS} redirects")

    def _refused(self, response: aiohttp.ClientResponse) -> MirrorError:
        # Our own words: the mirror's may hold anything.
        reason = f"HTTP {response.status} {responses.get(response.status, '')}".strip()
        if response.status not in _TRY_AGAIN:
            return MirrorError(reason)
        asked = response.headers.get("Retry-After", "")
        wait = float(asked) if asked.isdecimal() else 0.0  # dates are rare: back off as usual
        if wait > self._limits.stall_timeout:
            return MirrorError(f"{reason}, asks to wait {wait:.0f} s")
        return MirrorError(reason, wait)

    async def _request(self, url: URL) -> aiohttp.ClientResponse:
        """Ask a host, unless it is known to be dead. One file finds out while the others wait."""
        (proxy, through), host = _proxy(url), url.origin()
        if host in self._asked:
            await self._asked[host].wait()
        over = self._asked.setdefault(host, asyncio.Event())
        if host in self._dead:
            raise MirrorError(self._dead[host])
        try:
            async with asyncio.timeout(self._limits.connect_timeout + self._limits.stall_timeout):
                return await self.session.get(url, allow_redirects=False, proxy=proxy)
        except aiohttp.ConnectionTimeoutError:
            why = f"no connection in {self._limits.connect_timeout:g} s"
        except TimeoutError:
            why = f"no answer in {self._limits.stall_timeout:g} s"
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            why = f"no connection: {error}"
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise MirrorError(f"broke off: {error}", wait=0) from None
        except aiohttp.ClientError as error:
            raise MirrorError(f"not understood: {error}") from None
        finally:
            over.set()
        self._dead[host] = why + through
        raise MirrorError(self._dead[host])


def _proxy(url: URL) -> tuple[URL | None, str]:
    """Return the proxy that the environment has for an address, and words that name the setting.

    aiohttp alone does not take `proxy:3128`, without a scheme, or `all_proxy`; other programs do.
    """
    settings = getproxies()
    name = url.scheme if url.scheme in settings else "all"
    value = settings.get(name, "").strip()
    if not value or proxy_bypass(url.host or ""):
        return None, ""
    with suppress(ValueError):
        proxy = URL(value if "://" in value else f"http://{value}")
        if proxy.scheme in ("http", "https") and proxy.host:
            return proxy, f", through the proxy of {name}_proxy"
    raise MirrorError(f"{name}_proxy in the environment must be like http://proxy.example:3128")
