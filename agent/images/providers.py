"""The kubelet's credential provider plugins: which of them to ask for an image, how, and what the answer says.

Source: Kubernetes "Configure a kubelet image credential provider" and k8s.io/kubelet/pkg/apis/credentialprovider/v1. A plugin
is run as the kubelet runs it: a request on its standard input, the answer on its standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import structlog

from agent.core.clock import Clock
from agent.core.documents import load_document
from agent.core.errors import Invalid, Permanent, cut
from agent.core.refs import ImageRef
from agent.core.units import parse_duration
from agent.images.challenge import Credentials, image_matches, is_text

log = structlog.get_logger(__name__)

_API = "credentialprovider.kubelet.k8s.io/v1"
_PLUGIN_SECONDS = 60.0  # as the kubelet
_ANSWER_BYTES = 1 << 20
_REMEMBERED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One plugin, as the kubelet's CredentialProviderConfig names it."""

    program: Path
    patterns: tuple[str, ...]
    keep: timedelta = timedelta()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Kept:
    """What a plugin answered, by image pattern, for as long as it may be used (monotonic seconds)."""

    auth: Mapping[str, Credentials]
    until: float


class Providers:
    """Asks plugins, and remembers their answers for as long as they allow."""

    def __init__(self, config: Path, programs: Path, clock: Clock) -> None:
        self._config = config
        self._programs = programs
        self._clock = clock
        self._kept: dict[tuple[Path, str], _Kept] = {}

    async def credentials(self, ref: ImageRef) -> Credentials | None:
        """Return what the first plugin that knows the image says, None where none does.

        Raises:
            Permanent: the configuration cannot be read.
        """
        for provider in await asyncio.to_thread(read_providers, self._config, self._programs):
            if not any(image_matches(pattern, ref) for pattern in provider.patterns):
                continue
            try:
                auth = await self._ask(provider, ref)
            except (Permanent, OSError, TimeoutError) as error:  # the next one may know it, as with the kubelet
                log.warning(
                    "credential provider failed",
                    provider=provider.program.name,
                    error=cut(error) or "no answer in time",
                )
                continue
            for pattern in sorted(auth, reverse=True):  # the longest of those that begin alike comes first
                if image_matches(pattern, ref):
                    return auth[pattern]
        return None

    async def _ask(self, provider: Provider, ref: ImageRef) -> Mapping[str, Credentials]:
        for scope in _scopes(ref).values():
            kept = self._kept.get((provider.program, scope))
            if kept and kept.until > self._clock.monotonic():
                return kept.auth
        answer = _parse(await _run(provider, ref))
        scope = _scopes(ref).get(str(answer.get("cacheKeyType")), "")
        auth = {k: c for k, v in _table(answer, "auth").items() if (c := _credentials(v))}
        keep = _duration(answer.get("cacheDuration"), provider.keep)
        if keep and scope:
            self._kept[provider.program, scope] = _Kept(auth=auth, until=self._clock.monotonic() + keep.total_seconds())
            if len(self._kept) > _REMEMBERED:
                del self._kept[next(iter(self._kept))]
        return auth


def read_providers(config: Path, programs: Path) -> tuple[Provider, ...]:
    """Read a CredentialProviderConfig; no file, no plugins. Reads a file: not for the event loop.

    Raises:
        Permanent: it is malformed.
    """
    try:
        document = load_document(config.read_text())
        return tuple(_provider(entry, programs) for entry in document["providers"])  # type: ignore[index]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, Invalid) as error:
        raise Permanent(f"cannot read the credential providers in {config}: {cut(error)}") from None


def _provider(entry: Mapping[str, object], programs: Path) -> Provider:
    name, patterns = str(entry["name"]), entry["matchImages"]
    if "/" in name or name in ("", ".", ".."):
        raise Invalid(f"{cut(name, 60)!r} is no name of a program")
    if not isinstance(patterns, list):
        raise Invalid("matchImages must be a list")
    arguments, environment = entry.get("args") or [], entry.get("env") or []
    if not isinstance(arguments, list) or not isinstance(environment, list):
        raise Invalid("args and env must be lists")
    return Provider(
        program=programs / name,
        patterns=tuple(map(str, patterns)),
        keep=_duration(entry.get("defaultCacheDuration"), timedelta()),
        arguments=tuple(map(str, arguments)),
        environment={str(each["name"]): str(each["value"]) for each in environment},
    )


def _scopes(ref: ImageRef) -> Mapping[str, str]:
    """What an answer may be used for again, by its cacheKeyType."""
    return {"Image": str(ref), "Registry": ref.host, "Global": "*"}


async def _run(provider: Provider, ref: ImageRef) -> bytes:
    request = json.dumps(
        {"kind": "CredentialProviderRequest", "apiVersion": _API, "image": f"{ref.host}/{ref.repository}"}
    )
    process = await asyncio.create_subprocess_exec(
        provider.program,
        *provider.arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # may hold a secret
        env={**os.environ, **provider.environment},
        limit=_ANSWER_BYTES,
    )
    try:
        async with asyncio.timeout(_PLUGIN_SECONDS):
            answer, _ = await process.communicate(request.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Permanent(f"it ended with exit code {process.returncode}")
    if len(answer) > _ANSWER_BYTES:
        raise Permanent(f"it answered with more than {_ANSWER_BYTES} bytes")
    return answer


def _parse(answer: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise Permanent("its answer is not JSON") from None
    if not isinstance(document, dict) or document.get("kind") != "CredentialProviderResponse":
        raise Permanent("its answer is no CredentialProviderResponse")
    return document


def _table(holder: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = holder.get(key)
    return found if isinstance(found, Mapping) else {}


def _credentials(entry: object) -> Credentials | None:
    if not isinstance(entry, Mapping):
        return None
    found = Credentials(username=str(entry.get("username", "")), password=str(entry.get("password", "")))
    return found if is_text(found.username + found.password) else None


def _duration(value: object, default: timedelta) -> timedelta:
    """Read a Go duration; `0` and what cannot be read mean that nothing is kept."""
    if value is None:
        return default
    try:
        return parse_duration(str(value))
    except Invalid:
        return timedelta()
