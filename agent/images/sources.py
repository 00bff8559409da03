"""Where the bytes of pulls came from: containerd tells nobody which mirror served, so its own connections are counted.

Counted is what TCP received, so names and headers too, some per cent more than the layers. Only the connections of containerd's
process, only while a pull of prewarm's runs, and only where it is in this network namespace, as on a node with hostNetwork. A
connection that comes and goes between two looks is left out: nothing would tell whose it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from agent.core.units import format_size
from agent.images.aside import aside
from agent.images.hosts import RegistryHost
from agent.images.sockets import Connection, Connections

log = structlog.get_logger(__name__)

MIRROR, REGISTRY, ELSEWHERE = "mirror", "registry", "elsewhere"
_EVERY_SECONDS = 0.25
_PORTS = {"https": 443, "http": 80}
Remote = tuple[str, int]


class Sources:
    """Counts what one containerd receives. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._places: dict[Remote, tuple[str, str]] = {}  # kind, and URL without path
        self._totals: Counter[Remote] = Counter()
        self._seen: dict[int, int] = {}  # bytes of a connection, by cookie, that are in the totals
        self._pulls = 0
        self._connections: Connections | None = None
        self._looking = asyncio.Lock()

    def received(self) -> Mapping[str, int]:
        """Return the bytes of all pulls so far, by kind."""
        kinds = Counter(dict.fromkeys((MIRROR, REGISTRY, ELSEWHERE), 0))
        for remote, count in self._totals.items():
            kinds[self._places.get(remote, (ELSEWHERE, ""))[0]] += count
        return kinds

    @contextlib.asynccontextmanager
    async def counting(self, process: Path, hosts: Sequence[RegistryHost]) -> AsyncIterator[Counter[str]]:
        """Count while the context lasts; what it yields is filled at its end with bytes by place, "elsewhere" for all others.

        Args:
            process: containerd's directory in /proc.
            hosts: where the image may come from: mirrors, and at last its registry.
        """
        found: Counter[str] = Counter()
        self._pulls += 1
        try:
            await self._look(process)
            before = self._totals.copy()
            asked = [self._know(host, REGISTRY if host is hosts[-1] else MIRROR) for host in hosts]
            beside = [
                asyncio.create_task(e, name="count bytes by source") for e in (*asked, self._keep_looking(process))
            ]
            try:
                yield found
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await self._look(process)
                for remote, count in (self._totals - before).items():
                    found[self._places.get(remote, ("", ELSEWHERE))[1]] += count
        finally:
            self._pulls -= 1
            if not self._pulls:
                self._stop()

    async def _know(self, host: RegistryHost, kind: str) -> None:
        """Learn a host's addresses beside the pull: names may take long to resolve, or never."""
        url = urlsplit(host.base)
        port = url.port or _PORTS.get(url.scheme, 0)
        for address in await aside(lambda: _addresses(url.hostname or "", port), "registry addresses"):
            self._places[address, port] = kind, f"{url.scheme}://{url.netloc}"

    async def _keep_looking(self, process: Path) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self._look(process)

    async def _look(self, process: Path) -> None:
        """Add what came since the last look; the first takes what was there before as given."""
        async with self._looking:
            first = self._connections is None
            try:
                connections = self._connections = self._connections or _connections_of(process)
                here, ended = await asyncio.to_thread(_ask, connections, process)
            except OSError as error:
                if first:
                    log.debug("bytes of pulls are not counted by source", error=str(error))
                return
            if first:
                self._seen = {each.cookie: each.received_bytes for each in here}
            for each in [*here, *(e for e in ended if e.cookie in self._seen)]:
                self._totals[each.remote] += each.received_bytes - self._seen.get(each.cookie, 0)
                self._seen[each.cookie] = each.received_bytes
            for each in ended:
                self._seen.pop(each.cookie, None)

    def _stop(self) -> None:
        self._seen.clear()
        if self._connections:
            self._connections.close()
            self._connections = None


def _connections_of(process: Path) -> Connections:
    """Open what tells of connections; made by the loop's thread alone, so that `_stop` closes every one.

    Raises:
        OSError: they cannot be seen from here.
    """
    if (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink():
        raise OSError("containerd is in another network namespace")
    return Connections()


def _ask(connections: Connections, process: Path) -> tuple[list[Connection], list[Connection]]:
    """Return containerd's outgoing connections, and all that have ended."""
    ended, every = connections.ended(), connections.open_now()
    inodes = _sockets(process)
    served = {each.port for each in every if each.listens and each.inode in inodes}
    return [each for each in every if each.inode in inodes and each.port not in served], ended


def told(found: Mapping[str, int]) -> str:
    """Say in a few words where an image came from, "" where that is not known; what is below a hundredth is left out."""
    whole = sum(found.values())
    parts = [f"{format_size(n)} from {place}" for place, n in sorted(found.items()) if n * 100 > whole]
    return f"fetched {', '.join(parts)}" if parts else ""


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # containerd may know better, and what it gets counts as from elsewhere
        return []
    return [str(address[0]) for *_, address in found]


def _sockets(process: Path) -> set[int]:
    """Return the inodes of a process's sockets."""
    inodes = set()
    for handle in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(handle.readlink())
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes
