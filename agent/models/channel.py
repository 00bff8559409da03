"""What one HTTP connection sends and receives by: a connected socket, plain here, with TLS in `agent.models.tls`."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Protocol

SILENT = "silent for too long"


class Channel(Protocol):
    """A connection of one thread. Only `abort` may be called from another.

    Raises everywhere:
        TimeoutError: the other side was silent for the channel's patience.
        OSError: the connection failed.
    """

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self, into: memoryview) -> int:
        """Receive what is there, at least a byte; 0 at the end."""

    def fill(self, into: memoryview) -> int:
        """Receive until `into` is full; returns less only at the end, or when silence interrupts. The GIL is free."""

    def abort(self) -> None:
        """Wake a thread that waits in the channel: it fails or sees the end."""

    def close(self) -> None:
        """End it."""


class Tls(Protocol):
    """Makes TLS of a connected socket, with the server's certificate verified."""

    def wrap(self, sock: socket.socket, host: str, patience_seconds: float) -> Channel:
        """Shake hands as a client of `host`; the channel owns the socket, which is closed if this fails.

        Raises:
            Untrusted: the certificate does not prove that this is `host`.
            OSError: the handshake failed.
        """


class PlainChannel:
    """A connected TCP socket. It blocks in the kernel, so that one call can receive a whole slice."""

    def __init__(self, sock: socket.socket, patience_seconds: float) -> None:
        self._sock = sock
        block_with_patience(sock, patience_seconds)

    def send(self, data: bytes) -> None:
        """See `Channel`."""
        try:
            self._sock.sendall(data)
        except BlockingIOError as silent:
            raise TimeoutError(SILENT) from silent

    def receive(self, into: memoryview) -> int:
        """See `Channel`."""
        try:
            return self._sock.recv_into(into)
        except BlockingIOError as silent:
            raise TimeoutError(SILENT) from silent

    def fill(self, into: memoryview) -> int:
        """See `Channel`."""
        try:
            return self._sock.recv_into(into, len(into), socket.MSG_WAITALL)
        except BlockingIOError as silent:
            raise TimeoutError(SILENT) from silent

    def abort(self) -> None:
        """See `Channel`."""
        shut(self._sock)

    def close(self) -> None:
        """See `Channel`."""
        self._sock.close()


def block_with_patience(sock: socket.socket, seconds: float) -> None:
    """Let the kernel keep the time: Python's own timeouts cost a poll before each call, and make MSG_WAITALL void."""
    sock.settimeout(None)
    patience = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)


def shut(sock: socket.socket) -> None:
    """Shut both ways at once, below any TLS, which a reading thread is using."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
