"""TCP connections as the kernel counts them: open ones with their bytes so far, and those that have ended since the last look.

Source: Linux sock_diag(7), include/uapi/linux/inet_diag.h, and `struct tcp_info` of include/uapi/linux/tcp.h. It tells of the
network namespace that this process is in. No other library of ours speaks netlink, and this is all that is said.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DONE, _ERROR = 20, 3, 2
_REQUEST_DUMP = 0x301
_INFO = 2  # INET_DIAG_INFO, a struct tcp_info
_TCP = 6
_ANY_STATE = 0xFFF
_DESTROYED = 0b101  # the groups TCP_DESTROY and TCP6_DESTROY
_HEAD, _MESSAGE = struct.Struct("=IHHII"), 72  # nlmsghdr; bytes of inet_diag_msg
_RECEIVED_AT = 128  # tcpi_bytes_received
_LISTEN = 10
_BUFFER_BYTES = 1 << 20
_WAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection. `cookie` names it for as long as the machine runs; `inode` is 0 when it has ended."""

    cookie: int
    inode: int
    port: int
    listens: bool
    remote: tuple[str, int]
    received_bytes: int


class Connections:
    """Looks at connections; hears of ended ones from the moment it is made. All calls block shortly: not for the event loop.

    Raises:
        OSError: this kernel does not tell.
    """

    def __init__(self) -> None:
        self._ended = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG)
        try:
            self._ended.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._ended.bind((0, _DESTROYED))
            self._ended.setblocking(False)
        except OSError:
            self._ended.close()
            raise

    def close(self) -> None:
        """Hear no more."""
        self._ended.close()

    def open_now(self) -> list[Connection]:
        """Return all TCP sockets of this network namespace."""
        return [found for family in (socket.AF_INET, socket.AF_INET6) for found in _dump(family)]

    def ended(self) -> list[Connection]:
        """Return those that have ended since the last call; where that was too long ago, only some."""
        found: list[Connection] = []
        while True:
            try:
                found += [each for _, each in _read(self._ended.recv(1 << 16)) if each]
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more have ended than the kernel would keep for us
                    return found


def _dump(family: int) -> Iterator[Connection]:
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG)) as asked:
        asked.settimeout(_WAIT_SECONDS)
        request = struct.pack("=BBBxI", family, _TCP, 1 << (_INFO - 1), _ANY_STATE) + bytes(48)
        asked.send(_HEAD.pack(_HEAD.size + len(request), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            for kind, found in _read(asked.recv(1 << 16)):
                if kind in (_DONE, _ERROR):
                    return
                if found:
                    yield found


def _read(data: bytes) -> Iterator[tuple[int, Connection | None]]:
    """Yield the messages of a datagram by their kind."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, *_ = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + length]
        yield kind, _connection(body) if kind == _BY_FAMILY and len(body) >= _MESSAGE else None
        at += max(length + 3 & ~3, _HEAD.size)


def _connection(body: bytes) -> Connection:
    family, state = struct.unpack_from("=BB", body)
    port, remote_port = struct.unpack_from(">HH", body, 4)
    size = 4 if family == socket.AF_INET else 16
    remote = socket.inet_ntop(family, body[24 : 24 + size]).removeprefix("::ffff:")
    return Connection(
        cookie=struct.unpack_from("=Q", body, 44)[0],
        inode=struct.unpack_from("=I", body, 68)[0],
        port=port,
        listens=state == _LISTEN,
        remote=(remote, remote_port),
        received_bytes=_received(body),
    )


def _received(body: bytes) -> int:
    at = _MESSAGE
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind == _INFO and length >= 4 + _RECEIVED_AT + 8:
            return int(struct.unpack_from("=Q", body, at + 4 + _RECEIVED_AT)[0])
        at += max(length + 3 & ~3, 4)
    return 0
