"""`prewarm replay`: what the forecast would have done with past traffic, at which cost, and what to declare.

The traffic is a file's (--trace), a Prometheus's, or what the planner remembers of the endpoints in the cluster. Changes nothing.
Exit codes: 0 done, 1 no traffic or nobody to ask, 2 usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.cli import declared, traffic
from agent.cli.recordings import read_recording
from agent.cli.replay_page import page
from agent.config import load_settings, zone_name
from agent.core.assignment_json import format_time
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.units import format_size, parse_size
from agent.demand import replay
from agent.demand.endpoint import Endpoint
from agent.demand.propose import Proposal, proposals
from agent.demand.recording import Outcome, Recorded, Recording, count, recorded, step_through
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS

_DAYS = 28


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "replay",
        help="what prewarm would have done with your past traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="endpoint,slot_start_epoch_s,demand as CSV, or a folder (docs/replay.md)",
    )
    traffic.add_source(source)
    traffic.add_flags(parser, default_days=_DAYS)
    declared.add_flags(parser)
    parser.add_argument(
        "--budget", default="0.1,0.2,0.4", help="shares of idle time that may be warm (default 0.1,0.2,0.4)"
    )
    parser.add_argument("--timezone", default="UTC", help="of a CSV file's endpoints (default UTC)")
    parser.add_argument("--learn-days", type=int, default=7, help="first days, only learned from (default 7)")
    parser.add_argument("--cold-seconds", type=float, default=180, help="what a cold start costs (default 180)")
    parser.add_argument("--size", default="15GB", help="of an endpoint's weights (default 15GB)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the curve of cost and hits as a page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, fail=parser.error)


def run(options: argparse.Namespace) -> int:
    """Replay the traffic at every budget and print what came of it."""
    budgets, size = _checked(options)
    recording = _recording(options)
    policy = replay.policy(recording.endpoints, SLOT_SECONDS, *budgets)
    warm = step_through(recording, policy)
    lines = [
        _line(budget, count(recording, each), options.cold_seconds, size)
        for budget, each in zip(budgets, warm, strict=True)
    ]
    proposed = list(proposals(recording))
    if options.html:
        _write(options.html, page(_title(recording, lines), lines, proposed))
    if options.json:
        print(json.dumps(_as_json(recording, lines, proposed), indent=1))
    else:
        _print(recording, lines, proposed)
    return 0


def _checked(options: argparse.Namespace) -> tuple[list[float], int]:
    """Return budgets and size; flags that cannot be meant are refused as usage."""
    traffic.check(options)
    try:
        budgets, size = _budgets(options.budget), parse_size(options.size)
        zone_name(options.timezone)
    except Invalid as error:
        options.fail(str(error))
    if options.learn_days < 0 or not (math.isfinite(options.cold_seconds) and options.cold_seconds >= 0):
        options.fail("--learn-days and --cold-seconds: numbers from 0")
    if options.html and not options.html.parent.is_dir():
        options.fail(f"--html {options.html}: there is no folder {options.html.parent}")
    return budgets, size


def _recording(options: argparse.Namespace) -> Recording:
    """Return the past traffic.

    Raises:
        PrewarmError: there is none, or no more than is learned from.
    """
    found = read_recording(options.trace, options.timezone, options.learn_days) if options.trace else _known(options)
    if not found.counted.any():
        what = options.trace or "what is known of this traffic"
        raise Invalid(
            f"{what} ends before {options.learn_days} days of learning are over: record longer, or set --learn-days"
        )
    return found


def _known(options: argparse.Namespace) -> Recording:
    settings = load_settings(argparse.Namespace(config=options.config))
    endpoints = declared.declared(options, settings)
    tracks = asyncio.run(traffic.activity(options, settings, endpoints))
    seen = [e for e in endpoints if e.key in tracks]
    return recorded([_recorded(e) for e in seen], [tracks[e.key] for e in seen], options.learn_days)


def _recorded(endpoint: Endpoint) -> Recorded:
    return Recorded(
        name=f"{endpoint.key.namespace}/{endpoint.key.name}",
        timezone=endpoint.zone,
        group=endpoint.key.namespace,
        schedule=tuple(s.cron for s in endpoint.schedule),
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise PrewarmError(f"cannot write {path}: {cut(error)}") from error


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


def _as_json(
    recording: Recording, lines: Sequence[dict[str, float]], proposed: Sequence[Proposal]
) -> dict[str, object]:
    counted = recording.counted.nonzero()[0]
    return {
        "endpoints": len(recording.endpoints),
        "counted_from": format_time(recording.at(int(counted[0]))),
        "counted_until": format_time(recording.at(int(counted[-1]) + 1)),
        "replay": lines,
        "proposals": [asdict(each) for each in proposed],
    }


def _title(recording: Recording, lines: Sequence[dict[str, float]]) -> str:
    days, returns = recording.counted.sum() / DAY_SLOTS, int(lines[0]["returns"])
    return f"{len(recording.endpoints)} endpoints, {days:.1f} days counted, {returns} returns after 30 idle minutes"


def _print(recording: Recording, lines: Sequence[dict[str, float]], proposed: Sequence[Proposal]) -> None:
    print(_title(recording, lines))
    print(
        f"\n{'budget':>7} {'hits':>7} {'misses':>7} {'warm':>7} {'≥4h':>7} {'waste':>7} {'wasted':>14} {'cold saved':>11}"
    )
    for line in lines:
        wasted = format_size(int(line["wasted_gigabyte_hours"] * 1e9)) + "-hours"
        print(
            f"{line['budget']:>7.0%} {line['hits']:>7.0f} {line['misses']:>7.0f} {line['hit_pct']:>6.1f}% {line['hit_pct_after_4h']:>6.1f}%"
            f" {line['waste_pct']:>6.1f}% {wasted:>14} {line['cold_seconds_saved']:>9.0f} s"
        )
    for each in proposed:
        print(f"\n{cut(each.endpoint)}: {each.why}; {'declare' if each.annotations else 'remove its schedule'}")
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
