"""Foretells, once in each slot, the windows of all endpoints from their histories.

All of it is arithmetic, done in a thread in bites of a few seconds, and between two bites it rests as long as one took: the Lease is
renewed meanwhile, and who leads no more is not held up. Nothing here can end the planner: it can do without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import structlog

from agent.core.assignment import WindowSource
from agent.core.clock import Clock
from agent.core.latest import Latest
from agent.demand.endpoint import Endpoint, Predict
from agent.demand.foretell import Foreteller
from agent.demand.foretold import Foretold, Windows
from agent.demand.history import SLOT_SECONDS
from agent.fleet.history import HistoryReport
from agent.kube.objects import NodeWarmupView

log = structlog.get_logger()

_AFTER_SECONDS = 120.0  # a slot's end: Prometheus has been asked about it (agent.fleet.history_reader.SCRAPED)
_PAUSE_SECONDS = 3600.0  # after a failure: the same past would most likely fail again


class Foretelling:
    """A service of the leader. `predicted` gets the windows that count, `foretold` those in shadow as well."""

    name = "foretell"

    def __init__(
        self,
        endpoints: Latest[tuple[Endpoint, ...] | None],
        history: Latest[HistoryReport],
        predicted: Latest[Windows],
        foretold: Latest[Foretold],
        *,
        budget: float,
        clock: Clock,
    ) -> None:
        """`budget` is the share of idle endpoint-time that may be warm; failures in `foretold` are counted on."""
        self._endpoints, self._history, self._predicted, self._foretold = endpoints, history, predicted, foretold
        self._budget, self._clock = budget, clock
        self._foreteller = Foreteller(budget, predicted.get())

    async def run(self) -> None:
        """Run until cancelled; begins when it is known who there is, and what was seen of them."""
        async for endpoints in self._endpoints.follow():
            if endpoints is not None:
                break
        async for report in self._history.follow():
            if report.complete:
                break
        while True:
            await self._clock.sleep(await self._tried())

    async def _tried(self) -> float:
        """Foretell once; return after how many seconds to do so again."""
        try:
            await self.foretell()
        except Exception:  # numbers of traffic that nobody here controls: declared windows must not end with them
            log.exception("nothing can be foretold, windows foretold before run out")
            self._foreteller = Foreteller(self._budget, self._predicted.get())
            found = self._foretold.get()
            self._foretold.set(replace(found, failures=found.failures + 1))
            return _PAUSE_SECONDS
        into = (self._clock.now().timestamp() - _AFTER_SECONDS) % SLOT_SECONDS
        return SLOT_SECONDS - into

    async def foretell(self) -> None:
        """Learn what is new, and foretell."""
        declared = self._endpoints.get() or ()
        asked = sorted((e for e in declared if e.predict is not Predict.OFF), key=lambda e: e.key)
        now, began = self._clock.now(), self._clock.monotonic()
        await asyncio.to_thread(self._foreteller.begin, asked, self._history.get().tracks, now)
        more = True
        while more:
            bite = self._clock.monotonic()
            more = await asyncio.to_thread(self._foreteller.learn)
            await self._clock.sleep(self._clock.monotonic() - bite if more else 0)
        found = await asyncio.to_thread(self._foreteller.foretell, now)
        self._foretold.set(replace(found, failures=self._foretold.get().failures))
        self._predicted.set({e.key: found.windows[e.key] for e in asked if e.predict is Predict.ON})
        took, windows = self._clock.monotonic() - began, sum(map(len, found.windows.values()))
        log.debug("foretold", endpoints=len(asked), windows=windows, seconds=took)


def standing_windows(warmups: Iterable[NodeWarmupView]) -> Windows:
    """Return the predicted windows that nodes were told of, by whoever led before: they stand until there are others."""
    found = {}
    for warmup in warmups:
        for want in warmup.assignment.endpoints if warmup.assignment else ():
            predicted = tuple(w for w in want.windows if w.source is WindowSource.PREDICTED)
            if predicted:
                found[want.key] = predicted
    return found
