"""Peers of `bench.hydrate` that are libraries, or take more than one command: `python -m bench.peers KIND SOURCE.json DIR`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.models.buffers import make_buffers

BUCKET = "bench"
PART_BYTES = 16 << 20
THREADS = 8
LOOP_PART_BYTES = 8 << 20  # as the C program and prewarm
FRESH = os.O_WRONLY | os.O_CREAT | os.O_DIRECT


def main() -> int:
    """Download everything that SOURCE.json names into DIR."""
    kind, description, to = sys.argv[1:]
    source = json.loads(Path(description).read_text())
    {"crt": by_crt, "obstore": by_obstore, "curl": by_curl, "loop": by_loop}[kind](source, Path(to))
    return 0


def by_curl(source: Any, to: Path) -> None:
    """Large objects in eight ranges, a process each; small ones by one process with eight connections."""
    secure = ["--cacert", source["authorities"]] if source["authorities"] else []
    base, size = source["url"], source["size"]
    running = []
    if size <= PART_BYTES:
        lines = [
            f'url="{base}{r}"\noutput="{to / k}"\n' for k, r in zip(source["keys"], source["requests"], strict=True)
        ]
        each = -(-len(lines) // THREADS)
        for n in range(0, len(lines), each):
            running.append(subprocess.Popen(["curl", "-fsS", *secure, "-K", "-"], stdin=subprocess.PIPE))
            running[-1].stdin.write("".join(lines[n : n + each]).encode())  # type: ignore[union-attr]
            running[-1].stdin.close()  # type: ignore[union-attr]
    else:
        pieces = max(1, THREADS // len(source["keys"]))
        step = -(-size // pieces)
        for key, request in zip(source["keys"], source["requests"], strict=True):
            for n, begin in enumerate(range(0, size, step)):
                span = ["-r", f"{begin}-{min(begin + step, size) - 1}", "-o", f"{to / key}.{n}"]
                running.append(subprocess.Popen(["curl", "-fsS", *secure, *span, f"{base}{request}"]))
    if any(process.wait() for process in running):
        raise SystemExit("curl failed")


def by_loop(source: Any, to: Path) -> None:
    """What Python and the proof cost by themselves: the C program's loop with a CRC64NVME of each part, and nothing of prewarm's."""
    from awscrt import checksums

    size, at = source["size"], urlsplit(source["url"])
    pairs = list(zip(source["keys"], source["requests"], strict=True))
    parts = deque((key, request, begin) for begin in range(0, size, LOOP_PART_BYTES) for key, request in pairs)
    whole = {key: os.open(to / key, FRESH) for key, _ in pairs} if size > LOOP_PART_BYTES else {}
    for fd in whole.values():
        os.posix_fallocate(fd, 0, -(-size // 4096) * 4096)

    def work(buffer: memoryview) -> None:
        with socket.create_connection((at.hostname or "", at.port or 80)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                try:
                    key, request, begin = parts.popleft()
                except IndexError:
                    return
                length = min(LOOP_PART_BYTES, size - begin)
                said = (
                    f"GET {request} HTTP/1.1\r\nHost: {at.netloc}\r\nRange: bytes={begin}-{begin + length - 1}\r\n\r\n"
                )
                sock.sendall(said.encode())
                head = sock.recv(16384)
                if not head.startswith(b"HTTP/1.1 206"):
                    raise SystemExit(head[:200].decode(errors="replace"))
                got = len(rest := head.partition(b"\r\n\r\n")[2])
                buffer[:got] = rest
                if got < length and sock.recv_into(buffer[got:], length - got, socket.MSG_WAITALL) != length - got:
                    raise SystemExit("the answer ended early")
                checksums.crc64nvme(buffer[:length])
                fd = whole.get(key) or os.open(to / key, FRESH)
                os.pwrite(fd, buffer[: -(-length // 4096) * 4096], begin)
                if not whole:
                    os.ftruncate(fd, size)
                    os.close(fd)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, make_buffers(THREADS, LOOP_PART_BYTES)))
    for fd in whole.values():
        os.ftruncate(fd, size)


def by_obstore(source: Any, to: Path) -> None:
    """Threads with `get_range`, written in place: its own streams write from one thread."""
    from obstore import get_range
    from obstore.store import S3Store

    store = S3Store(
        BUCKET, endpoint=source["url"], virtual_hosted_style_request=False, client_options={"allow_http": True}
    )
    files = {key: os.open(to / key, os.O_WRONLY | os.O_CREAT) for key in source["keys"]}

    def one(part: tuple[str, int, int]) -> None:
        key, begin, length = part
        os.pwrite(files[key], get_range(store, f"{source['prefix']}/{key}", start=begin, length=length), begin)

    size = source["size"]
    parts = [(k, b, min(PART_BYTES, size - b)) for k in source["keys"] for b in range(0, size, PART_BYTES)]
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(one, parts))


def by_crt(source: Any, to: Path) -> None:
    """The client under the AWS SDKs, straight to files."""
    from awscrt import auth, http, io, s3

    group = io.EventLoopGroup()
    bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
    credentials = auth.AwsCredentialsProvider.new_static(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    signing = s3.create_default_s3_signing_config(region="us-east-1", credential_provider=credentials)
    parts = urlsplit(source["url"])
    context = io.TlsContextOptions()
    if source["authorities"]:
        context.override_default_trust_store_from_path(ca_filepath=source["authorities"])
    secure = io.ClientTlsContext(context).new_connection_options()
    secure.set_server_name(parts.hostname)
    mode = s3.S3RequestTlsMode.ENABLED if source["authorities"] else s3.S3RequestTlsMode.DISABLED
    client = s3.S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        signing_config=signing,
        tls_mode=mode,
        tls_connection_options=secure if source["authorities"] else None,
        part_size=PART_BYTES,
        throughput_target_gbps=10,
    )
    waiting = []
    for key in source["keys"]:
        headers = http.HttpHeaders([("host", parts.netloc), ("content-length", "0")])
        request = http.HttpRequest("GET", f"/{BUCKET}/{source['prefix']}/{key}", headers)
        made = client.make_request(
            type=s3.S3RequestType.GET_OBJECT,
            request=request,
            recv_filepath=str(to / key),
        )
        waiting.append(made.finished_future)
    for future in waiting:
        future.result(600)


if __name__ == "__main__":
    sys.exit(main())
