"""`prewarm replay --trace FILE`: what prewarm would have done with recorded traffic, at which cost, and what to declare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.cli.recordings import read_recording
from agent.cli.replay_page import page
from agent.core.errors import Invalid
from agent.core.units import format_size, parse_size
from agent.demand import replay
from agent.demand.propose import Proposal, proposals
from agent.demand.recording import Outcome, Recording, count, step_through
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "replay", help="what prewarm would have done with your past traffic", description=__doc__
    )
    parser.add_argument(
        "--trace",
        required=True,
        type=Path,
        metavar="FILE",
        help="endpoint,slot_start_epoch_s,demand as CSV, or a folder",
    )
    parser.add_argument(
        "--budget", default="0.1,0.2,0.4", help="shares of idle time that may be warm (default 0.1,0.2,0.4)"
    )
    parser.add_argument("--timezone", default="UTC", help="of a CSV file's endpoints (default UTC)")
    parser.add_argument("--learn-days", type=int, default=7, help="days of a CSV file only learned from (default 7)")
    parser.add_argument("--cold-seconds", type=float, default=180, help="what a cold start costs (default 180)")
    parser.add_argument("--size", default="15GB", help="of an endpoint's weights (default 15GB)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the curve of cost and hits as a page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay the recording at every budget and print what came of it."""
    budgets, size = _budgets(options.budget), parse_size(options.size)
    recording = read_recording(options.trace, options.timezone, options.learn_days)
    if not recording.counted.any():
        raise Invalid(
            f"{options.trace} ends before {options.learn_days} days of learning are over: record longer, or set --learn-days"
        )
    policy = replay.policy(recording.endpoints, SLOT_SECONDS, *budgets)
    warm = step_through(recording, policy)
    lines = [
        _line(budget, count(recording, each), options.cold_seconds, size)
        for budget, each in zip(budgets, warm, strict=True)
    ]
    proposed = list(proposals(recording))
    if options.html:
        options.html.write_text(page(lines))
    if options.json:
        print(json.dumps({"replay": lines, "proposals": [asdict(each) for each in proposed]}, indent=1))
    else:
        _print(recording, lines, proposed)
    return 0


def _line(budget: float, outcome: Outcome, cold_seconds: float, size: int) -> dict[str, float]:
    return {
        "budget": budget,
        "returns": outcome.returns,
        "hits": outcome.met,
        "misses": outcome.returns - outcome.met,
        "hit_pct": _percent(outcome.met, outcome.returns),
        "hit_pct_after_4h": _percent(outcome.long_met, outcome.long_returns),
        "waste_pct": _percent(outcome.wasted_hours, outcome.idle_hours),
        "wasted_gigabyte_hours": round(outcome.wasted_hours * size / 1e9, 1),
        "cold_seconds_saved": round(outcome.met * cold_seconds, 1),
    }


def _print(recording: Recording, lines: Sequence[dict[str, float]], proposed: Sequence[Proposal]) -> None:
    days = recording.counted.sum() / DAY_SLOTS
    print(
        f"{len(recording.endpoints)} endpoints, {days:.1f} days counted, {int(lines[0]['returns'])} returns after 30 idle minutes"
    )
    print(
        f"\n{'budget':>7} {'hits':>7} {'misses':>7} {'warm':>7} {'≥4h':>7} {'waste':>7} {'wasted':>14} {'cold saved':>11}"
    )
    for line in lines:
        wasted = format_size(int(line["wasted_gigabyte_hours"] * 1e9)) + "-hours"
        print(
            f"{line['budget']:>7.0%} {line['hits']:>7.0f} {line['misses']:>7.0f} {line['hit_pct']:>6.1f}% {line['hit_pct_after_4h']:>6.1f}%"
            f" {line['waste_pct']:>6.1f}% {wasted:>14} {line['cold_seconds_saved'] / 3600:>9.1f} h"
        )
    for each in proposed:
        print(f"\n{each.endpoint}: {each.why}; {'declare' if each.annotations else 'remove its schedule'}")
        for name, value in each.annotations.items():
            print(f'  {name}: "{value}"')


def _budgets(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise Invalid(f"--budget {text!r}: write shares of idle time between 0 and 1, like 0.1,0.2") from error
    if not all(0 < budget <= 1 for budget in found):
        raise Invalid(f"--budget {text!r}: every share must be above 0 and at most 1")
    return found


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
