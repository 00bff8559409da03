"""Finds NVIDIA's libraries and device files where GPU operator, GKE and plain hosts put them. For the child processes only.

Must stay loadable with the standard library alone, and cheap: it runs before each probe process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat

# The agent's pod has the host's PID namespace: process 1's root is the node's, whatever is installed there later.
HOST_ROOT = "/proc/1/root"
DIRECTORIES = (
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",  # the driver container of the GPU operator
    "/run/nvidia/driver/usr/lib/aarch64-linux-gnu",
    "/run/nvidia/driver/usr/lib64",
    "/home/kubernetes/bin/nvidia/lib64",  # GKE
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",  # drivers from Debian's, Ubuntu's and Red Hat's packages
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
)
_DEVICE = re.compile(r"nvidia(\d+|ctl|-uvm|-uvm-tools|-modeset)")


def load(name: str, extra: str = "") -> str:
    """Load a library, so that a later load by its bare name finds it; returns its directory, "" if the loader knew it.

    `extra` are directories to look in first after the loader's own, with `:` between them. Where none has it the later load
    fails as it would have without this.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        return ""
    places = [directory for directory in extra.split(":") if directory]
    places += [root + directory for root in ("", HOST_ROOT) for directory in DIRECTORIES]
    for directory in places:
        with contextlib.suppress(OSError):
            ctypes.CDLL(os.path.join(directory, name))
            return directory
    return ""


def adopt_devices(host: str = HOST_ROOT + "/dev", own: str = "/dev") -> None:
    """Make the driver's device files that the host got after this container was started; silently nothing where it cannot."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(host), os.stat(own)):
            return
        for name in os.listdir(host):
            there = os.stat(f"{host}/{name}") if _DEVICE.fullmatch(name) else None
            if there and stat.S_ISCHR(there.st_mode) and not os.path.exists(f"{own}/{name}"):
                os.mknod(f"{own}/{name}", stat.S_IFCHR | 0o666, there.st_rdev)
