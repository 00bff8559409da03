"""`prewarm recommend`: how many pods an endpoint's next window is worth keeping, told from past ones. Changes nothing.

p95 are the pods that 95 of 100 such windows need at most, by a conformal forecast. PODS are those of them that are worth it; hours
and seconds are a week's: what pods would idle beyond what runs anyway, and what nobody would wait for. Where too little is known they
are 0, and WHY says so.
Exit codes: 0 done, 1 no such endpoint or nobody to ask, 2 usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agent.cli import declared, traffic
from agent.cli.status import table
from agent.config import Settings, load_settings
from agent.core.assignment_json import format_time
from agent.core.errors import Invalid, PrewarmError
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, MinScale
from agent.demand.history_queries import PODS, pods_query
from agent.demand.recommend import Needed, Recommendation, Terms, recommend

_DAYS = 42
_MOST_PODS = 10_000
Pods = Sequence[int | None]
Found = Sequence[tuple[Endpoint, Recommendation]]


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "recommend",
        help="how many pods the next window is worth keeping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "endpoints",
        nargs="*",
        metavar="NAMESPACE/NAME",
        help="which (default: all with prewarm.dev/min-scale: recommend or apply)",
    )
    traffic.add_source(parser)
    traffic.add_flags(parser, default_days=_DAYS)
    declared.add_flags(parser)
    parser.add_argument(
        "--query", metavar="PROMQL", default=PODS, help="what is needed, in place of the pods that ran (docs/replay.md)"
    )
    parser.add_argument(
        "--per-pod", type=float, default=1, metavar="N", help="how much of --query one pod serves (default 1)"
    )
    parser.add_argument(
        "--cold-seconds", type=float, default=60, help="what a pod's start takes on a node that is warm (default 60)"
    )
    parser.add_argument(
        "--worth", type=float, default=30, help="seconds that a GPU may idle for each cold second saved (default 30)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, fail=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print a line for each endpoint."""
    wanted = _checked(options)
    found, source = _recommend(options, wanted)
    if options.json:
        print(json.dumps({"source": source, "recommendations": [_as_json(e, r) for e, r in found]}, indent=1))
    else:
        print("\n".join(_text(found, source)).lstrip("\n"))
    return 0


def _checked(options: argparse.Namespace) -> frozenset[EndpointKey]:
    """Return the endpoints asked for; flags that cannot be meant are refused as usage."""
    traffic.check(options)
    try:
        wanted = declared.keys_of(options.endpoints)
    except Invalid as error:
        options.fail(str(error))
    for name in ("per_pod", "cold_seconds", "worth"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value > 0):
            options.fail(f"--{name.replace('_', '-')} {value:g}: a number above 0")
    return wanted


def _recommend(options: argparse.Namespace, wanted: frozenset[EndpointKey]) -> tuple[Found, str]:
    """Return a recommendation for each endpoint asked for, and who told of its pods."""
    settings = load_settings(argparse.Namespace(config=options.config))
    endpoints = declared.declared(options, settings, wanted)
    chosen = [e for e in endpoints if wanted or e.min_scale is not MinScale.OFF]
    if not chosen:
        raise PrewarmError(
            "no endpoint has prewarm.dev/min-scale: recommend or apply: annotate one, or name it: prewarm recommend NAMESPACE/NAME"
        )
    now = datetime.now(UTC)
    needed, source = asyncio.run(_needed(options, settings, chosen, now))
    terms = Terms(cold_seconds=options.cold_seconds, worth=options.worth)
    return [(e, recommend(e, needed[e.key], now, terms)) for e in chosen if e.key in needed], source


async def _needed(
    options: argparse.Namespace, settings: Settings, endpoints: Collection[Endpoint], now: datetime
) -> tuple[Mapping[EndpointKey, Needed], str]:
    """Return the pods that each endpoint needed, as far as they are known, and who says so; one that is refused is left out.

    Raises:
        PrewarmError: all are refused, or nobody answers.
    """
    slots = range(*traffic.slots_of(options.days, now))
    said, refused, source = await _said(options, settings, endpoints, slots)
    traffic.tell_left_out(options, refused.keys(), refused)
    asked = [e.key for e in endpoints if e.key not in refused]
    if not asked:
        raise PrewarmError(traffic.nothing(options, settings, refused))
    if all(pods is None for each in said.values() for pods in each):
        print(f"prewarm {options.command}: {traffic.nothing(options, settings, {})}", file=sys.stderr)
    unknown = [None] * len(slots)
    return {key: Needed(first=slots.start, pods=said.get(key, unknown)) for key in asked}, source


async def _said(
    options: argparse.Namespace, settings: Settings, endpoints: Collection[Endpoint], slots: range
) -> tuple[Mapping[EndpointKey, Pods], Mapping[EndpointKey, str], str]:
    """Return what is known of each endpoint's pods in these slots, why nothing can be asked of others, and who says so."""
    from agent.fleet.past import past_levels

    async with traffic.prometheus_of(options, settings) as prometheus:
        if prometheus is None:
            tracks = await traffic.remembered(options, endpoints)
            return {key: [_ran(track.state(n)) for n in slots] for key, track in tracks.items()}, {}, "planner"
        queries = {e.key: pods_query(e, options.query) for e in endpoints}
        past = await past_levels(prometheus, queries, slots.start, slots.stop)
    said = {key: [_pods(each.get(n), options.per_pod) for n in slots] for key, each in past.found.items()}
    return said, past.refused, "prometheus"


def _ran(active: bool | None) -> int | None:
    return None if active is None else int(active)


def _pods(level: float | None, per_pod: float) -> int | None:
    """Return the pods for a level; None where it is none or cannot be."""
    if level is None or not 0 <= level / per_pod <= _MOST_PODS:
        return None
    return math.ceil(level / per_pod - 1e-9)


def _as_json(endpoint: Endpoint, found: Recommendation) -> dict[str, object]:
    return {
        "namespace": endpoint.key.namespace,
        "name": endpoint.key.name,
        "readyBy": format_time(found.window.ready_by) if found.window else None,
        "until": format_time(found.window.until) if found.window else None,
        "p95Pods": found.p95_pods,
        "pods": found.pods,
        "podHoursPerWeek": round(found.pod_hours, 2),
        "gpuHoursPerWeek": round(found.gpu_hours, 2),
        "coldSecondsSavedPerWeek": round(found.cold_seconds_saved, 1),
        "windowsSeen": found.windows,
        "covered": round(found.covered, 3),
        "why": found.why,
    }


def _text(found: Found, source: str) -> Iterator[str]:
    head = ("NAMESPACE", "ENDPOINT", "NEXT WINDOW", "P95", "PODS", "GPU-HOURS", "COLD SAVED", "WHY")
    yield from table(head, [_cells(endpoint, each) for endpoint, each in found])
    if source == "planner":
        yield ""
        yield "The planner remembers whether pods ran, not how many: these are 0 or 1. Name a Prometheus with --from-prometheus."


def _cells(endpoint: Endpoint, found: Recommendation) -> tuple[str, ...]:
    return (
        endpoint.key.namespace,
        endpoint.key.name,
        format_time(found.window.ready_by) if found.window else "-",
        str(found.p95_pods),
        str(found.pods),
        f"{found.gpu_hours:.1f}" if endpoint.gpus else f"0 ({found.pod_hours:.1f} pod-hours)",
        f"{found.cold_seconds_saved:.0f} s",
        found.why,
    )
