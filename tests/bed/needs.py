"""What the tests need of this machine, where it is, and why it is not: nothing is changed here, see `provision`.

Standard library only, like all that `provision` imports.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache"
ETCD_AT_LEAST = (3, 5, 13)  # an older one cannot report watch progress, and the API server then stalls in disguise
_VERSION = "-X k8s.io/component-base/version.git"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoProgram:
    """A program built from a Go module beside this file."""

    name: str
    package: str = "."
    flags: str = "-s -w"
    tags: str = ""
    note: str = "about a minute"

    @property
    def module(self) -> Path:
        """Its go.mod, go.sum and sources."""
        return HERE / self.directory

    @property
    def directory(self) -> str:
        """The module's directory beside this file."""
        return "stargz" if self.name == "containerd-stargz-grpc" else self.name

    @property
    def built(self) -> Path:
        """Where it is or will be; another path as soon as a source or flag changes."""
        sources = sorted([*self.module.glob("go.*"), *self.module.glob("*.go")])
        flags = f"{self.flags} -tags {self.tags}" if self.tags else self.flags
        content = b"\0".join([flags.encode(), *(source.read_bytes() for source in sources)])
        return CACHE / "bin" / f"{self.name}-{hashlib.sha256(content).hexdigest()[:12]}"


PROGRAMS = {
    program.name: program
    for program in (
        GoProgram(
            name="kubenode",
            flags=f"-s -w {_VERSION}Version=v1.37.2 {_VERSION}Major=1 {_VERSION}Minor=37",
            note="all of Kubernetes: 10 to 25 minutes the first time",
        ),
        GoProgram(name="containerd-stargz-grpc"),
        GoProgram(name="versitygw", package="github.com/versity/versitygw/cmd/versitygw", note="some 4 minutes"),
        GoProgram(name="s5cmd", package="github.com/peak/s5cmd/v2"),
        GoProgram(
            name="containerd",
            package="github.com/containerd/containerd/v2/cmd/containerd",
            tags="no_btrfs,no_devmapper,no_zfs",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one kind of test needs.

    Attributes:
        packages: Debian packages of this release, installed into the system.
        programs: names in PROGRAMS.
        compiled: names of C programs beside this file.
        newer: (suite, package) unpacked into .cache/debian/<suite>/<package>.
    """

    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    newer: tuple[tuple[str, str], ...] = ()
    root: bool = True


_CLUSTER = Need(
    packages=(
        "buildah", "ca-certificates", "containerd", "containernetworking-plugins", "curl", "docker-registry", "gcc", "iproute2",
        "iptables", "libc6-dev", "mmdebstrap", "mount", "openssl", "procps", "runc", "zstd",
    ),
    programs=("kubenode", "versitygw"),
    compiled=("pause",),
    newer=(("trixie", "etcd-server"),),
)  # fmt: skip
NEEDS = {
    "cluster": _CLUSTER,
    "images": Need(
        packages=("buildah", "ca-certificates", "containerd", "docker-registry", "mmdebstrap", "runc", "zstd"),
        programs=("containerd", "containerd-stargz-grpc"),
        newer=(("trixie", "containerd"), ("sid", "containerd")),
    ),
    "s3": Need(programs=("versitygw",), root=False),
    "bench": Need(packages=("awscli", "curl", "fuse3", "gcc", "libc6-dev"), programs=("s5cmd", "versitygw")),
    "prometheus": Need(newer=(("bookworm", "prometheus"),), root=False),
    "gpu": Need(packages=("gcc", "libc6-dev")),
    "lazy": replace(_CLUSTER, programs=(*_CLUSTER.programs, "containerd-stargz-grpc"), compiled=("pause", "reader")),
    "mirror": replace(
        _CLUSTER, packages=(*_CLUSTER.packages, "nginx-light"), newer=(*_CLUSTER.newer, ("sid", "containerd"))
    ),
    "matrix": replace(_CLUSTER, newer=(*_CLUSTER.newer, ("trixie", "containerd"), ("sid", "containerd"))),
}


def why_not(need: str) -> str | None:
    """One line why tests of this kind cannot run on this machine now; None when they can. Changes nothing."""
    wanted = NEEDS[need]
    if reason := never(wanted):
        return reason
    lacking = [*missing_packages(wanted.packages), *(name for name in wanted.programs if find(name) is None)]
    lacking += [package for suite, package in wanted.newer if newer(suite, package) is None]
    lacking += [name for name in wanted.compiled if not compiled(name).exists()]
    if lacking:
        return f"not installed: {', '.join(lacking)}; run `python3 -m tests.bed.provision --{need}`"
    return None


def find(name: str) -> Path | None:
    """The built program of PROGRAMS, or None."""
    built = PROGRAMS[name].built
    return built if built.exists() else None


def newer(suite: str, package: str) -> Path | None:
    """The directory of the programs of a package of another Debian release, or None where it is not unpacked.

    For etcd the system's own will do if it is new enough.
    """
    if package == "etcd-server" and (system := shutil.which("etcd")) and _etcd_version(system) >= ETCD_AT_LEAST:
        return Path(system).parent
    unpacked = CACHE / "debian" / suite / package / "usr" / "bin"
    return unpacked if unpacked.exists() else None


def compiled(name: str) -> Path:
    """A static program of one C file beside this one (`pause`, `reader`), compiled or not yet."""
    source = (HERE / name / f"{name}.c").read_bytes()
    return CACHE / "bin" / f"{name}-{hashlib.sha256(source).hexdigest()[:12]}"


def never(need: Need) -> str | None:
    """One line why this machine can never have it, as it is."""
    if need.root and os.geteuid() != 0 and (need.programs or missing_packages(need.packages)):
        return "needs root: namespaces, cgroups and packages"
    if missing_packages(need.packages) and shutil.which("apt-get") is None:
        return f"needs apt-get, or these installed: {', '.join(missing_packages(need.packages))}"
    for name in need.programs:
        if find(name) is None and prebuilt(name) is None and (reason := _no_go(PROGRAMS[name])):
            return reason
    return None


def _no_go(program: GoProgram) -> str | None:
    if shutil.which("go") is None:
        return f"needs Go to build {program.name}, and there is no `go` on PATH: install Go 1.26 or later"
    asked = subprocess.run(["go", "list", "-m"], cwd=program.module, capture_output=True, text=True, check=False)
    if asked.returncode:
        return f"needs a newer Go to build {program.name}: {asked.stderr.strip().splitlines()[-1]}"
    return None


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    if not packages or shutil.which("dpkg-query") is None:
        return list(packages)
    shown = "${Package} ${db:Status-Status}\n"
    asked = subprocess.run(["dpkg-query", "-W", "-f", shown, *packages], capture_output=True, text=True, check=False)
    installed = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


@functools.cache
def _etcd_version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def prebuilt(name: str) -> Path | None:
    """The file that PREWARM_PREBUILT offers for this program."""
    directory = os.environ.get("PREWARM_PREBUILT")
    file = Path(directory, f"{name}.zst") if directory else None
    return file if file and file.exists() else None
