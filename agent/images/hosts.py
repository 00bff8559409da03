"""Where the images of a registry host are fetched from: a `hosts.toml` directory, read as containerd reads it.

Source: containerd docs/hosts.md. Understood here: `server`, `[host."URL"]` in order, `capabilities`, `override_path`.
Plain http only where a URL says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from agent.core.errors import Permanent, cut
from agent.images.rooted import inside

_DOCKER_HUB = "registry-1.docker.io"  # what docker.io stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryHost:
    """One place to ask: `base` is the URL up to and including `/v2`, `name` the host that credentials are kept for.

    A mirror is told in `query` whose image is meant, as containerd does.
    """

    base: str
    name: str
    query: str = ""


def registry_hosts(
    directory: Path, host: str, capability: str = "resolve", *, root: Path | None = None
) -> tuple[RegistryHost, ...]:
    """Return the places to ask for images of `host`, mirrors first, the registry itself last. Reads files: not for the event loop.

    Args:
        directory: a hosts.toml directory.
        host: as image names have it.
        capability: what is asked of a mirror, `resolve` or `pull`.
        root: the other file system that the directory lies in, as seen from here; None for our own.

    Raises:
        Permanent: a hosts.toml is malformed.
    """
    file = hosts_file(directory, host, root)
    official = _DOCKER_HUB if host == "docker.io" else host
    if file is None:
        return (RegistryHost(base=f"https://{official}/v2", name=host),)
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Permanent(f"cannot read {file}: {error}") from error
    mirrors = content.get("host", {})
    server = content.get("server", f"https://{official}")
    if not isinstance(mirrors, Mapping) or not isinstance(server, str):
        raise Permanent(f"cannot read {file}: [host] must be tables and server a URL")
    try:
        hosts = [_host(file, url, table, host) for url, table in mirrors.items() if _can(table, capability)]
        return tuple(dict.fromkeys([*hosts, _host(file, server, content, host)]))
    except (ValueError, TypeError) as error:  # an address that is none, capabilities that are no list
        raise Permanent(f"cannot read {file}: {error}") from error


def hosts_file(directory: Path, host: str, root: Path | None = None) -> Path | None:
    """Return the file that says where images of `host` come from, None where there is none; links are followed in `root`.

    Raises:
        Permanent: it cannot be looked for.
    """
    try:
        files = _candidates(directory, host)
        found = files if root is None else (inside(root, str(file.relative_to(root))) for file in files)
        return next((file for file in found if file.is_file()), None)
    except OSError as error:  # a name too long for a file, or no permission
        raise Permanent(f"cannot look for the hosts.toml of {cut(host, 100)}: {error.strerror}") from error


def all_hosts(directory: Path) -> Iterator[tuple[str, tuple[RegistryHost, ...]]]:
    """Yield each registry that the directory speaks of, with the places that its images are fetched from. Reads files.

    Raises:
        Permanent: a hosts.toml is malformed.
    """
    for file in sorted(directory.glob("*/hosts.toml")):
        name, _, port = file.parent.name.removesuffix("_").rpartition("_")
        host = f"{name}:{port}" if name and file.parent.name.endswith("_") else file.parent.name
        yield host, registry_hosts(directory, host, "pull")


def _candidates(directory: Path, host: str) -> Iterator[Path]:
    """A port's colon may be written as `_port_`; and `HOST.toml` stands for `HOST/hosts.toml`, for ConfigMaps have no folders."""
    name, colon, port = host.rpartition(":")
    for each in (host, f"{name}_{port}_" if colon else host, "_default"):
        yield directory / each / "hosts.toml"
        yield directory / f"{each}.toml"


def _can(table: object, capability: str) -> bool:
    return isinstance(table, Mapping) and capability in table.get("capabilities", (capability,))


def _is_plain(url: str) -> bool:
    """Say whether a URL names a host and a port there can be, and no credentials."""
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port != 0 and "@" not in urlsplit(url).netloc


def _host(file: Path, url: str, table: Mapping[str, object], host: str) -> RegistryHost:
    url = url.rstrip("/")
    if "://" not in url:
        url = f"https://{url}"
    if not url.startswith(("https://", "http://")):
        raise Permanent(f"cannot read {file}: {url} is neither https:// nor http://")
    if not _is_plain(url):
        raise Permanent(
            f"cannot read {file}: a host is no https://HOST:PORT, or has credentials in it, which belong elsewhere"
        )
    whole = table.get("override_path") is True or url.endswith("/v2")
    at = urlsplit(url).netloc
    own = at == (_DOCKER_HUB if host == "docker.io" else host)
    return RegistryHost(
        base=url if whole else f"{url}/v2", name=host if own else at, query="" if own else f"?ns={quote(host)}"
    )
