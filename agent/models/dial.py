"""How a connection to S3 is made: straight, or through the HTTP proxy that the environment names, as AWS SDKs read it.

HTTPS goes through a tunnel (CONNECT), so that a proxy sees nothing of it; plain HTTP is asked of the proxy by its whole URL.
"""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from agent.core.errors import Permanent

HEAD_BYTES = 16 << 10
DEMANDS_CREDENTIALS = "the HTTP proxy refuses its credentials (407): give them as http://user:password@host:port"


class ProxyFailed(ConnectionError):
    """The proxy made no tunnel: it may later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where an HTTP proxy listens. `authorization` is the value of its header, or ""; it is a secret."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Return what each request to the proxy itself carries."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(scheme: str, netloc: str) -> Proxy | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY (in either case) name for a server.

    Raises:
        Permanent: it is not the URL of a plain HTTP proxy. The URL is not told: there may be a password in it.
    """
    named = getproxies().get(scheme, "")
    if not named or proxy_bypass(netloc):
        return None
    try:
        url = urlsplit(named if "://" in named else f"http://{named.removeprefix('//')}")
        host, port = url.hostname or "", url.port or 80
    except ValueError:
        host = ""
    if not host or url.scheme != "http":
        raise Permanent(f"{scheme.upper()}_PROXY is not the URL of an HTTP proxy such as http://host:port")
    authorization = ""
    if url.username is not None:
        secret = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(secret).decode()}"
    return Proxy(host=host, port=port, authorization=authorization)


def connect(host: str, port: int, proxy: Proxy | None, *, tunnel: bool, patience_seconds: float) -> socket.socket:
    """Connect to a server, or to its proxy; with `tunnel` the proxy then passes on all bytes, unseen.

    Raises:
        Permanent: the proxy refuses.
        OSError: no connection.
    """
    at = (proxy.host, proxy.port) if proxy else (host, port)
    sock = socket.create_connection(at, timeout=patience_seconds)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy and tunnel:
            _tunnel(sock, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", proxy)
    except BaseException:
        sock.close()
        raise
    return sock


def _tunnel(sock: socket.socket, target: str, proxy: Proxy) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(f"{k}: {v}" for k, v in proxy.headers.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(HEAD_BYTES)
        head += got
        if not got or len(head) > HEAD_BYTES:
            raise ProxyFailed("the proxy's answer ended within its head, or has no end")
    status = head[9:12] if head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) else b""
    if status == b"407":
        raise Permanent(DEMANDS_CREDENTIALS)
    if status == b"403":
        raise Permanent("the HTTP proxy makes no connection to the S3 server (403): allow it there, or set NO_PROXY")
    if status[:1] != b"2" or not head.endswith(b"\r\n\r\n"):
        raise ProxyFailed("the proxy made no tunnel")
