"""Keeps histories in ConfigMaps over restarts and changes of leader.

An endpoint stays in the shard it was found in, so that no write moves it and no crash between two writes loses it. A shard that
cannot be read is told once and left as it is: its endpoints go to another, and what is in it is unknown.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from agent.core.errors import Invalid
from agent.core.refs import EndpointKey
from agent.demand.history import Track
from agent.demand.history_shards import SHARD_ENDPOINTS, SHARDS, Shard, decode, encode
from agent.kube.api import KubeApi
from agent.kube.errors import Conflict, NotFound
from agent.kube.objects import BinaryView
from agent.kube.resources import BINARIES

log = structlog.get_logger()

_KEY = "history"
_LABELS = {"app.kubernetes.io/name": "prewarm", "app.kubernetes.io/component": "history"}


def shard_name(number: int) -> str:
    """Return what the ConfigMap of a shard is called (deploy/rbac.yaml lists them)."""
    return f"prewarm-history-{number}"


@dataclass(slots=True, kw_only=True)
class _Kept:
    """A ConfigMap as last seen; version "" if there is none. `foreign` says why it is not ours to write."""

    version: str = ""
    content: bytes = b""
    foreign: str = ""


class HistoryStore:
    """The shards in prewarm's namespace. `load` before the first `write`."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._kept = [_Kept() for _ in range(SHARDS)]
        self._shard_of: dict[EndpointKey, int] = {}
        self._full = False
        self.loaded = False

    @property
    def unreadable(self) -> int:
        """How many shards cannot be read."""
        return sum(bool(kept.foreign) for kept in self._kept)

    async def load(self) -> Mapping[EndpointKey, Track]:
        """Read every shard, and remember who is where.

        Raises:
            PrewarmError: Transient or Permanent, as the API server answers.
        """
        found: dict[EndpointKey, Track] = {}
        for number in range(SHARDS):
            for key, track in (await self._read(number)).items():
                found[key] = track.amended(found.get(key, Track()))
        self.loaded = True
        return found

    async def write(self, tracks: Mapping[EndpointKey, Track], now: datetime) -> Mapping[EndpointKey, Track] | None:
        """Write every shard whose histories have changed.

        Returns:
            None when done; where somebody else wrote to a shard meanwhile, what stands there now: fill it in, write again.

        Raises:
            PrewarmError: Transient or Permanent, as the API server answers.
        """
        self._place(tracks)
        foreign: dict[EndpointKey, Track] = {}
        done = True
        for number in range(SHARDS):
            if self._kept[number].foreign:
                await self._read(number)  # somebody may have followed the advice
                continue
            mine = {key: tracks[key] for key, shard in self._shard_of.items() if shard == number}
            try:
                await self._write(number, Shard(written_at=now, tracks=mine))
            except Conflict:
                done = False
                foreign |= await self._read(number)
        return None if done else foreign

    async def _read(self, number: int) -> Mapping[EndpointKey, Track]:
        kept, name = self._kept[number], shard_name(number)
        try:
            found = await self._api.get(BINARIES, name, namespace=self._namespace)
        except NotFound:
            self._kept[number] = _Kept()
            return {}
        try:
            shard = read_shard(found)
        except Invalid as error:
            if kept.foreign != str(error):
                cure = f"delete it to have its place again: kubectl -n {self._namespace} delete configmap {name}"
                log.warning(
                    "a history cannot be read, it counts as unknown", configmap=name, error=str(error), cure=cure
                )
            self._kept[number] = _Kept(version=found.resource_version, foreign=str(error))
            return {}
        self._kept[number] = _Kept(version=found.resource_version, content=_content(found))
        tracks = shard.tracks if shard else {}
        for key in tracks:
            self._shard_of.setdefault(key, number)
        return tracks

    def _place(self, tracks: Mapping[EndpointKey, Track]) -> None:
        """Give every endpoint a shard: the one it is in, else the first with room."""
        usable = [number for number, kept in enumerate(self._kept) if not kept.foreign]
        self._shard_of = {k: n for k, n in self._shard_of.items() if k in tracks and not self._kept[n].foreign}
        used = Counter(self._shard_of.values())
        homeless = sorted(tracks.keys() - self._shard_of.keys())
        for key in homeless:
            number = next((n for n in usable if used[n] < SHARD_ENDPOINTS), None)
            if number is None:
                break
            self._shard_of[key] = number
            used[number] += 1
        full = len(self._shard_of) < len(tracks)
        if full and not self._full:
            log.error("no room for more histories", endpoints=len(tracks), kept=len(self._shard_of))
        self._full = full

    async def _write(self, number: int, shard: Shard) -> None:
        kept = self._kept[number]
        content = encode(shard) if shard.tracks else b""
        if _histories(content) == _histories(kept.content):
            return
        name = shard_name(number)
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": self._namespace, "labels": _LABELS},
            "binaryData": {_KEY: base64.b64encode(content).decode()},
        }
        if kept.version:
            body["metadata"] |= {"resourceVersion": kept.version}  # type: ignore[operator]
            try:
                written = await self._api.replace(BINARIES, name, body, namespace=self._namespace)
            except NotFound as error:
                raise Conflict(f"ConfigMap {name} was deleted") from error
        else:
            written = await self._api.create(BINARIES, body, namespace=self._namespace)
        self._kept[number] = _Kept(version=written.resource_version, content=content)


def read_shard(found: BinaryView) -> Shard | None:
    """Return the shard in a ConfigMap; None for an empty one.

    Raises:
        Invalid: it holds something else, or nothing that can be read.
    """
    content = _content(found)
    return decode(content) if content else None


def _content(found: BinaryView) -> bytes:
    if found.texts or found.binary.keys() - {_KEY}:
        raise Invalid(f"it holds more than {_KEY}, so it is not prewarm's")
    return found.binary.get(_KEY, b"")


def _histories(content: bytes) -> bytes:
    """Return a shard's bytes without checksum and time of writing."""
    return content[16:]
