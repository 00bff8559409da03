"""Keeps the ledger over changes of leader, in a ConfigMap that `prewarm status` reads: written when a window has ended or opened.

A write names the version it replaces: the late word of a planner that leads no more does not undo its successor's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from agent.core.assignment_json import format_time, parse_time
from agent.core.clock import Clock
from agent.core.errors import Invalid, Permanent, Transient, cut
from agent.core.latest import Latest, Signal
from agent.core.refs import EndpointKey, endpoint_key
from agent.fleet.ledger import Entry, Ledger, OpenWindow, Outcome
from agent.kube.api import KubeApi
from agent.kube.errors import NotFound
from agent.kube.objects import ConfigMapView
from agent.kube.resources import CONFIGMAPS

log = structlog.get_logger()

NAME = "prewarm-ledger"
_KEY = "ledger.json"
_TRIES, _PAUSE_SECONDS = 5, 2.0
_LEAST_SECONDS = 60.0  # between two writes


class LedgerKeeper:
    """A service that writes the ledger's ConfigMap."""

    name = "ledger"

    def __init__(self, api: KubeApi, ledger: Latest[Ledger], *, namespace: str, clock: Clock) -> None:
        self._api, self._ledger, self._namespace, self._clock = api, ledger, namespace, clock
        self._written = ""
        self._version: str | None = None  # of what stands there, "" for nothing; None: not known

    async def load(self) -> None:
        """Set the cell to what the last leader wrote, with this process's own totals; what cannot be read is logged."""
        try:
            found = await self._get()
            self._version = found.resource_version
            kept = parse_ledger(json.loads(found.data.get(_KEY, "{}")))
        except NotFound:
            self._version = ""
            return
        except (Transient, Permanent, Invalid, ValueError, RecursionError) as error:
            log.warning("the ledger cannot be read, windows that are open now are not counted", error=cut(error))
            return
        self._ledger.set(Ledger(open=kept.open, last=kept.last, totals=self._ledger.get().totals))

    async def _get(self) -> ConfigMapView:
        """Ask for it, more than once where the API server is slow: what is not read is overwritten soon."""
        for _ in range(_TRIES - 1):
            try:
                return await self._api.get(CONFIGMAPS, NAME, namespace=self._namespace)
            except Transient:
                await self._clock.sleep(_PAUSE_SECONDS)
        return await self._api.get(CONFIGMAPS, NAME, namespace=self._namespace)

    async def run(self) -> None:
        """Write until cancelled."""
        signal = Signal()
        self._ledger.attach(signal)
        try:
            while True:
                text = json.dumps(format_ledger(self._ledger.get(), self._clock.now()), sort_keys=True)
                if text != self._written and await self._write(text):
                    self._written = text
                await self._clock.sleep(_LEAST_SECONDS)
                if text == self._written:
                    await signal.wait()
        finally:
            self._ledger.detach(signal)

    async def _write(self, text: str) -> bool:
        try:
            if self._version is None:
                self._version = await self._standing()
            self._version = await self._put(text, self._version)
        except (Transient, Permanent) as error:
            self._version = None
            log.warning("the ledger cannot be written", error=str(error))
            return False
        return True

    async def _standing(self) -> str:
        try:
            return (await self._api.get(CONFIGMAPS, NAME, namespace=self._namespace)).resource_version
        except NotFound:
            return ""

    async def _put(self, text: str, version: str) -> str:
        meta, data = {"name": NAME, "namespace": self._namespace}, {_KEY: text}
        if version:
            body = {"metadata": {"resourceVersion": version}, "data": data}
            written = await self._api.patch(CONFIGMAPS, NAME, body, namespace=self._namespace)
        else:
            new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
            written = await self._api.create(CONFIGMAPS, new, namespace=self._namespace)
        return written.resource_version


def format_ledger(ledger: Ledger, now: datetime) -> dict[str, Any]:
    """Return what is kept as JSON: how the last windows ended, and those that are open now."""
    return {
        "last": [
            {**_key(key), "readyBy": format_time(e.ready_by), "outcome": str(e.outcome), "lateSeconds": round(e.late.total_seconds())}
            for key, e in sorted(ledger.last.items())
        ],
        "open": [
            {
                **_key(key),
                "readyBy": format_time(ready_by),
                "until": format_time(o.until),
                "readyAt": format_time(o.ready_at) if o.ready_at else None,
                "used": o.used,
            }
            for (key, ready_by), o in sorted(ledger.open.items(), key=lambda item: item[0])
            if ready_by <= now
        ],
    }  # fmt: skip


def parse_ledger(value: Any) -> Ledger:
    """Read what `format_ledger` wrote.

    Raises:
        Invalid: it did not.
    """
    try:
        last = {
            _parsed(e): Entry(
                ready_by=parse_time(e["readyBy"]),
                outcome=Outcome(e["outcome"]),
                late=timedelta(seconds=int(e["lateSeconds"])),
            )
            for e in value.get("last", [])
        }
        opened = {
            (_parsed(o), parse_time(o["readyBy"])): OpenWindow(
                until=parse_time(o["until"]),
                ready_at=parse_time(o["readyAt"]) if o["readyAt"] else None,
                used=o["used"] is True,
            )
            for o in value.get("open", [])
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Invalid(f"no ledger: {cut(error)}") from error
    return Ledger(open=opened, last=last)


def last_outcomes(value: Any, now: datetime) -> Mapping[str, str]:
    """Return how each endpoint's last window ended, for a person: `late 3m, 2026-03-02 09:00 UTC`."""
    found = parse_ledger(value)
    return {
        str(key): f"{_word(e)}, {e.ready_by.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        for key, e in found.last.items()
        if e.ready_by <= now
    }


def _word(entry: Entry) -> str:
    from agent.core.units import format_duration

    return f"late {format_duration(entry.late)}" if entry.outcome is Outcome.LATE else str(entry.outcome)


def _key(key: EndpointKey) -> dict[str, str]:
    return {"namespace": key.namespace, "name": key.name}


def _parsed(item: Mapping[str, Any]) -> EndpointKey:
    return endpoint_key(item["namespace"], item["name"])
