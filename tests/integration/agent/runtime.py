"""A containerd of its own that can be killed and started again, in front of a registry."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.contract.images_worlds import HOST, real_registry
from tests.integration.agent.standalone import eventually

IMAGE = f"{HOST}/server:1"


class Containerd:
    """The daemon; its socket is there while it runs."""

    def __init__(self, directory: Path, registry: Registry, program: Path | str = "containerd") -> None:
        self._program = str(program)
        self.socket = directory / "c.sock"
        self._directory, self._registry = directory, registry
        self._process: subprocess.Popen[bytes] | None = None
        hosts = directory / "certs.d" / HOST / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        url = f"http://{registry.host}:{registry.port}"
        hosts.write_text(f'server = "{url}"\n[host."{url}"]\n')
        (directory / "config.toml").write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            f'[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{directory}/certs.d"\n'
            f'[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{directory}/cni"\nconf_dir = "{directory}/cni"\n'
        )

    def push(self) -> None:
        """Put IMAGE into the registry."""
        self._registry.make_image("server", "1", [Layer(size_bytes=100_000, seed=str(n)) for n in range(2)])

    def start(self) -> None:
        with (self._directory / "containerd.log").open("ab") as log:
            command = ["setpriv", "--pdeathsig", "KILL", self._program, "-c", f"{self._directory}/config.toml"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self.socket.exists, 30, "containerd's socket")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)


@contextmanager
def containerd() -> Iterator[Containerd]:
    """A containerd, not started yet; everything of it goes at the end."""
    directory = Path(mkdtemp(prefix="pw"))  # a socket's path has 107 bytes
    try:
        with real_registry(directory) as registry:
            daemon = Containerd(directory, registry)
            daemon.push()
            try:
                yield daemon
            finally:
                daemon.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
