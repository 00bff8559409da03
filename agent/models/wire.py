"""One keep-alive HTTP connection of one worker thread, and what an answer to a range request must look like.

Bytes are received straight into the caller's buffer; the GIL is free meanwhile.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection

from agent.core.errors import Permanent, Transient, cut
from agent.models.source import Bucket

SLICE_BYTES = 1 << 20  # between two slices a worker looks whether it should stop
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}


class SourceChanged(Transient):
    """The object is no longer the one in the manifest: what was fetched is worth nothing, list again."""


class RangeFailed(Transient):
    """One range did not arrive as asked: ask again, on a new connection."""


class Denied(Permanent):
    """The credentials are refused; fresh ones may help, once."""


class Wire:
    """Reads ranges over one connection, which is made anew after any failure."""

    def __init__(self, bucket: Bucket, tls: ssl.SSLContext | None, stall_seconds: float) -> None:
        self._bucket, self._tls, self._stall_seconds = bucket, tls, stall_seconds
        self._connection: HTTPConnection | None = None

    def read(
        self,
        path: str,
        headers: Mapping[str, str],
        into: memoryview,
        *,
        offset: int,
        total: int,
        etag: str,
        before_slice: Callable[[int], None],
    ) -> None:
        """Fill `into` with the range of an object of `total` bytes that starts at `offset`.

        `before_slice(n)` is called before n more bytes are read; what it raises ends the reading.

        Raises:
            RangeFailed: busy, reset, stalled, short, or another range than asked.
            SourceChanged: another object answers to the key.
            Denied: 403 or expired credentials.
            Permanent: any other refusal.
        """
        try:
            response = self._ask(path, headers)
            self._check(response, offset, len(into), total, etag)
            received = 0
            while received < len(into):
                n = min(SLICE_BYTES, len(into) - received)
                before_slice(n)
                got = response.readinto(into[received : received + n])
                if not got:
                    raise RangeFailed(f"the body ended after {received} of {len(into)} bytes")
                received += got
            if response.will_close or not response.isclosed():
                self.close()
        except (HTTPException, OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError: http.client on a socket that `abort` shut under it.
            self.close()
            raise RangeFailed(f"the connection failed ({cut(type(error).__name__, 60)})") from error
        except BaseException:
            self.close()
            raise

    def _ask(self, path: str, headers: Mapping[str, str]) -> HTTPResponse:
        if self._connection is None:
            host, port, patience = self._bucket.host, self._bucket.port, self._stall_seconds
            if self._bucket.scheme == "https":
                self._connection = HTTPSConnection(host, port, timeout=patience, context=self._tls)
            else:
                self._connection = HTTPConnection(host, port, timeout=patience)
        self._connection.request("GET", path, headers=dict(headers))
        return self._connection.getresponse()

    def _check(self, response: HTTPResponse, offset: int, length: int, total: int, etag: str) -> None:
        # Some servers (rclone) say 200 to a range and send it all the same: what Content-Range states is what counts.
        if response.status != 206 and not (response.status == 200 and response.getheader("Content-Range")):
            raise _refusal(response)
        expected = f"bytes {offset}-{offset + length - 1}/{total}"
        if (found := response.getheader("Content-Range", "")) != expected:
            raise RangeFailed(f"asked for {expected}, was answered {cut(found, 80)!r}")
        if response.getheader("Content-Length", "") != str(length):
            raise RangeFailed(
                f"asked for {length} bytes, was offered {cut(response.getheader('Content-Length'), 40)!r}"
            )
        if response.getheader("ETag", etag) != etag:
            raise SourceChanged("the object was replaced while it was read")

    def abort(self) -> None:
        """Wake a thread that is blocked in `read`, from another thread."""
        connection = self._connection
        sock = connection.sock if connection else None
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's: that one frees what a reader uses

    def close(self) -> None:
        """Close the connection; the next `read` makes another, by fresh DNS."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _refusal(response: HTTPResponse) -> Exception:
    found = _CODE.search(response.read(4096))
    code = found[1].decode() if found else ""
    status = response.status
    if status in (404, 412, 416):
        return SourceChanged(f"the object was replaced or removed while it was read ({status})")
    if status == 403 or code in _EXPIRED:
        return Denied(f"access denied while reading ({status} {code})")
    if status >= 500 or status in (200, 408, 425, 429) or code in ("RequestTimeout", "SlowDown"):
        return RangeFailed(f"S3 answered a range request with {status} {code}".rstrip())
    return Permanent(f"S3 refused a range request ({status} {code})")
