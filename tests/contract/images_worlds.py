"""Two worlds for the images contract: the in-memory twin, and a real containerd in front of a real registry.

Both offer the same few verbs. The real one has its own root, state and socket, and a relay before the registry that can
go away or stop halfway, so that a pull can be caught in the act.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.images.client import ContainerdClient
from agent.images.layout import this_architecture
from agent.images.runtime import Runtime
from tests.bed import needs
from tests.bed.certificates import Authority, Identity
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.bed.s3 import free_port
from tests.fakes.containerd import FakeContainerd, make_image

HOST = "registry.test"
SNAPSHOTTER = "overlayfs"


class Node(Runtime, Protocol):
    """The runtime, and what only tests ask of it."""

    async def present(self, name: str) -> bool: ...

    async def remove(self, name: str) -> None: ...


class World(Protocol):
    """A node's containerd and the registry behind it."""

    @property
    def node(self) -> Node: ...

    @property
    def pins_count(self) -> bool:
        """Whether the kubelet is told of pins; containerd 1.6.20 ignores them."""
        ...

    async def push(self, name: str, *, layers: int = 2, big: bool = False, index: bool = False) -> str:
        """Put an image into the registry as HOST/`name`; return the digest of its tag."""
        ...

    async def forget(self, record: str) -> None:
        """Delete one image record, as a person with ctr would."""
        ...

    async def drop_snapshot(self, chain_id: str) -> None: ...

    def registry_leaves(self) -> None: ...

    def block_layers(self) -> None:
        """Let the registry stop in the middle of big layers from now on."""
        ...

    async def stuck(self) -> None:
        """Return when a pull is under way and blocked."""
        ...

    async def idle(self) -> None:
        """Return when the blocked pull fetches nothing any more."""
        ...

    async def stop(self) -> None:
        """End containerd."""
        ...


class TwinWorld:
    """The twin."""

    def __init__(self) -> None:
        self._fake = FakeContainerd()

    @property
    def node(self) -> FakeContainerd:
        return self._fake

    @property
    def pins_count(self) -> bool:
        return self._fake.pins_count

    async def push(self, name: str, *, layers: int = 2, big: bool = False, index: bool = False) -> str:
        image = make_image(name, layers, index=index)
        self._fake.registry[f"{HOST}/{name}"] = image
        return image.target

    async def forget(self, record: str) -> None:
        self._fake.forget(record)

    async def drop_snapshot(self, chain_id: str) -> None:
        self._fake.drop_snapshot(chain_id)

    def registry_leaves(self) -> None:
        self._fake.registry_away = True

    def block_layers(self) -> None:
        self._fake.gate = asyncio.Event()

    async def stuck(self) -> None:
        await self._fake.pull_began.wait()

    async def idle(self) -> None:
        assert not self._fake.pulling

    async def stop(self) -> None:
        self._fake.stop()


class Relay:
    """A TCP relay that passes at most `allowance` bytes of each connection to the client while it is blocked."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocked: list[asyncio.Task[None]] = []
        self.allowance: int | None = None
        self.passed = 0  # bytes to the client so far
        self.watch: Callable[[int], None] = lambda passed: None  # told of each block that passed
        self.stuck = asyncio.Event()

    async def start(self, identity: Identity | None = None) -> int:
        """Listen on a port more, over TLS where there is an identity; return the port."""
        context = None
        if identity:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            await asyncio.to_thread(context.load_cert_chain, identity.certificate, identity.key)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def leave(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()

    async def let_go(self) -> None:
        """Return when every connection that was blocked has been given up by the client."""
        await asyncio.wait(self._blocked)

    async def end(self) -> None:
        self.leave()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream, to_upstream = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                asking = both.create_task(self._pump(reader, to_upstream, task, answers=False))
                answering = both.create_task(self._pump(upstream, writer, task, answers=True))
                await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
                answering.cancel()
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass  # either side may hang up at any time, and so may the test
        finally:
            self._tasks.discard(task)
            for each in (writer, to_upstream):
                each.close()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        task: asyncio.Task[None],
        *,
        answers: bool,
    ) -> None:
        passed, allowance = 0, self.allowance if answers else None
        with suppress(OSError):
            while block := await source.read(1 << 16):
                passed += len(block)
                if allowance is not None and passed > allowance:
                    self._blocked.append(task)
                    self.stuck.set()
                    await asyncio.Event().wait()
                sink.write(block)
                await sink.drain()
                if answers:
                    self.passed += len(block)
                    self.watch(self.passed)


@dataclass(slots=True, kw_only=True)
class RealWorld:
    """A real containerd, with its relay and registry."""

    version: str
    directory: Path
    client: ContainerdClient
    registry: Registry
    relay: Relay
    address: str  # of the relay, over plain HTTP
    secure_address: str  # over TLS
    process: asyncio.subprocess.Process | None = None

    @property
    def node(self) -> ContainerdClient:
        return self.client

    @property
    def pins_count(self) -> bool:
        return self.version != "1.6"

    async def push(
        self, name: str, *, layers: int = 2, big: bool = False, index: bool = False, size_bytes: int = 1000
    ) -> str:
        repository, _, tag = name.rpartition(":")
        size_bytes = (4 << 20) if big else size_bytes
        wanted = [Layer(size_bytes=size_bytes, seed=f"{name}/{n}") for n in range(layers)]
        platforms = ["linux/arm64", "linux/amd64"] if index else []
        return await asyncio.to_thread(self.registry.make_image, repository, tag, wanted, platforms=platforms)

    async def forget(self, record: str) -> None:
        await self._ctr("images", "rm", record)

    async def drop_snapshot(self, chain_id: str) -> None:
        await self._ctr("snapshots", "rm", chain_id)

    def registry_leaves(self) -> None:
        self.relay.leave()

    def block_layers(self) -> None:
        self.relay.allowance = 1 << 20

    async def stuck(self) -> None:
        await self.relay.stuck.wait()

    async def idle(self) -> None:
        await self.relay.let_go()

    async def start(self) -> None:
        """Start containerd, with what it had before."""
        program = containerd_of(self.version)
        assert program is not None
        socket = Path(self.client.socket)
        await asyncio.to_thread(socket.unlink, missing_ok=True)
        with (self.directory / "containerd.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                program,
                "-c",
                f"{self.directory}/config.toml",
                stdout=log,
                stderr=log,
                env=os.environ | {"SSL_CERT_FILE": f"{self.directory}/ca/ca.crt"},
            )
        await asyncio.to_thread(_wait_for_socket, socket)

    async def kill(self) -> None:
        """End containerd as the kernel would when memory is short."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    async def _ctr(self, *arguments: str) -> None:
        command = ["ctr", "-a", self.client.socket, "-n", "k8s.io", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0, command


VERSIONS = ("1.6", "1.7", "2.1", "2.2")


def containerd_of(version: str) -> Path | None:
    """The program of one of VERSIONS, None where it is not there."""
    match version:
        case "1.6":
            found = shutil.which("containerd")
            return Path(found) if found else None
        case "1.7" | "2.1":
            directory = needs.newer("trixie" if version == "1.7" else "sid", "containerd")
            return directory / "containerd" if directory else None
        case _:
            return needs.find("containerd")


def why_not_real(version: str = "1.6") -> str | None:
    """One line why the real world cannot be had here."""
    if os.geteuid() != 0:
        return "a real containerd needs root"
    lacking = [name for name in ("containerd", "ctr", "docker-registry") if shutil.which(name) is None]
    if containerd_of(version) is None:
        lacking.append(f"containerd {version}")
    return f"not there: {', '.join(lacking)}; run `python3 -m tests.bed.provision --images`" if lacking else None


@contextmanager
def real_registry(directory: Path) -> Iterator[Registry]:
    """Run docker-registry on a free port of the loopback."""
    address = f"127.0.0.1:{free_port()}"
    (directory / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/blobs}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: {address}}}\n"
    )
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", directory / "registry.yml"], stdout=log, stderr=log)
    try:
        _wait_for_port(process, *address.split(":"))
        yield Registry(address)
    finally:
        process.terminate()
        process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], host: str, port: str) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError("docker-registry did not start")


def _wait_for_socket(address: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:  # it is there before anybody listens
            probe.connect(str(address))
            return
        time.sleep(0.02)
    raise RuntimeError(f"containerd did not start: see {address.parent}/containerd.log")


def _configuration(directory: Path, version: str) -> str:
    """containerd's config.toml: state below `directory`, and a runtime `other` with a snapshotter of its own."""
    common = f'root = "{directory}/root"\nstate = "{directory}/state"\n[grpc]\naddress = "{directory}/c.sock"\n'
    if version.startswith("2"):
        images, runtime = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
        unpack = "".join(
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
            f'platform = "linux/{this_architecture()}"\nsnapshotter = "{name}"\n'
            for name in (SNAPSHOTTER, "native")
        )
        return f"""version = 3
{common}
[plugins."{images}".registry]
config_path = "{directory}/certs.d"
[plugins."{images}".runtime_platforms.other]
platform = "linux/{this_architecture()}"
snapshotter = "native"
{unpack}[plugins."{runtime}".cni]
bin_dir = "{directory}/cni"
conf_dir = "{directory}/cni"
"""
    cri = "io.containerd.grpc.v1.cri"
    runtimes = "".join(
        f'[plugins."{cri}".containerd.runtimes.{name}]\nruntime_type = "io.containerd.runc.v2"\n{more}'
        for name, more in (("runc", ""), ("other", 'snapshotter = "native"\n'))
    )
    return f"""version = 2
{common}
[plugins."{cri}".registry]
config_path = "{directory}/certs.d"
{runtimes}
[plugins."{cri}".cni]
bin_dir = "{directory}/cni"
conf_dir = "{directory}/cni"
"""


@asynccontextmanager
async def real_world(
    directory: Path, registry: Registry, version: str = "1.6", *, front: tuple[str, int] | None = None
) -> AsyncIterator[RealWorld]:
    """Run containerd with all its state below `directory` (short: a socket's path has 107 bytes).

    `front` is what it reaches in place of the registry.
    """
    relay = Relay(front or (registry.host, registry.port))
    port = await relay.start()
    authority = await asyncio.to_thread(Authority, directory / "ca")
    identity = await asyncio.to_thread(authority.issue, "registry", "IP:127.0.0.1")
    secure = await relay.start(identity)
    hosts = directory / "certs.d" / HOST / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    url = f"http://127.0.0.1:{port}"
    hosts.write_text(f'server = "{url}"\n[host."{url}"]\n')
    address = directory / "c.sock"
    (directory / "config.toml").write_text(_configuration(directory, version))
    world = RealWorld(
        version=version,
        directory=directory,
        client=ContainerdClient(str(address)),
        registry=registry,
        relay=relay,
        address=f"127.0.0.1:{port}",
        secure_address=f"127.0.0.1:{secure}",
    )
    try:
        await world.start()
        yield world
    finally:
        await world.client.close()
        await world.stop()
        await relay.end()
