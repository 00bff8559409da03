"""What a holiday does to an endpoint of several nodes: its softened windows stay, on a third of them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import date
from hashlib import blake2b

from agent.core.assignment import EndpointWant
from agent.core.refs import EndpointKey
from agent.demand.windows import softened


def keepers(key: EndpointKey, nodes: Collection[str]) -> frozenset[str]:
    """Return the nodes that keep an endpoint's softened windows: a third, at least one, chosen alike each time."""
    ranked = sorted(nodes, key=lambda name: blake2b(f"{key} {name}".encode(), digest_size=8).digest())
    return frozenset(ranked[: -(-len(ranked) // 3)])


def without_softened(want: EndpointWant) -> EndpointWant:
    """Return what the other nodes are asked for."""
    return replace(want, windows=tuple(w for w in want.windows if not softened(w)))


def soften_notes(days: Mapping[date, str], nodes: int) -> Iterator[str]:
    """Say of each holiday ahead, by name, that windows are softened, where that changes anything."""
    kept = -(-nodes // 3)
    for day, name in days.items() if kept < nodes else ():
        yield f"{day} is a holiday ({name}): windows that start on it are kept warm on {kept} of {nodes} nodes"
