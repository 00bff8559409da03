"""Where a command's past traffic comes from: a Prometheus, else what the planner remembers. Reads only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import Settings, server_url
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.demand.history import DAY_SLOTS, KEEP_DAYS, Track, slot_of
from agent.demand.history_queries import query_of
from agent.demand.history_shards import SHARDS, Shard

if TYPE_CHECKING:
    from agent.fleet.prometheus import Prometheus

_TOLD = 5  # endpoints left out, by name


def add_flags(parser: Any, *, default_days: int) -> None:
    """Add the flags that go with `--from-prometheus`."""
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a bearer token for that Prometheus")
    parser.add_argument(
        "--days",
        type=int,
        default=default_days,
        metavar="N",
        help=f"of the past, at most {KEEP_DAYS} (default {default_days})",
    )
    parser.add_argument(
        "--planner-namespace",
        default="prewarm",
        help="where the planner remembers, without a Prometheus (default prewarm)",
    )


def add_source(group: Any) -> None:
    """Add `--from-prometheus` itself."""
    group.add_argument(
        "--from-prometheus",
        metavar="URL",
        help="read requests from this Prometheus (default: setting prometheus_url, else what the planner remembers)",
    )


def check(options: argparse.Namespace) -> None:
    """Refuse flags that cannot be meant, as usage."""
    if not 1 <= options.days <= KEEP_DAYS:
        options.fail(
            f"--days {options.days}: a number from 1 to {KEEP_DAYS}; forecasts gain nothing from older traffic"
        )
    try:
        options.from_prometheus = server_url(options.from_prometheus or "")
    except Invalid as error:
        options.fail(f"--from-prometheus: {error}")


def slots_of(days: int, now: datetime) -> tuple[int, int]:
    """Return the first slot of so many days, and the one after the last that has been scraped."""
    from agent.fleet.history_reader import SCRAPED

    end = slot_of(now - SCRAPED)
    return end - days * DAY_SLOTS, end


@asynccontextmanager
async def prometheus_of(options: argparse.Namespace, settings: Settings) -> AsyncIterator[Prometheus | None]:
    """Yield the Prometheus that flags or settings name; None without one. The settings' token goes to the settings' address only."""
    from agent.fleet.prometheus import Prometheus

    if not (url := options.from_prometheus or settings.prometheus_url):
        yield None
        return
    own = settings.prometheus_token_file if url == settings.prometheus_url else None
    prometheus = Prometheus(url, options.token_file or own)
    try:
        yield prometheus
    finally:
        await prometheus.close()


async def activity(
    options: argparse.Namespace, settings: Settings, endpoints: Collection[Endpoint]
) -> Mapping[EndpointKey, Track]:
    """Return what is known of each endpoint's last days; those of which nothing is are left out, and named on stderr.

    Raises:
        PrewarmError: nothing is known of any, or nobody answers.
    """
    from agent.fleet.past import past_activity

    first, end = slots_of(options.days, datetime.now(UTC))
    async with prometheus_of(options, settings) as prometheus:
        if prometheus:
            queries = {e.key: query_of(e, settings.history_queries) for e in endpoints}
            past = await past_activity(prometheus, queries, first, end)
            found, refused = past.found, past.refused
        else:
            found, refused = await remembered(options, endpoints), {}
    tracks = {key: track.within(first, end) for key, track in found.items()}
    known = {key: track for key, track in tracks.items() if track.known}
    tell_left_out(options, [e.key for e in endpoints if e.key not in known], refused)
    if not known:
        raise PrewarmError(nothing(options, settings, refused))
    return known


async def remembered(options: argparse.Namespace, endpoints: Iterable[Endpoint]) -> Mapping[EndpointKey, Track]:
    """Return the planner's memory of these endpoints; what of it cannot be read is named on stderr."""
    shards, unreadable = await kept_shards(options.planner_namespace, options.kubeconfig)
    for each in unreadable:
        print(f"prewarm {options.command}: cannot read ConfigMap {cut(each)}", file=sys.stderr)
    kept = {key: track for shard in shards for key, track in shard.tracks.items()}
    return {e.key: kept[e.key] for e in endpoints if e.key in kept}


async def kept_shards(namespace: str, kubeconfig: str) -> tuple[list[Shard], list[str]]:
    """Return what the planner of a namespace has written, and which ConfigMaps cannot be read.

    Raises:
        PrewarmError: the API server cannot be asked.
    """
    from agent.fleet.history_store import read_shard, shard_name
    from agent.kube.api import KubeApi
    from agent.kube.errors import NotFound
    from agent.kube.resources import BINARIES

    shards, unreadable = list[Shard](), list[str]()
    async with await KubeApi.connect(kubeconfig) as api:
        for number in range(SHARDS):
            try:
                shard = read_shard(await api.get(BINARIES, shard_name(number), namespace=namespace))
            except NotFound:
                continue
            except Invalid as error:
                unreadable.append(f"{shard_name(number)}: {error}")
                continue
            shards += [shard] if shard else []
    return shards, unreadable


def tell_left_out(
    options: argparse.Namespace, keys: Collection[EndpointKey], refused: Mapping[EndpointKey, str]
) -> None:
    """Name on stderr the endpoints of which nothing is known, and why."""
    for key in sorted(keys)[:_TOLD]:
        why = refused.get(key, f"nothing is known of its last {options.days} days")
        print(f"prewarm {options.command}: {key.namespace}/{key.name} is left out: {cut(why)}", file=sys.stderr)
    if len(keys) > _TOLD:
        print(f"prewarm {options.command}: {len(keys) - _TOLD} more are left out", file=sys.stderr)


def nothing(options: argparse.Namespace, settings: Settings, refused: Mapping[EndpointKey, str]) -> str:
    """Say that there is nothing to work with, and what to do."""
    if refused:
        return f"no endpoint can be read from Prometheus: {next(iter(refused.values()))}"
    if options.from_prometheus or settings.prometheus_url:
        return (
            f"Prometheus knows nothing of these endpoints in the last {options.days} days: see whether it scrapes them, and which "
            "series are read (docs/history.md); prewarm.dev/history names others"
        )
    return (
        f"the planner in namespace {options.planner_namespace} remembers nothing of these endpoints' last {options.days} days: ten "
        "minutes count when they are over, and it writes hourly (setting history_seconds); or name a Prometheus with "
        "--from-prometheus, or a recording with `prewarm replay --trace`"
    )
