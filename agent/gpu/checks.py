"""The passive checks of one GPU, each a small pure rule with its source. A rule sees answers that hold, never failed ones.

A check whose first question was not asked, failed, or does not apply to the product is not made at all: it finds nothing,
and it clears nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.gpu.observation import Gpu
from agent.gpu.reasons import Code
from agent.gpu.tracks import Track

Found = tuple[Code, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One GPU at one moment (monotonic seconds), with what is remembered of it."""

    gpu: Gpu
    track: Track
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A rule, the questions without which it is not made, and the reasons it can find."""

    needs: tuple[str, ...]
    finds: tuple[Code, ...]
    judge: Callable[[Look], Iterator[Found]]

    def made(self, gpu: Gpu) -> bool:
        """Say whether the answers are there."""
        for question in self.needs:  # noqa: SIM110 (all() would double what this costs, at every poll)
            if not gpu.asked(question):
                return False
        return True


def check(*needs: str, finds: tuple[Code, ...]) -> Callable[[Callable[[Look], Iterator[Found]]], Check]:
    """Declare a check."""
    return lambda judge: Check(needs=needs, finds=finds, judge=judge)
