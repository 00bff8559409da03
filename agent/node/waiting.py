"""Pods that wait for their models: what such a pod asks (untrusted), and what holds for it now. Pure, but for the line.

A pod may ask only for its own endpoint; what it gets is the version the assignment names, never what the pod says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from agent.core.assignment import Assignment, ModelWant
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.inventory import Inventory
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey, ModelSource, parse_model_source
from agent.core.units import format_size

SERVICE = "prewarm.v1.Local"
MAX_MODELS = 50
_MAX_TIMEOUT_SECONDS = 86400.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_ENDPOINT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._\-]{0,61}[A-Za-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9\-]{1,64}")  # a UUID, or for static pods a hash


class Full(PrewarmError):
    """As many pods wait as may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitOrder:
    """What a pod waits for, checked in form only. `timeout_seconds` 0: until it hangs up."""

    endpoint: EndpointKey
    pod_name: str
    pod_uid: str
    models: tuple[ModelSource, ...]
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """One model of an order: the version it means here and whether that is committed."""

    name: str
    digest: Digest | None
    committed: bool
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What holds for an order now. `refusal`: why nothing here will ever serve it, as things stand."""

    models: tuple[Waited, ...] = ()
    message: str = ""
    refusal: str = ""

    @property
    def committed(self) -> bool:
        """True if every model is."""
        return not self.refusal and all(m.committed for m in self.models)


def parse_order(
    *,
    namespace: str,
    endpoint: str,
    pod_name: str,
    pod_uid: str,
    models: tuple[tuple[str, str], ...],
    timeout: float,
) -> WaitOrder:
    """Check the form of an order.

    Raises:
        Invalid: naming the first bad value.
    """
    for what, value, pattern in (
        ("namespace", namespace, _NAMESPACE),
        ("endpoint", endpoint, _ENDPOINT),
        ("pod name", pod_name, _NAME),
        ("pod uid", pod_uid, _UID),
    ):
        if not pattern.fullmatch(value):
            raise Invalid(f"{what} {cut(value, 60)!r} is not one")
    if not 1 <= len(models) <= MAX_MODELS:
        raise Invalid(f"{len(models)} models: a pod waits for 1 to {MAX_MODELS}")
    if not 0 <= timeout <= _MAX_TIMEOUT_SECONDS:
        raise Invalid(f"timeout {timeout} is not between 0 and {_MAX_TIMEOUT_SECONDS:.0f} s")
    sources = tuple(parse_model_source(f"{name}={uri}" if name else uri) for name, uri in models)
    if len({s.name for s in sources}) != len(sources):
        raise Invalid("two models have one name")
    return WaitOrder(
        endpoint=EndpointKey(namespace=namespace, name=endpoint),
        pod_name=pod_name,
        pod_uid=pod_uid,
        models=sources,
        timeout_seconds=timeout,
    )


def outlook(
    order: WaitOrder, assignment: Assignment | None, inventory: Inventory, refusals: Mapping[Digest, str] | None = None
) -> Outlook:
    """Say what holds for an order now. `refusals` are versions that cannot be brought in as things stand, and why."""
    if assignment is None:
        return Outlook(refusal="this node has no assignment yet")
    want = assignment.endpoint(order.endpoint)
    if want is None:
        return Outlook(refusal=f"endpoint {order.endpoint} is not assigned to this node")
    wants = {(m.name, str(m.uri)): m for m in want.models}
    asked = [(s, wants.get((s.name, str(s.uri)))) for s in order.models]
    if missing := [s for s, m in asked if m is None]:
        return Outlook(
            refusal=f"model {missing[0].name} ({missing[0].uri}) is not among those of {order.endpoint} here"
        )
    models = tuple(_waited(m, inventory) for _, m in asked if m is not None)
    for model in models:
        if not model.committed and model.digest and (why := (refusals or {}).get(model.digest)):
            return Outlook(refusal=f"there is no room for model {model.name}: {why}")
    return Outlook(models=models, message=_message(models, inventory))


def _waited(want: ModelWant, inventory: Inventory) -> Waited:
    digest = want.digest or inventory.resolved.get(str(want.uri))
    state = inventory.models.get(digest) if digest else None
    return Waited(
        name=want.name,
        digest=digest,
        committed=state is not None and state.level.committed,
        done_bytes=state.done_bytes if state else 0,
        total_bytes=(state.total_bytes if state else 0) or want.size_bytes,
    )


def _message(models: tuple[Waited, ...], inventory: Inventory) -> str:
    for model in models:
        state = inventory.models.get(model.digest) if model.digest else None
        if model.committed:
            continue
        if model.digest is None:
            return f"model {model.name}: waiting for its version to be resolved"
        if state and state.error:
            return cut(f"model {model.name}: {state.error}; it is tried again")
        if state and state.busy:
            done, total = format_size(model.done_bytes), format_size(model.total_bytes)
            return f"model {model.name}: {done} of {total} at {format_size(state.rate_bytes_per_second)}/s"
        return f"model {model.name}: waiting for its turn"
    return "every model is committed"


class WaitingLine:
    """Who waits now: keeps the cell that puts their endpoints first in line."""

    def __init__(self, waiting: Latest[frozenset[EndpointKey]], *, limit: int = 512, of_pod: int = 4) -> None:
        """Let at most `limit` stand in it, of one pod `of_pod`: it asks once, but the agent may learn late that it hung up."""
        self._waiting = waiting
        self._limit, self._of_pod = limit, of_pod
        self._counts: Counter[EndpointKey] = Counter()
        self._pods: Counter[str] = Counter()

    @contextmanager
    def standing(self, order: WaitOrder) -> Iterator[None]:
        """Stand in line for an endpoint as long as the context lasts.

        Raises:
            Full: too many pods wait, or this one waits too often.
        """
        key, uid = order.endpoint, order.pod_uid
        if self._counts.total() >= self._limit:
            raise Full(f"{self._limit} pods wait already")
        if self._pods[uid] >= self._of_pod:
            raise Full(f"this pod waits {self._of_pod} times already")
        self._counts[key] += 1
        self._pods[uid] += 1
        self._waiting.set(frozenset(self._counts))
        try:
            yield
        finally:
            self._counts -= Counter([key])
            self._pods -= Counter([uid])
            self._waiting.set(frozenset(self._counts))
