"""The functions of OpenSSL that `agent.models.tls` calls, found in the very library that Python's own `ssl` is linked to.

Declarations only. ctypes frees the GIL during each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from typing import Any

Function = Callable[..., Any]

# Constants of ssl.h, bio.h, tls1.h, x509_vfy.h: part of OpenSSL's ABI since 1.1.1.
VERIFY_PEER = 1
CTRL_SET_READ_AHEAD = 41
CTRL_SET_SERVER_NAME = 55
CTRL_SET_MIN_VERSION = 123
TLS_1_2 = 0x0303
NO_PARTIAL_WILDCARDS = 4
BIO_SET_SSL = 109
BIO_CLOSE = 1
ERROR_WANT_READ, ERROR_WANT_WRITE, ERROR_SYSCALL, ERROR_ZERO_RETURN = 2, 3, 5, 6

_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # name: result, arguments
    "TLS_client_method": (c_void_p,),
    "SSL_CTX_new": (c_void_p, c_void_p),
    "SSL_CTX_free": (None, c_void_p),
    "SSL_CTX_ctrl": (c_long, c_void_p, c_int, c_long, c_void_p),
    "SSL_CTX_load_verify_locations": (c_int, c_void_p, c_char_p, c_char_p),
    "SSL_CTX_set_verify": (None, c_void_p, c_int, c_void_p),
    "SSL_CTX_set_default_read_buffer_len": (None, c_void_p, c_size_t),
    "SSL_CTX_set_ciphersuites": (c_int, c_void_p, c_char_p),
    "SSL_new": (c_void_p, c_void_p),
    "SSL_free": (None, c_void_p),
    "SSL_ctrl": (c_long, c_void_p, c_int, c_long, c_void_p),
    "SSL_set_fd": (c_int, c_void_p, c_int),
    "SSL_set1_host": (c_int, c_void_p, c_char_p),
    "SSL_set_hostflags": (None, c_void_p, c_int),
    "SSL_get0_param": (c_void_p, c_void_p),
    "SSL_connect": (c_int, c_void_p),
    "SSL_read": (c_int, c_void_p, c_void_p, c_int),
    "SSL_write": (c_int, c_void_p, c_char_p, c_int),
    "SSL_get_error": (c_int, c_void_p, c_int),
    "SSL_get_verify_result": (c_long, c_void_p),
    "X509_VERIFY_PARAM_set1_ip_asc": (c_int, c_void_p, c_char_p),
    "X509_verify_cert_error_string": (c_char_p, c_long),
    "BIO_f_ssl": (c_void_p,),
    "BIO_f_buffer": (c_void_p,),
    "BIO_new": (c_void_p, c_void_p),
    "BIO_push": (c_void_p, c_void_p, c_void_p),
    "BIO_ctrl": (c_long, c_void_p, c_int, c_long, c_void_p),
    "BIO_read": (c_int, c_void_p, c_void_p, c_int),
    "BIO_free_all": (None, c_void_p),
    "ERR_clear_error": (None,),
    "ERR_get_error": (c_ulong,),
    "ERR_reason_error_string": (c_char_p, c_ulong),
}


class LibSsl:
    """The functions by their C names.

    Raises:
        ImportError: Python carries its OpenSSL inside itself (some builds do), or has none.
    """

    def __init__(self) -> None:
        import _ssl

        try:
            # A symbol is sought in the extension module and then in the libraries that it is linked to.
            library = ctypes.CDLL(_ssl.__file__)
            self._functions: dict[str, Function] = {name: getattr(library, name) for name in _FUNCTIONS}
        except (AttributeError, OSError) as error:
            raise ImportError("Python's ssl is not linked to a libssl that can be called") from error
        for name, (result, *arguments) in _FUNCTIONS.items():
            function: Any = self._functions[name]
            function.restype, function.argtypes = result, arguments

    def __getattr__(self, name: str) -> Function:
        return self._functions[name]
