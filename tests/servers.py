"""Real servers on loopback for the tests of downloads: mirrors that misbehave, and a proxy."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme


class Request(BaseHTTPRequestHandler):
    """One request to a mirror; the mirror's `respond` writes the answer through it."""

    server: "Mirror"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.respond(self)

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """Answer properly; `Content_Type="..."` sets a header, `Content_Length=""` omits it."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def sleep(self, seconds: float) -> bool:
        """Wait, but not for longer than the mirror lives; tell whether it does."""
        return not self.server.closing.wait(seconds)


class Mirror(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, respond: Callable[[Request], None], tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.respond = respond
        self.tls = tls
        self.requests: list[str] = []  # their paths
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.server_port}/data/"

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        with contextlib.suppress(OSError):  # the client may leave when it likes
            super().finish_request(request, client_address)

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def mirror(
    respond: Callable[[Request], None], tls: ssl.SSLContext | None = None
) -> Iterator[Mirror]:
    """Serve on loopback until the end of the block."""
    with Mirror(respond, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """Accept connections (the kernel does) and never say a word; yield host:port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full() -> Iterator[str]:
    """Listen with a queue that is full, so that connecting takes for ever; yield host:port."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as s:
        address = listener.getsockname()
        for _ in range(4):
            client = s.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


def refusing() -> str:
    """Return host:port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def separate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the machine's own environment says of proxies, authorities and passwords."""
    for name in os.environ:
        if name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)


def serving(body: bytes = b"", status: int = 200, **headers: str) -> Callable[[Request], None]:
    return lambda request: request.answer(body, status, **headers)


def presenting(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return what a mirror needs to serve https with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
