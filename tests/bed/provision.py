"""Gets what the tests need onto this machine, once: Debian packages, newer Debian programs, and programs built from Go.

    python3 -m tests.bed.provision --cluster      everything for the bed
    python3 -m tests.bed.provision --s3           versitygw only: no root needed
    python3 -m tests.bed.provision --gpu          a C compiler, for the stub libnvidia-ml.so.1
    python3 -m tests.bed.provision --lazy         --cluster, and the stargz snapshotter
    python3 -m tests.bed.provision --matrix       --cluster, and containerd 1.7 and 2.1 beside Debian 12's

Standard library only, so that it runs before anything is installed. Packages go into the system, all else into
`.cache/`. It says what it does in a line each, and nothing when there is nothing to do. Without root or Go it says in
one line what cannot be tested and ends with success: those tests are skipped.

PREWARM_PREBUILT=DIR fills the cache from DIR/<name>.zst instead of building.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache"
ETCD_AT_LEAST = (3, 5, 13)  # an older one cannot report watch progress, and the API server then stalls in disguise
_VERSION = "-X k8s.io/component-base/version.git"


class ProvisionError(RuntimeError):
    """Something that should work on this machine did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoProgram:
    """A program built from a Go module beside this file."""

    name: str
    package: str = "."
    flags: str = "-s -w"
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
        content = b"\0".join([self.flags.encode(), *(source.read_bytes() for source in sources)])
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
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one kind of test needs.

    Attributes:
        packages: Debian packages of this release, installed into the system.
        programs: names in PROGRAMS.
        newer: (suite, package) unpacked into .cache/debian/<suite>/<package>.
    """

    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    newer: tuple[tuple[str, str], ...] = ()
    root: bool = True


_CLUSTER = Need(
    packages=(
        "buildah", "ca-certificates", "containerd", "containernetworking-plugins", "docker-registry", "gcc", "iproute2",
        "iptables", "libc6-dev", "mmdebstrap", "openssl", "procps", "runc", "zstd",
    ),
    programs=("kubenode", "versitygw"),
    newer=(("trixie", "etcd-server"),),
)  # fmt: skip
NEEDS = {
    "cluster": _CLUSTER,
    "s3": Need(programs=("versitygw",), root=False),
    "gpu": Need(packages=("gcc", "libc6-dev")),
    "lazy": Need(
        packages=_CLUSTER.packages, programs=(*_CLUSTER.programs, "containerd-stargz-grpc"), newer=_CLUSTER.newer
    ),
    "matrix": Need(
        packages=_CLUSTER.packages,
        programs=_CLUSTER.programs,
        newer=(*_CLUSTER.newer, ("trixie", "containerd"), ("sid", "containerd")),
    ),
}


# -- asking -----------------------------------------------------------------------------------------------------------


def why_not(need: str) -> str | None:
    """One line why tests of this kind cannot run on this machine now; None when they can. Changes nothing."""
    wanted = NEEDS[need]
    if reason := _never(wanted):
        return reason
    lacking = [*_missing_packages(wanted.packages), *(name for name in wanted.programs if find(name) is None)]
    lacking += [package for suite, package in wanted.newer if newer(suite, package) is None]
    if need in ("cluster", "lazy", "matrix") and not pause().exists():
        lacking.append("pause")
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


def pause() -> Path:
    """The sandbox program, built or not yet."""
    source = (HERE / "pause" / "pause.c").read_bytes()
    return CACHE / "bin" / f"pause-{hashlib.sha256(source).hexdigest()[:12]}"


def _never(need: Need) -> str | None:
    """Why this machine can never have it, as it is."""
    if need.root and os.geteuid() != 0 and (need.programs or _missing_packages(need.packages)):
        return "needs root: namespaces, cgroups and packages"
    if _missing_packages(need.packages) and shutil.which("apt-get") is None:
        return f"needs apt-get, or these installed: {', '.join(_missing_packages(need.packages))}"
    for name in need.programs:
        if find(name) is None and _prebuilt(name) is None and (reason := _no_go(PROGRAMS[name])):
            return reason
    return None


def _no_go(program: GoProgram) -> str | None:
    if shutil.which("go") is None:
        return f"needs Go to build {program.name}, and there is no `go` on PATH: install Go 1.26 or later"
    asked = subprocess.run(["go", "list", "-m"], cwd=program.module, capture_output=True, text=True, check=False)
    if asked.returncode:
        return f"needs a newer Go to build {program.name}: {asked.stderr.strip().splitlines()[-1]}"
    return None


def _missing_packages(packages: Sequence[str]) -> list[str]:
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


# -- doing ------------------------------------------------------------------------------------------------------------


def provide(need: str) -> str | None:
    """Install and build what is missing; None when all is there, else one line why it cannot be.

    Raises:
        ProvisionError: it should have worked and did not.
    """
    wanted = NEEDS[need]
    if reason := _never(wanted):
        return reason
    if missing := _missing_packages(wanted.packages):
        _install(missing)
    for suite, package in wanted.newer:
        if newer(suite, package) is None:
            _unpack(suite, package)
    if need in ("cluster", "lazy", "matrix") and not pause().exists():
        _say("compiling the pause program")
        _into(pause(), ["gcc", "-static", "-Os", "-s", "-o", "{}", str(HERE / "pause" / "pause.c")])
    for name in wanted.programs:
        if find(name) is None:
            _build(PROGRAMS[name])
    return None


def _install(packages: Sequence[str]) -> None:
    _say(f"installing Debian packages: {' '.join(packages)}")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: start no service of theirs
    # A source list of somebody else's that does not answer is none of our business: what counts is the installation.
    subprocess.run([*apt, "update"], env=quiet, capture_output=True, check=False)
    _run([*apt, "install", "--yes", "--no-install-recommends", *packages], env=quiet)


def _unpack(suite: str, package: str) -> None:
    """Unpack a package of another release beside the system, asked from a package list of our own."""
    _say(f"unpacking {package} of Debian {suite} into .cache/debian")
    area = CACHE / "debian" / suite
    for directory in ("lists/partial", "archives/partial"):
        (area / directory).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = area / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] http://deb.debian.org/debian {suite} main\n")
    private = {
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": f"{area}/lists",
        "Dir::Cache::archives": f"{area}/archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",  # the other user may not enter our directories
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", *(word for key, value in private.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"])
    for old in area.glob(f"{package}_*.deb"):
        old.unlink()
    _run([*apt, "download", package], cwd=area)
    (archive,) = area.glob(f"{package}_*.deb")
    unpacking = area / f"{package}.partial"
    shutil.rmtree(unpacking, ignore_errors=True)
    _run(["dpkg", "-x", str(archive), str(unpacking)])
    unpacking.rename(area / package)
    archive.unlink()
    shutil.rmtree(area / "lists")


def _build(program: GoProgram) -> None:
    if prebuilt := _prebuilt(program.name):
        _say(f"unpacking {program.name} from PREWARM_PREBUILT")
        _into(program.built, ["zstd", "-qdf", str(prebuilt), "-o", "{}"])
        return
    _say(f"building {program.name} with Go ({program.note}, then cached)")
    command = ["go", "build", "-trimpath", f"-ldflags={program.flags}", "-o", "{}", program.package]
    _into(program.built, ["nice", *command], cwd=program.module, env={**os.environ, "CGO_ENABLED": "0"})


def _prebuilt(name: str) -> Path | None:
    directory = os.environ.get("PREWARM_PREBUILT")
    file = Path(directory, f"{name}.zst") if directory else None
    return file if file and file.exists() else None


def _into(target: Path, command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command that writes `{}`, which becomes `target` only when it has succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _run([word.replace("{}", str(partial)) for word in command], cwd=cwd, env=env)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    try:
        result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ProvisionError(f"there is no `{command[0]}` on this machine") from None
    if result.returncode:
        raise ProvisionError(f"{' '.join(command)}: exit {result.returncode}: {result.stderr.strip()[-2000:]}")


def _say(line: str) -> None:
    print(f"provision: {line}", flush=True)


def main() -> int:
    """The command line; 0 also where tests will have to be skipped, 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in NEEDS:
        parser.add_argument(f"--{name}", action="append_const", dest="needs", const=name)
    needs = parser.parse_args().needs or ["cluster"]
    try:
        for need in needs:
            if reason := provide(need):
                _say(f"tests of `{need}` will be skipped: {reason}")
    except ProvisionError as failed:
        _say(f"failed: {failed}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
