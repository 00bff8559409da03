"""TLS for reading bodies at the price of the decryption: OpenSSL receives a whole slice in one call, without the GIL.

Python's `ssl` hands over one record of at most 16 KiB a call, and the GIL before and after each: 2.1 CPU-s a GB, where
this costs 1.0. The loop over the records is OpenSSL's own: a buffering BIO that is asked for more than its buffer reads
from the SSL BIO below it, straight into our memory, until it has all.

Where Python's OpenSSL cannot be called, Python's `ssl` does the same work, slower.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import ssl
import weakref
from pathlib import Path

from agent.core.errors import Permanent, cut
from agent.models import libssl
from agent.models.channel import Channel, Tls, block_with_patience, shut
from agent.models.libssl import LibSsl

# Two records and their heads: one receive for two records. More costs: OpenSSL moves what is left of it for every record.
READ_BUFFER_BYTES = 2 * (16384 + 256) + 5
# AES-128 first: the decryption is what costs, and the 128-bit key is what S3 itself prefers.
CIPHER_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"


class Untrusted(Permanent):
    """The server does not prove that it is who it should be."""


def load_tls(authorities: str) -> Tls:
    """Return the fastest TLS there is, which trusts the certificate authorities of a PEM file or directory.

    Raises:
        Permanent: they cannot be read.
    """
    try:
        library = LibSsl()
    except ImportError:
        return PythonTls(authorities)
    return NativeTls(authorities, library)


class NativeTls:
    """OpenSSL called directly; one for all connections."""

    def __init__(self, authorities: str, library: LibSsl) -> None:
        self._lib = library
        self._context = library.SSL_CTX_new(library.TLS_client_method())
        if not self._context:
            raise Permanent("OpenSSL cannot be set up")
        weakref.finalize(self, library.SSL_CTX_free, self._context)
        place = authorities.encode()
        file, directory = (None, place) if Path(authorities).is_dir() else (place, None)
        library.ERR_clear_error()
        if not library.SSL_CTX_load_verify_locations(self._context, file, directory):
            raise _no_authorities(authorities)
        library.SSL_CTX_set_verify(self._context, libssl.VERIFY_PEER, None)
        library.SSL_CTX_ctrl(self._context, libssl.CTRL_SET_MIN_VERSION, libssl.TLS_1_2, None)
        library.SSL_CTX_set_ciphersuites(self._context, CIPHER_SUITES)
        library.SSL_CTX_ctrl(self._context, libssl.CTRL_SET_READ_AHEAD, 1, None)
        library.SSL_CTX_set_default_read_buffer_len(self._context, READ_BUFFER_BYTES)

    def wrap(self, sock: socket.socket, host: str, patience_seconds: float) -> Channel:
        """See `Tls`."""
        block_with_patience(sock, patience_seconds)
        channel = _NativeChannel(self._lib, self._lib.SSL_new(self._context), sock)
        try:
            channel.shake_hands(host)
        except BaseException:
            channel.close()
            raise
        return channel


class _NativeChannel:
    """A connection: `_ssl` speaks TLS over the socket; `_chain` is a buffering BIO over it, for whole slices."""

    def __init__(self, library: LibSsl, handle: int, sock: socket.socket) -> None:
        self._lib, self._ssl, self._sock = library, handle, sock
        self._chain = library.BIO_new(library.BIO_f_buffer())
        below = library.BIO_new(library.BIO_f_ssl())
        if not (handle and self._chain and below and library.SSL_set_fd(handle, sock.fileno())):
            sock.close()
            raise OSError("OpenSSL is out of memory")
        library.BIO_ctrl(below, libssl.BIO_SET_SSL, libssl.BIO_CLOSE, handle)  # owns the handle from here on
        library.BIO_push(self._chain, below)

    def shake_hands(self, host: str) -> None:
        lib, name = self._lib, host.encode("idna")
        if _is_address(host):
            named = lib.X509_VERIFY_PARAM_set1_ip_asc(lib.SSL_get0_param(self._ssl), name)
        else:
            lib.SSL_set_hostflags(self._ssl, libssl.NO_PARTIAL_WILDCARDS)
            named = lib.SSL_set1_host(self._ssl, name)
            lib.SSL_ctrl(self._ssl, libssl.CTRL_SET_SERVER_NAME, 0, name)
        if not named:
            raise Permanent(f"{cut(ascii(host), 100)} is no name that a certificate could bear")
        lib.ERR_clear_error()
        result = lib.SSL_connect(self._ssl)
        if result != 1:
            if verdict := lib.SSL_get_verify_result(self._ssl):
                raise untrusted(host, lib.X509_verify_cert_error_string(verdict).decode())
            raise self._failure(result)

    def send(self, data: bytes) -> None:
        """See `Channel`."""
        self._lib.ERR_clear_error()
        result = self._lib.SSL_write(self._ssl, data, len(data))  # writes all: partial writes are not switched on
        if result <= 0:
            raise self._failure(result)

    def receive(self, into: memoryview) -> int:
        """See `Channel`. Never between a `fill` that came back short and its end: that may have left some in the chain."""
        return self._received(self._lib.SSL_read, self._ssl, into)

    def fill(self, into: memoryview) -> int:
        """See `Channel`."""
        return self._received(self._lib.BIO_read, self._chain, into)

    def _received(self, read: libssl.Function, handle: int, into: memoryview) -> int:
        self._lib.ERR_clear_error()
        result: int = read(handle, ctypes.addressof(ctypes.c_char.from_buffer(into)), len(into))
        if result > 0:
            return result
        failure = self._lib.SSL_get_error(self._ssl, result)
        if failure == libssl.ERROR_ZERO_RETURN:
            return 0
        raise self._failure(result)

    def _failure(self, result: int) -> OSError:
        kind = self._lib.SSL_get_error(self._ssl, result)
        if kind in (libssl.ERROR_WANT_READ, libssl.ERROR_WANT_WRITE):
            return TimeoutError("silent for too long")
        reason = self._lib.ERR_reason_error_string(self._lib.ERR_get_error())
        return ConnectionError(f"TLS failed: {reason.decode() if reason else 'the connection was lost'}")

    def abort(self) -> None:
        """See `Channel`."""
        shut(self._sock)

    def close(self) -> None:
        """See `Channel`."""
        chain, self._chain = self._chain, None
        if chain:
            self._lib.BIO_free_all(chain)
        self._sock.close()


class PythonTls:
    """TLS by Python's `ssl`: for builds of Python whose OpenSSL cannot be called."""

    def __init__(self, authorities: str) -> None:
        place = Path(authorities)
        try:
            self._context = ssl.create_default_context(
                cafile=None if place.is_dir() else authorities, capath=authorities if place.is_dir() else None
            )
        except OSError as error:
            raise _no_authorities(authorities) from error

    def wrap(self, sock: socket.socket, host: str, patience_seconds: float) -> Channel:
        """See `Tls`."""
        try:
            sock.settimeout(patience_seconds)
            return _PythonChannel(self._context.wrap_socket(sock, server_hostname=host))
        except ssl.SSLCertVerificationError as error:
            raise untrusted(host, error.verify_message) from error
        finally:
            if sock.fileno() >= 0:  # not detached: the handshake failed
                sock.close()


class _PythonChannel:
    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        """See `Channel`."""
        self._sock.sendall(data)

    def receive(self, into: memoryview) -> int:
        """See `Channel`."""
        return self._sock.recv_into(into)

    def fill(self, into: memoryview) -> int:
        """See `Channel`."""
        done = 0
        while done < len(into) and (got := self._sock.recv_into(into[done:])):
            done += got
        return done

    def abort(self) -> None:
        """See `Channel`."""
        shut(self._sock)

    def close(self) -> None:
        """See `Channel`."""
        self._sock.close()


def untrusted(host: str, why: str) -> Untrusted:
    """Return the sentence for a certificate that does not do."""
    return Untrusted(
        f"the certificate of {cut(ascii(host)[1:-1], 100)} is not trusted ({cut(why, 80)}): "
        "name the file of its certificate authority in AWS_CA_BUNDLE, or mend the certificate"
    )


def _no_authorities(place: str) -> Permanent:
    return Permanent(f"cannot load certificate authorities from {cut(ascii(place), 200)}: is it a PEM file?")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
