"""A small file system of its own on a loop device, for what only a full, slow or broken disk shows. Needs root.

The mount frees its loop device when it goes (autoclear), and mounts that a killed process left are taken away by the next.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "prewarm-disk-"


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a new ext4 of `size_bytes` below `directory` as long as the context lasts."""
    _sweep()
    image, at = directory / "disk.img", directory / f"{_PREFIX}{os.getpid()}"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    at.mkdir()
    # The journal is committed when it is asked for, not every five seconds: a test can tell one from the other.
    _run("mount", "-o", "loop,errors=remount-ro,commit=300", str(image), str(at))
    try:
        yield at
    finally:
        _run("umount", "--lazy", str(at))
        image.unlink()


def device_of(mount: Path) -> str:
    """The kernel's `major:minor` of the device below a mount."""
    device = mount.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def break_down(mount: Path) -> None:
    """Have the kernel find an error: mounted with `errors=remount-ro`, the file system is read-only from now on."""
    block = Path("/sys/dev/block", device_of(mount)).resolve().name
    Path("/sys/fs/ext4", block, "trigger_fs_error").write_text("t")


def slow_down(mount: Path, bytes_per_second: int) -> bool:
    """Let direct writes have so much a second, 0: no limit; False where this machine cannot."""
    throttle = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
    if not throttle.exists():
        return False
    throttle.write_text(f"{device_of(mount)} {bytes_per_second}")
    return True


def fill(file: Path, step_bytes: int = 1 << 20) -> None:
    """Write until nothing of `step_bytes` fits any more.

    Raises:
        OSError: always: no space left.
    """
    with file.open("wb") as opened:
        while True:
            opened.write(bytes(step_bytes))
            opened.flush()
            os.fsync(opened.fileno())


def _sweep() -> None:
    """Unmount what processes that are gone have left."""
    for line in Path("/proc/mounts").read_text().splitlines():
        at = Path(line.split()[1])
        pid = at.name.removeprefix(_PREFIX)
        if at.name.startswith(_PREFIX) and pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run(["umount", "--lazy", str(at)], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
