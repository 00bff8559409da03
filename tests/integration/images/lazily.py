"""A containerd with the stargz snapshotter, both in a mount namespace of their own: FUSE mounts end with them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.images.client import ContainerdClient
from agent.images.layout import this_architecture
from tests.bed import needs
from tests.bed.registry import Registry
from tests.contract.images_worlds import HOST, Relay, containerd_of, why_not_real

SNAPSHOTTER = "stargz"


@dataclass(slots=True, kw_only=True)
class LazyNode:
    """The node, and the relay before its registry."""

    client: ContainerdClient
    relay: Relay
    snapshotter: asyncio.subprocess.Process


def why_not_lazy(version: str) -> str | None:
    """One line why it cannot be had here."""
    if needs.find("containerd-stargz-grpc") is None:
        return "the stargz snapshotter is not built: run `python3 -m tests.bed.provision --images`"
    return "there is no /dev/fuse" if not Path("/dev/fuse").exists() else why_not_real(version)


@asynccontextmanager
async def lazy_node(directory: Path, registry: Registry, version: str, *, annotations: bool) -> AsyncIterator[LazyNode]:
    """Run both below `directory`; with `annotations` off, as by default, containerd does not tell the snapshotter what it needs."""
    relay = Relay((registry.host, registry.port))
    port = await relay.start()
    await asyncio.to_thread(_write, directory, port, annotations=annotations)
    program, stargz = containerd_of(version), needs.find("containerd-stargz-grpc")
    assert program is not None
    assert stargz is not None
    own = ["unshare", "--mount", "--propagation", "private"]
    options = [f"--root={directory}/stargz", f"--address={directory}/s.sock", f"--config={directory}/stargz.toml"]
    snapshotter = await _start([*own, str(stargz), *options], directory / "stargz.log")
    await _exists(directory / "s.sock")
    beside = ["nsenter", "-t", str(snapshotter.pid), "--mount"]
    daemon = await _start([*beside, str(program), "-c", f"{directory}/config.toml"], directory / "containerd.log")
    await _exists(directory / "c.sock")
    client = ContainerdClient(str(directory / "c.sock"), SNAPSHOTTER)
    try:
        yield LazyNode(client=client, relay=relay, snapshotter=snapshotter)
    finally:
        await client.close()
        for process in (daemon, snapshotter):
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()
        await relay.end()


def _write(directory: Path, port: int, *, annotations: bool) -> None:
    hosts = directory / "certs.d" / HOST / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'server = "http://127.0.0.1:{port}"\n')
    (directory / "stargz.toml").write_text(
        f'no_background_fetch = true\n[[resolver.host."{HOST}".mirrors]]\nhost = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    told = 'enable_remote_snapshot_annotations = "true"' if annotations else ""
    unpack = "".join(
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        f'platform = "linux/{this_architecture()}"\nsnapshotter = "{name}"\n'
        for name in ("overlayfs", SNAPSHOTTER)
    )
    (directory / "config.toml").write_text(f"""version = 3
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/c.sock"
[proxy_plugins.stargz]
type = "snapshot"
address = "{directory}/s.sock"
[proxy_plugins.stargz.exports]
root = "{directory}/stargz"
{told}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "stargz"
disable_snapshot_annotations = {str(not annotations).lower()}
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{directory}/certs.d"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dir = "{directory}/cni"
conf_dir = "{directory}/cni"
{unpack}""")


async def _start(command: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    output = await asyncio.to_thread(os.open, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    finally:
        os.close(output)


async def _exists(socket: Path) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(str(socket))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


def remove(directory: Path) -> None:
    """Remove what is left; mounts have gone with their namespace."""
    shutil.rmtree(directory, ignore_errors=True)
