"""A bucket that serves any key as it is, those too that no honest server would list: LIST, HEAD and GET, nothing more."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

ETAG = '"0123456789abcdef0123456789abcdef-1"'  # of a multipart upload: it states nothing about the bytes


class HostileS3:
    """The server. `objects` are key and content; `fetched` the keys whose bodies were read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def environment(self) -> dict[str, str]:
        """What points AWS SDKs at it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if "list-type" in (query := parse_qs(url.query)):
                    self._send(200, server.listing(query.get("prefix", [""])[0]))
                else:
                    server.fetched.append(key := self._key())
                    self._send_part(server.objects.get(key))

            def do_HEAD(self) -> None:
                content = server.objects.get(self._key())
                self._send(404 if content is None else 200, content or b"", body=False)

            def _key(self) -> str:
                return unquote(urlsplit(self.path).path.split("/", 2)[2])

            def _send_part(self, content: bytes | None) -> None:
                asked = self.headers.get("Range", "").removeprefix("bytes=")
                if content is None or not asked:
                    return self._send(404 if content is None else 200, content or b"")
                first, last = (int(n) for n in asked.split("-"))
                part = content[first : last + 1]
                return self._send(206, part, told=f"bytes {first}-{first + len(part) - 1}/{len(content)}")

            def _send(self, status: int, content: bytes, *, body: bool = True, told: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", ETAG)
                if told:
                    self.send_header("Content-Range", told)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def listing(self, prefix: str) -> bytes:
        """LIST, keys escaped as `encoding-type=url` has it: XML could not carry some of them."""
        rows = "".join(
            f"<Contents><Key>{quote(key, safe='/')}</Key><Size>{len(data)}</Size><ETag>{escape(ETAG)}</ETag></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        head = "<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
        return f"<ListBucketResult>{head}{rows}</ListBucketResult>".encode()
