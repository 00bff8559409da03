"""Gets what the tests need onto this machine, once: Debian packages, newer Debian programs, and programs built from Go.

    python3 -m tests.bed.provision --cluster      everything for the bed
    python3 -m tests.bed.provision --s3           versitygw only: no root needed
    python3 -m tests.bed.provision --images       containerd in four versions, a registry and buildah, for the tests of images without a cluster
    python3 -m tests.bed.provision --prometheus   a Prometheus, for the tests of histories
    python3 -m tests.bed.provision --gpu          a C compiler, for the stub libnvidia-ml.so.1
    python3 -m tests.bed.provision --bench        the peers of `make bench-hydrate`, and a C compiler
    python3 -m tests.bed.provision --lazy         --cluster, and the stargz snapshotter
    python3 -m tests.bed.provision --mirror       --cluster, containerd 2.1, and nginx as a mirror of the registry
    python3 -m tests.bed.provision --matrix       --cluster, and containerd 1.7 and 2.1 beside Debian 12's

Standard library only, so that it runs before anything is installed. Packages go into the system, all else into
`.cache/`. It says what it does in a line each, and nothing when there is nothing to do. Without root or Go it says in
one line what cannot be tested and ends with success: those tests are skipped.

PREWARM_PREBUILT=DIR fills the cache from DIR/<name>.zst instead of building.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bed.needs import (
    CACHE,
    HERE,
    NEEDS,
    PROGRAMS,
    GoProgram,
    compiled,
    find,
    missing_packages,
    never,
    newer,
    prebuilt,
)


class ProvisionError(RuntimeError):
    """Something that should work on this machine did not."""


def provide(need: str) -> str | None:
    """Install and build what is missing; None when all is there, else one line why it cannot be.

    Raises:
        ProvisionError: it should have worked and did not.
    """
    wanted = NEEDS[need]
    if reason := never(wanted):
        return reason
    if missing := missing_packages(wanted.packages):
        _install(missing)
    for suite, package in wanted.newer:
        if newer(suite, package) is None:
            _unpack(suite, package)
    for name in wanted.compiled:
        if not compiled(name).exists():
            _say(f"compiling {name}.c")
            _into(compiled(name), ["gcc", "-static", "-Os", "-s", "-o", "{}", str(HERE / name / f"{name}.c")])
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
    if offered := prebuilt(program.name):
        _say(f"unpacking {program.name} from PREWARM_PREBUILT")
        _into(program.built, ["zstd", "-qdf", str(offered), "-o", "{}"])
        return
    _say(f"building {program.name} with Go ({program.note}, then cached)")
    command = [
        "go",
        "build",
        "-trimpath",
        f"-tags={program.tags}",
        f"-ldflags={program.flags}",
        "-o",
        "{}",
        program.package,
    ]
    _into(program.built, ["nice", *command], cwd=program.module, env={**os.environ, "CGO_ENABLED": "0"})


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
