"""Asks a containerd what it is: version, what is loaded, and its configuration, read through /proc of the process that listens."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from agent.images.daemon import Daemon, DaemonConfig, config_file, read_config
from agent.images.rpc import Rpc
from agent.pb.containerd import introspection_pb2, version_pb2

_TRANSFER = "io.containerd.transfer.v1"
_SNAPSHOTTER = "io.containerd.snapshotter.v1"
_CONNECT_SECONDS = 5.0


async def inspect_daemon(rpc: Rpc, socket_path: str, proc: Path = Path("/proc")) -> Daemon:
    """Look at the daemon now.

    Raises:
        Transient: containerd is away.
    """
    what = "ask containerd what it can do"
    version = await rpc.native("version.v1.Version/Version", Empty(), version_pb2.VersionResponse, what)
    request = introspection_pb2.PluginsRequest(filters=[f"type=={_TRANSFER}", f"type=={_SNAPSHOTTER}"])
    path = "introspection.v1.Introspection/Plugins"
    loaded = await rpc.native(path, request, introspection_pb2.PluginsResponse, what)
    config, root = await asyncio.to_thread(_read, proc, socket_path)
    return Daemon(
        version=version.version,
        transfer=any(p.type == _TRANSFER and not p.init_err.message for p in loaded.plugins),
        snapshotters={p.id: p.init_err.message for p in loaded.plugins if p.type == _SNAPSHOTTER},
        directories={p.id: p.exports["root"] for p in loaded.plugins if p.exports.get("root", "").startswith("/")},
        config=config,
        root=root,
    )


def _read(proc: Path, path: str) -> tuple[DaemonConfig | None, Path]:
    """Return its configuration and file system; no configuration, and ours, where its process is not to be seen from here."""
    try:
        process = proc / str(_listener(path))
        arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        file = str((process / "cwd").readlink() / config_file(arguments))
    except OSError:
        return None, Path("/")
    return read_config(process / "root", file), process / "root"


def _listener(path: str) -> int:
    """Return the process that listens on a unix socket, as this process counts them; 0 if it is in none of its namespaces."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        probe.connect(path)
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
