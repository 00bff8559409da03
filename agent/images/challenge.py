"""How a registry asks who we are, and what we answer: WWW-Authenticate, and the credentials of a Docker config.

Sources: RFC 9110 section 11, distribution spec "token authentication", Docker's config.json (`auths`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from agent.core.errors import Permanent
from agent.core.refs import ImageRef

_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
_VERSION = re.compile(r"/v[12]/?$")
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A registry's question. `scheme` is lower case; `realm` and `service` are those of a bearer token."""

    scheme: str
    realm: str = ""
    service: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """A user name and password; never shown."""

    username: str
    password: str

    def basic(self) -> str:
        """Return the value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def parse_challenge(header: str) -> Challenge:
    """Read a WWW-Authenticate header; whatever cannot be read is a challenge of scheme ""."""
    scheme, _, rest = header.strip().partition(" ")
    found = dict(_PARAMETER.findall(rest[:4096]))
    return Challenge(scheme=scheme.lower(), realm=found.get("realm", ""), service=found.get("service", ""))


def credentials_among(auths: Mapping[str, object], ref: ImageRef) -> Credentials | None:
    """Return the credentials that `auths` of a pull secret has for an image: those of the longest name that fits, as the kubelet."""
    for key in sorted(auths, key=len, reverse=True):
        name = "docker.io" if key in _HUB_KEYS else _VERSION.sub("", key)
        if image_matches(name, ref) and (found := _entry(auths[key])):
            return found
    return None


def image_matches(pattern: str, ref: ImageRef) -> bool:
    """Say whether an image falls under a pattern: `*.dkr.ecr.*.amazonaws.com`, `registry.io:8080/path`.

    Globs stand for one part of the host's name each and never in port or path; a path is a prefix.
    """
    host, _, path = pattern.removeprefix("https://").removeprefix("http://").partition("/")
    wanted, own = _parts(host), _parts(ref.host)
    return (
        len(wanted) == len(own)
        and all(fnmatchcase(part, glob) for part, glob in zip(own, wanted, strict=True))
        and ref.repository.startswith(path)
    )


def _parts(host: str) -> list[str]:
    name, _, port = host.partition(":")
    return [*name.split("."), f":{port}"]


def _entry(entry: object) -> Credentials | None:
    """Read one entry: `auth`, or `username` and `password`."""
    if not isinstance(entry, Mapping):
        return None
    username, password = entry.get("username"), entry.get("password")
    if isinstance(username, str) and isinstance(password, str) and username and is_text(username + password):
        return Credentials(username=username, password=password)
    try:
        username, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (ValueError, KeyError, binascii.Error):
        return None
    return Credentials(username=username, password=password)


def is_text(text: str) -> bool:
    """Say whether UTF-8 can hold it: JSON may spell out halves of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def credentials_for(file: Path | None, host: str) -> Credentials | None:
    """Return the credentials a Docker config file has for a registry host. Reads it: not for the event loop.

    Raises:
        Permanent: the file is there and malformed.
    """
    if file is None or not file.is_file():
        return None
    keys = _HUB_KEYS if host == "docker.io" else (host, f"https://{host}", f"https://{host}/v2/", f"https://{host}/v1/")
    try:
        auths = json.loads(file.read_text())["auths"]
        entry = next((auths[key] for key in keys if key in auths), None)
        if entry is None:
            return None
        username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        raise Permanent(f"cannot read the registry credentials in {file}: expected auths.HOST.auth") from None
    return Credentials(username=username, password=password)
