"""A full disk on recorded traffic: what the forecast keeps, against LRU, LFU and those who know the future.

    python -m bench.cache RECORDING...

All models are of one size. A model that was used in the last 30 minutes is running and stays, whatever the room. `beside`: the room is
for idle models, beside the running ones. `of all`: it is for all models, and what is running takes its part of it, or all. A hit is
a return, after 30 idle minutes, to a model on disk. LRU, LFU and Belady load on demand; the forecast, and its ideal, beforehand too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.cli.recordings import read_recording
from agent.core.errors import Invalid
from agent.demand import replay
from agent.demand.activity import REPORTED_LATE, RETURN_AFTER
from agent.demand.arrays import Flags, Floats, decay
from agent.demand.recording import Recording, idle_before
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS
from agent.demand.worth import keep, soon

SHARES = (0.2, 0.5)
PREFETCHING = ("forecast", "Belady, prefetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Share of returns that found their model, and downloads a day."""

    hits_pct: float
    loads_a_day: float


def worths(recording: Recording) -> Mapping[str, Floats]:
    """Return what each rule thinks of every model before each slot [slot, endpoint], from what is known then; more is kept longer."""
    active = recording.active.T
    last, often, coming = (np.zeros(active.shape, np.float32) for _ in range(3))
    newest, count = np.full(active.shape[1], -np.inf), np.zeros(active.shape[1])
    for slot, used in enumerate(active):
        last[slot], often[slot] = newest, count + 1e-9 * newest.clip(0)
        newest, count = np.where(used, slot, newest), count * decay(DAY_SLOTS) + used
    soonest = np.full(active.shape[1], np.inf)
    for slot in reversed(range(len(active))):
        soonest = np.where(active[slot], slot, soonest)
        coming[slot] = -soonest
    return {
        "LRU": last,
        "LFU, one day": often,
        "Belady": coming,
        "forecast": forecast_worth(recording),
        "Belady, prefetch": coming,
    }


def forecast_worth(recording: Recording) -> Floats:
    """Return what a place is worth by the planner's own forecast, told of each slot two slots late."""
    names = np.array([endpoint.name for endpoint in recording.endpoints])
    policy = replay.policy(recording.endpoints, SLOT_SECONDS, 0.2)
    found = np.zeros(recording.active.T.shape, np.float32)
    for slot in range(REPORTED_LATE, len(found)):
        told = slot - REPORTED_LATE
        used = names[recording.active[:, told]].tolist() if recording.known[told] else None
        policy.step(recording.at(slot), used)
        if recording.counted[slot]:
            found[slot] = soon(policy.forecast, recording.at(slot))
    return found


def simulate(recording: Recording, rule: str, worth: Floats, room: int, beside: bool) -> Result:
    """Keep `room` models on disk by a rule, slot after slot."""
    active, before = recording.active.T, idle_before(recording).T
    counted = recording.counted & recording.known
    idle_slots = np.full(active.shape[1], RETURN_AFTER)
    held = np.zeros(active.shape[1], bool)
    returns = hits = loads = 0
    for slot, used in enumerate(active):
        running = idle_slots < RETURN_AFTER
        places = room if beside else max(0, room - int(running.sum()))
        kept = _chosen(rule, worth[slot], held & ~running, ~running, places)
        if counted[slot]:
            back = used & (before[slot] >= RETURN_AFTER)
            returns, hits = returns + back.sum(), hits + (back & kept).sum()
            loads += (kept & ~held).sum() + (used & ~kept & ~running).sum()
        held = kept | running | used
        idle_slots = np.where(used, 0, idle_slots + 1)
    days = counted.sum() / DAY_SLOTS
    return Result(hits_pct=float(100 * hits / returns), loads_a_day=float(loads / days))


def _chosen(rule: str, worth: Floats, held: Flags, idle: Flags, places: int) -> Flags:
    if rule == "forecast":
        return keep(np.where(idle, worth, 0), np.ones(len(worth)), held, places) & idle
    allowed = (idle if rule in PREFETCHING else held) & (worth > -np.inf)
    best = np.argsort(np.where(allowed, -worth, np.inf), kind="stable")[:places]
    kept = np.zeros(len(worth), bool)
    kept[best] = True
    return kept & allowed


def _running(recording: Recording) -> float:
    """Return how many models are running on average in the slots that count."""
    active = recording.active
    recent = [np.roll(active, slots, axis=1) for slots in range(RETURN_AFTER)]
    return float(np.logical_or.reduce(recent)[:, recording.counted].sum(axis=0).mean())


def main() -> None:
    """Print a table for each recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", nargs="+", type=Path, help="a recording of traffic, as `prewarm replay` reads it")
    options = parser.parse_args()
    for path in options.recording:
        try:
            recording = read_recording(path)
        except Invalid as error:
            parser.error(str(error))
        rules, count = worths(recording), len(recording.endpoints)
        rooms = [(share, max(1, round(share * count)), beside) for beside in (True, False) for share in SHARES]
        heads = [f"{share:.0%} {'beside' if beside else 'of all'}" for share, _, beside in rooms]
        print(f"\n{path.name}: {count} models, of which {_running(recording):.1f} are running on average.")
        print("% of returns found on disk / downloads a day, with room for\n")
        print(f"| rule | {' | '.join(heads)} |\n|---|{'---|' * len(rooms)}")
        for rule, worth in rules.items():
            results = [simulate(recording, rule, worth, room, beside) for _, room, beside in rooms]
            cells = " | ".join(f"{each.hits_pct:.1f} / {each.loads_a_day:.1f}" for each in results)
            print(f"| {rule} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
