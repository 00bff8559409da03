"""`prewarm plan -f FILE`: what would happen when, and why, without doing it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time
from typing import Any

from agent.cli.declared import defaults, documents
from agent.config import Settings, load_settings
from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Workload
from agent.core.assignment_json import format_time, parse_assignment, parse_time
from agent.core.errors import Invalid, cut
from agent.core.inventory import Inventory
from agent.core.names import LABEL_CALENDAR
from agent.core.units import format_duration, format_size, parse_size
from agent.demand.annotations import read_endpoint, refuse_duplicates
from agent.demand.calendar import Almanac, read_calendar
from agent.demand.endpoint import Endpoint, EndpointReading, Problem, ProblemKind
from agent.demand.windows import softened, windows
from agent.kube.parse import parse_configmap
from agent.kube.walk import mapping
from agent.kube.workloads import is_workload, parse_workload
from agent.plan.decision import EndpointPlan, NodePlan
from agent.plan.memory import memory_start
from agent.plan.planning import Limits, plan

_LAST_YEAR = 9000  # the clock of Python ends with the year 9999, and windows lie ahead


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("plan", help="show what would happen when, and why", description=__doc__)
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        help="annotated workloads, calendars, a NodeWarmup, or a plan file; - for standard input",
    )
    parser.add_argument("--calendar", metavar="FILE", action="append", default=[], help="an iCal file (.ics)")
    parser.add_argument("--at", metavar="TIME", help="as if it were this time (RFC 3339; default now)")
    parser.add_argument(
        "--rate", metavar="SIZE", default="100MB", help="bytes per second a node is taken to fetch (default 100MB)"
    )
    parser.add_argument("--config", help="settings file, for sources, timezone and warm_ahead")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan of a node that has nothing yet; 1 if an annotation is invalid."""
    settings = load_settings(argparse.Namespace(config=options.config))
    now = parse_time(options.at, "--at") if options.at else datetime.now(UTC)
    if not 1970 <= now.year <= _LAST_YEAR:
        raise Invalid(f"--at {cut(options.at, 60)}: write a time from 1970 to {_LAST_YEAR}")
    found = list(documents(options.file))
    almanac, mistakes = _calendars(found, options.calendar, now)
    wants, problems = _read(options.file, found, settings, almanac, now)
    problems += mistakes
    limits = Limits(warm_ahead=settings.warm_ahead, rate_bytes_per_second=_rate(options.rate))
    decided = plan(Assignment(endpoints=tuple(wants)), Inventory(proved=True), now, limits)
    if options.json:
        print(json.dumps(_as_json(decided, problems), indent=1))
    else:
        print("\n".join(_as_text(decided, problems, now)))
    return 1 if any(p.kind is ProblemKind.INVALID for _, p in problems) else 0


def _calendars(
    documents: Iterable[Mapping[str, Any]], files: Iterable[str], now: datetime
) -> tuple[Almanac, list[tuple[str, Problem]]]:
    """Return the calendars among the documents and in iCal files, and what is wrong with them."""
    sources = {f"configmap/{c.name}": c.data for d in documents if _is_calendar(d) for c in (parse_configmap(d),)}
    for file in files:
        try:
            sources[file] = {"file.ics": Path(file).read_text()}
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"cannot read {file}: {cut(error)}") from error
    found = {name: read_calendar(name, data, now.astimezone(UTC).date(), thread_time) for name, data in sources.items()}
    mistakes = [
        (name, Problem(kind=ProblemKind.INVALID, annotation="", message=text))
        for name, reading in found.items()
        for text in reading.problems
    ]
    return Almanac(calendars=tuple(r.calendar for r in found.values())), mistakes


def _is_calendar(document: Mapping[str, Any]) -> bool:
    return document.get("kind") == "ConfigMap" and LABEL_CALENDAR in mapping(mapping(document, "metadata"), "labels")


def _read(
    path: str, documents: Iterable[Mapping[str, Any]], settings: Settings, almanac: Almanac, now: datetime
) -> tuple[list[EndpointWant], list[tuple[str, Problem]]]:
    """Return what the file asks for, and the problems by workload."""
    wants: list[EndpointWant] = []
    readings: list[EndpointReading] = []
    for document in documents:
        kind = document.get("kind", "")
        if is_workload(document):
            workload = parse_workload(document)
            workload = replace(workload, namespace=workload.namespace or "default")  # as kubectl takes it
            readings.append(read_endpoint(workload, defaults(workload, settings)))
        elif kind == "NodeWarmup" or "endpoints" in document:
            try:
                wants += parse_assignment(document.get("spec", document)).endpoints
            except Invalid as error:
                raise Invalid(f"{path}: {error}") from error
        elif not _is_calendar(document):
            print(f"prewarm plan: skipped {cut(kind or 'a document without kind', 60)}", file=sys.stderr)
    judged = refuse_duplicates(readings)
    wants += [_want(r.endpoint, almanac, now) for r in judged if r.endpoint]
    return wants, [(f"{r.workload.kind.lower()}/{r.workload.name}", p) for r in judged for p in r.problems]


def _rate(text: str) -> float:
    rate = float(parse_size(text))
    if not rate:
        raise Invalid(f"--rate {cut(text, 60)!r}: a node that fetches nothing is ready never")
    return rate


def _want(endpoint: Endpoint, almanac: Almanac, now: datetime) -> EndpointWant:
    return EndpointWant(
        key=endpoint.key,
        workload=Workload(kind=endpoint.workload.kind, name=endpoint.workload.name),
        priority=endpoint.priority,
        gpus=0,  # what a node's GPUs say is not part of this question
        images=tuple(ImageWant(ref=ref) for ref in endpoint.images),
        models=tuple(ModelWant(name=m.name, uri=m.uri) for m in endpoint.models),
        windows=windows(endpoint, now, almanac=almanac),
        memory=endpoint.memory,
    )


def _as_text(decided: NodePlan, problems: Sequence[tuple[str, Problem]], now: datetime) -> Iterator[str]:
    for where, problem in problems:
        yield f"{problem.kind}: {where}: {problem.message}"
    if not decided.endpoints:
        yield "nothing to warm: no endpoint in this file"
    for told in decided.endpoints:
        yield f"{told.want.key}"
        yield f"  now      {told.stage}: {told.reason}"
        yield from _times(told, now)
        yield from _memory(told)
        yield from (f"  image    {image.ref}" for image in told.want.images)
        yield from (f"  model    {model.name} = {model.uri}{_size(model)}" for model in told.want.models)


def _size(model: ModelWant) -> str:
    return f" ({format_size(model.size_bytes)})" if model.size_bytes else ""


def _memory(told: EndpointPlan) -> Iterator[str]:
    if told.want.memory and told.want.models:
        sizes = sum(m.size_bytes for m in told.want.models)
        start = min((memory_start(w, sizes) for w in told.want.windows), default=None)
        when = f" from {format_time(start)} until the window ends" if start else ", in windows only: there is none"
        yield f"  memory   the weights are also kept in page cache{when}, as far as the node's budget goes"


def _times(told: EndpointPlan, now: datetime) -> Iterator[str]:
    if told.start_at:
        yield f"  starts   {format_time(max(told.start_at, now))}"
    coming = [w for w in told.want.windows if w.until > now]
    for n, window in enumerate(coming):
        if n == 5:
            yield f"  …        {len(coming) - n} more windows within 48 h"
            break
        yield f"  ready by {format_time(window.ready_by)}, warm until {format_time(window.until)} ({window.source}{', on a holiday' if softened(window) else ''}, in {format_duration(window.ready_by - now)})"


def _as_json(decided: NodePlan, problems: Sequence[tuple[str, Problem]]) -> dict[str, object]:
    return {
        "problems": [
            {"workload": w, "kind": str(p.kind), "annotation": p.annotation, "message": p.message} for w, p in problems
        ],
        "endpoints": [
            {
                "endpoint": str(told.want.key),
                "stage": str(told.stage),
                "reason": told.reason,
                "startAt": format_time(told.start_at) if told.start_at else None,
                "readyBy": format_time(told.due) if told.due else None,
                "windows": [
                    {"readyBy": format_time(w.ready_by), "until": format_time(w.until)} for w in told.want.windows
                ],
                "memory": told.want.memory,
                "images": [str(i.ref) for i in told.want.images],
                "models": [{"name": m.name, "uri": str(m.uri)} for m in told.want.models],
            }
            for told in decided.endpoints
        ],
    }
