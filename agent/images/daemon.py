"""What one containerd is and can do, and the way a pull goes because of it. Pure, apart from reading its configuration.

Sources: containerd docs/cri/config.md and docs/cri/registry.md; release notes of 1.7, 2.0, 2.1, 2.2 (transfer service, `host_dir`).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from agent.images.hosts import RegistryHost, hosts_file, registry_hosts
from agent.images.lazy import LOCAL_SNAPSHOTTERS
from agent.images.rooted import inside

_IMAGES_V3 = "io.containerd.cri.v1.images"
_RUNTIMES_V3 = "io.containerd.cri.v1.runtime"
_TRANSFER = "io.containerd.transfer.v1.local"
_CRI = "io.containerd.grpc.v1.cri"
_TWO_ROOTS_SINCE = (2, 2)  # config_path is set from there on where nobody set it
_DEFAULT_ROOTS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """What its configuration says that matters here.

    `roots` are hosts.toml directories, None where nobody named any; `annotated` the snapshotters that are told by the transfer
    service which layer they unpack; `unpacks` those that it is configured to unpack into.
    """

    snapshotter: str = "overlayfs"
    roots: tuple[str, ...] | None = None
    legacy_registries: bool = False  # mirrors, configs or auths: nothing but the CRI reads them
    annotates_snapshots: bool = False
    discards_layers: bool = False
    annotated: frozenset[str] = frozenset()
    unpacks: frozenset[str] = frozenset()
    handlers: Mapping[str, str] = field(default_factory=dict)  # runtime handlers with a snapshotter of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One containerd. `snapshotters` maps each to "" or to why it did not load, `directories` to where it keeps its files.

    `config` is None where it cannot be read from here; `root` is its file system as seen from here.
    """

    version: str
    transfer: bool = False
    snapshotters: Mapping[str, str] = field(default_factory=dict)
    directories: Mapping[str, str] = field(default_factory=dict)
    config: DaemonConfig | None = None
    root: Path = Path("/")

    @property
    def number(self) -> tuple[int, int, int]:
        """Its version as numbers: `1.6.20~ds1`, `v2.2.7` and `2.1.9+unknown` all occur; zeros where it has none."""
        found = re.search(r"(\d+)\.(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)

    @property
    def roots(self) -> tuple[str, ...]:
        """The hosts.toml directories it uses, in its own file system."""
        if self.config is None or self.config.roots is not None:
            return self.config.roots or () if self.config else ()
        return _DEFAULT_ROOTS if self.number[:2] >= _TWO_ROOTS_SINCE else ()

    def roots_for(self, host: str) -> tuple[str, ...]:
        """Return those of them that say anything of a registry host. Reads directories: not for the event loop."""
        return tuple(r for r in self.roots if hosts_file(self.root / r.lstrip("/"), host, self.root))

    def hosts(self, host: str) -> tuple[RegistryHost, ...]:
        """Return the places it pulls images of a registry host from. Reads files: not for the event loop.

        Raises:
            Permanent: a hosts.toml is malformed, or cannot be looked for.
        """
        return registry_hosts(self.hosts_directory(host), host, "pull", root=self.root)

    def hosts_directory(self, host: str) -> Path:
        """Return the hosts.toml directory for a registry host as seen from here; there may be none. Reads directories."""
        roots = self.roots_for(host)
        return self.root / (roots[0] if roots else "nowhere").lstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How an image is pulled: by the transfer service, which resumes, or by the CRI; and the reason.

    `hosts` is the hosts.toml directory for the transfer service, "" for none.
    """

    resumable: bool
    reason: str
    hosts: str = ""


def pull_way(daemon: Daemon, *, snapshotter: str, handler: str, roots: Sequence[str]) -> Way:
    """Choose the way. `roots` are the hosts.toml directories that say something of the image's registry."""
    version = ".".join(map(str, daemon.number))
    if not daemon.transfer:
        why = f"containerd {version} has no transfer service"
    elif handler:
        why = f"runtime handler {handler} chooses the snapshotter"
    elif snapshotter not in LOCAL_SNAPSHOTTERS:
        why = f"snapshotter {snapshotter} fetches by itself"
    elif daemon.config is None:
        why = "containerd's configuration of registries cannot be read from here"
    elif daemon.config.legacy_registries:
        why = "containerd's registries are configured by mirrors, configs or auths, which only the CRI reads"
    elif roots and daemon.number < (2, 0, 0):
        why = f"the transfer service of containerd {version} reads no hosts.toml"
    elif len(roots) > 1:
        why = f"the transfer service reads one hosts.toml directory, not {' and '.join(roots)}"
    else:
        return Way(
            resumable=True, reason="resumable, by containerd's transfer service", hosts=roots[0] if roots else ""
        )
    return Way(resumable=False, reason=f"not resumable, by the CRI: {why}")


def elsewhere(config: DaemonConfig, snapshotter: str) -> Mapping[str, str]:
    """Return by runtime handler which other snapshotter than the one that is looked at its images lie in.

    "" stands for all handlers that are not named; one that does not follow it, and uses the right one, has "".
    """
    places = {"": config.snapshotter, **config.handlers}
    others = {handler: place if place != snapshotter else "" for handler, place in places.items()}
    return others if others[""] else {handler: place for handler, place in others.items() if place}


def read_config(root: Path, file: str) -> DaemonConfig | None:
    """Read a containerd configuration with what it imports, None where it is unreadable; no file at all means the defaults.

    A link to nothing, and the file system of a process that has ended, are unreadable: containerd may have read something there.

    Args:
        root: containerd's file system as seen from here.
        file: the path it was started with.
    """
    try:
        place = inside(root, file)
        if not os.path.lexists(place):
            linked = place != root / os.path.normpath(file).lstrip("/")
            return DaemonConfig() if root.is_dir() and not linked else None
        return parse_config(_merged(root, file))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # not TOML, or not of the shape we know
        return None


def _merged(root: Path, file: str) -> Mapping[str, object]:
    document: dict[str, object] = tomllib.loads(inside(root, file).read_text())
    imports = document.get("imports", [])
    for pattern in imports if isinstance(imports, list) else ():
        for each in _imported(root, Path(file).parent / pattern):
            document = _joined(document, tomllib.loads(each.read_text()))
    return document


def _imported(root: Path, pattern: Path) -> list[Path]:
    """Return the files that an import names; without a `*` it names one, which must be there."""
    fixed = list(takewhile(lambda part: "*" not in part, pattern.parts))
    place, rest = inside(root, "/".join(fixed)), pattern.parts[len(fixed) :]
    if not rest:
        return [place]
    return [inside(root, str(each.relative_to(root))) for each in sorted(place.glob("/".join(rest)))]


def _joined(below: Mapping[str, object], above: Mapping[str, object], depth: int = 0) -> dict[str, object]:
    joined = dict(below)
    for key, value in above.items():
        old = joined.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and depth < _MAX_DEPTH
        joined[key] = _joined(old, value, depth + 1) if both else value  # type: ignore[arg-type]
    return joined


def parse_config(document: Mapping[str, object]) -> DaemonConfig:
    """Read a merged configuration of version 1, 2 or 3."""
    plugins = _table(document, "plugins")
    images = _table(plugins, _IMAGES_V3)
    cri = _table(plugins, _CRI) or _table(plugins, "cri")
    engine = images or _table(cri, "containerd")  # where the snapshotter is named
    of_runtime = _table(_table(_table(plugins, _RUNTIMES_V3), "containerd"), "runtimes")
    registry = _table(images or cri, "registry")
    path = registry.get("config_path")
    return DaemonConfig(
        snapshotter=str(engine.get("snapshotter", "overlayfs")),
        roots=tuple(filter(None, str(path).split(":"))) if path is not None else None,
        legacy_registries=any(registry.get(key) for key in ("mirrors", "configs", "auths")),
        annotates_snapshots=engine.get("disable_snapshot_annotations") is False,
        discards_layers=engine.get("discard_unpacked_layers") is True,
        annotated=frozenset(_annotated(_table(document, "proxy_plugins"))),
        handlers=dict(_handlers(_table(engine, "runtimes"), _table(engine, "runtime_platforms"), of_runtime)),
        unpacks=frozenset(_unpacks(_table(plugins, _TRANSFER).get("unpack_config"))),
    )


def _annotated(proxies: Mapping[str, object]) -> Iterator[str]:
    for name in proxies:
        if _table(_table(proxies, name), "exports").get("enable_remote_snapshot_annotations") == "true":
            yield name


def _handlers(*tables: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for table in tables:
        for name in table:
            if snapshotter := str(_table(table, name).get("snapshotter") or ""):
                yield name, snapshotter


def _unpacks(entries: object) -> Iterator[str]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            yield str(entry.get("snapshotter", ""))


def _table(holder: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = holder.get(key)
    return found if isinstance(found, Mapping) else {}


def config_file(arguments: Sequence[str]) -> str:
    """Return the configuration file that containerd's command line names."""
    words: Iterator[str] = iter(arguments)
    for word in words:
        if word in ("-c", "--config"):
            return next(words, "")
        if word.startswith(("--config=", "-c=")):
            return word.partition("=")[2]
    return "/etc/containerd/config.toml"
