"""Pods that start on this node, as far as their models are concerned."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.refs import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Committed models of pods bound to this node.

    `pending` pairs the uid of each pod that has not begun to run with what it needs; `loading` is what some pod needs that
    has not begun to, or runs and is not Ready yet.
    """

    pending: frozenset[tuple[str, Digest]] = frozenset()
    loading: frozenset[Digest] = frozenset()
