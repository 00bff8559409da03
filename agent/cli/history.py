"""`prewarm history`: when an endpoint had requests, as the planner remembers it: a line a day, a mark for each half hour."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace, _SubParsersAction
from datetime import UTC, datetime

from agent.cli.traffic import kept_shards
from agent.config import zone_name
from agent.core.assignment_json import format_time
from agent.core.errors import Invalid, PrewarmError
from agent.core.refs import EndpointKey, endpoint_key
from agent.core.units import format_duration
from agent.demand.heat_map import day_states, heat_map
from agent.demand.history import KEEP_DAYS, SLOT_SECONDS, Track


def add_parser(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command to `prewarm`."""
    parser = subparsers.add_parser("history", help="show when an endpoint had requests", description=__doc__)
    parser.add_argument("endpoint", metavar="NAMESPACE/NAME", help="the endpoint: its namespace and name")
    parser.add_argument("--days", type=int, default=7, metavar="N", help=f"how many, at most {KEEP_DAYS} (default: 7)")
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="whose wall clock (default: UTC)")
    parser.add_argument("--planner-namespace", default="prewarm", help="where the planner keeps it (default: prewarm)")
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file (default: as kubectl finds it)")
    parser.add_argument("--json", action="store_true", help="print JSON: days in UTC, a character for each ten minutes")
    parser.set_defaults(run=run, fail=parser.error)


def run(options: Namespace) -> int:
    """Print it; 1 if nothing is known of the endpoint, or nobody could be asked."""
    try:
        namespace, _, name = options.endpoint.partition("/")
        key, zone = endpoint_key(namespace, name), zone_name(options.timezone)
    except Invalid as error:
        options.fail(str(error))
    if not 1 <= options.days <= KEEP_DAYS:
        options.fail(f"--days {options.days}: a number from 1 to {KEEP_DAYS}")
    track, written_at = asyncio.run(_find(key, options.planner_namespace, options.kubeconfig))
    now = datetime.now(UTC)
    if options.json:
        states = [{"date": date, "slots": slots} for date, slots in day_states(track, now, options.days)]
        told = {"endpoint": str(key), "writtenAt": format_time(written_at), "slotSeconds": SLOT_SECONDS, "days": states}
        print(json.dumps(told, indent=1))
    else:
        print(f"{key}, {zone}, written {format_duration(round((now - written_at).total_seconds()))} ago")
        print("\n".join(heat_map(track, now, zone, options.days)))
    return 0


async def _find(key: EndpointKey, namespace: str, kubeconfig: str) -> tuple[Track, datetime]:
    """Return an endpoint's track, and when it was written.

    Raises:
        PrewarmError: there is none, or it cannot be read.
    """
    shards, unreadable = await kept_shards(namespace, kubeconfig)
    for shard in shards:
        if key in shard.tracks:
            return shard.tracks[key], shard.written_at
    also = f"; not readable: {', '.join(unreadable)}" if unreadable else ""
    raise PrewarmError(
        f"nothing is known of {key.namespace}/{key.name}: a history is written within the hour (setting history_seconds){also}"
    )
