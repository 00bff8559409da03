"""`prewarm status`: what is warm and why, on this node (through the agent's socket) or in the fleet (through the API server)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.core.assignment import Window, WindowSource
from agent.core.assignment_json import format_time
from agent.core.errors import PrewarmError, cut
from agent.core.units import format_duration, format_size

_SOCKETS = (Path("/run/prewarm/admin.sock"), Path("/run/prewarm/agent.sock"))
Row = Mapping[str, Any]


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("status", help="show what is warm, and why", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket", type=Path, help="ask the agent on this socket (default: /run/prewarm/admin.sock if it is there)"
    )
    where.add_argument(
        "--fleet", action="store_true", help="ask the API server about all nodes (default without a socket)"
    )
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file (default: as kubectl finds it)")
    parser.add_argument("-n", "--namespace", default="", help="only endpoints of this namespace")
    parser.add_argument(
        "--planner-namespace", default="prewarm", help="where the planner keeps how windows ended (default prewarm)"
    )
    parser.add_argument("--node", default="", help="only this node, with each image and model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status; 0 also if nothing is warm, 1 if nobody could be asked."""
    socket = options.socket or (None if options.fleet or options.node else found_socket())
    if socket:
        if not socket.exists():
            raise PrewarmError(
                f"no agent on this machine: {socket} is not there (see the agent's run_dir, or use --fleet)"
            )
        status = asyncio.run(_ask_agent(socket))
        if options.namespace:
            status["endpoints"] = [e for e in status["endpoints"] if e["endpoint"].startswith(f"{options.namespace}.")]
        print(json.dumps(status, indent=1) if options.json else "\n".join(node_text(status, datetime.now(UTC))))
        return 0
    found, ended = asyncio.run(_ask_api_server(options.kubeconfig, options.planner_namespace))
    nodes = [n for n in found if options.node in ("", n["node"])]
    rows = [r for r in fleet_rows(nodes, ended) if options.namespace in ("", r["namespace"])]
    if options.json:
        print(json.dumps({"endpoints": rows, "nodes": nodes}, indent=1))
    else:
        print("\n".join(fleet_text(rows, nodes if options.node else [], options.namespace, options.node)))
    return 0


def found_socket() -> Path | None:
    """Return the first socket this user may write to: admin.sock is root's."""
    return next((s for s in _SOCKETS if os.access(s, os.W_OK, effective_ids=True)), None)


async def _ask_agent(socket: Path) -> dict[str, Any]:
    from agent.node.local_client import LocalClient

    async with LocalClient(socket) as client:
        return node_status(await client.status())


def node_status(answer: Any) -> dict[str, Any]:
    """Turn the agent's answer into JSON values; times are RFC 3339, absent where there is none."""
    return {
        "node": answer.node,
        "proved": answer.proved,
        "generation": answer.generation,
        "endpoints": [
            _known(
                endpoint=f"{e.namespace}.{e.name}",
                stage=e.stage,
                ready=e.ready,
                reason=e.reason,
                startAt=_time(e.start_at),
                readyBy=_time(e.due),
                missingBytes=e.missing_bytes,
            )
            for e in answer.endpoints
        ],
        "items": [
            _known(
                ref=i.ref,
                level=i.level,
                bytes=i.done_bytes,
                total=i.total_bytes,
                bytesPerSecond=round(i.rate),
                eta=_time(i.eta),
                reason=i.reason,
                error=i.error,
                digest=i.digest,
                residentBytes=i.resident_bytes,
            )
            for i in answer.items
        ],
        "gpu": {"verdict": answer.gpu.verdict, "reason": answer.gpu.reason, "count": answer.gpu.count},
        "cache": {
            "used": answer.cache.used_bytes,
            "free": answer.cache.free_bytes,
            "capacity": answer.cache.capacity_bytes,
        },
        "memory": _memory(answer.memory) if answer.HasField("memory") else None,
        "labels": dict(answer.labels),
        "reasons": dict(answer.reasons),
    }


def _memory(memory: Any) -> dict[str, Any]:
    return {"held": memory.held_bytes, "budget": memory.budget_bytes, "basis": memory.basis}


def node_text(status: Row, now: datetime) -> Iterator[str]:
    """Write one node's status for a person."""
    cache, gpu = status["cache"], status["gpu"]
    yield f"node   {status['node'] or '(alone)'}{'' if status['proved'] else ': nothing is proved yet'}"
    yield f"gpu    {gpu['verdict']}: {gpu['reason']}"
    yield f"cache  {format_size(cache['used'])} of models, {format_size(cache['free'])} free of {format_size(cache['capacity'])}"
    if memory := status["memory"]:
        held, budget = format_size(memory["held"]), format_size(memory["budget"])
        yield f"memory {held} of weights in page cache, {budget} allowed: {memory['basis']}"
    if not status["endpoints"]:
        yield "no endpoint is assigned to this node"
    yield from table(("ENDPOINT", "STAGE", "READY BY", "WHY"), [_endpoint_cells(e, now) for e in status["endpoints"]])
    yield from table(("ITEM", "LEVEL", "BYTES", "WHY"), [_item_cells(i, now) for i in status["items"]])


def _endpoint_cells(endpoint: Row, now: datetime) -> tuple[str, ...]:
    due = endpoint.get("readyBy")
    when = f"{due} ({_distance(due, now)})" if due else "-"
    return endpoint["endpoint"], endpoint["stage"], when, endpoint.get("reason", "")


def _item_cells(item: Row, now: datetime) -> tuple[str, ...]:
    done, total = item.get("bytes", 0), item.get("total", 0)
    size = (
        f"{format_size(done)} of {format_size(total)}"
        if total and done != total
        else format_size(total)
        if total
        else "-"
    )
    rate = item.get("bytesPerSecond", 0)
    if rate and item["level"] == "partial":
        size += f", {format_size(rate)}/s" + (f", {_distance(item['eta'], now)}" if item.get("eta") else "")
    return item["ref"], item["level"], size, item.get("error") or item.get("reason", "")


async def _ask_api_server(kubeconfig: str, namespace: str) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    """Return the nodes, and how the last window of each endpoint ended as far as this user may know."""
    from agent.kube.api import KubeApi
    from agent.kube.resources import NODEWARMUPS

    async with await KubeApi.connect(kubeconfig) as api:
        listed = await api.list(NODEWARMUPS)
        ended = await _outcomes(api, namespace)
    return [
        {
            "node": n.name,
            "status": dict(n.status),
            "endpoints": [
                {"namespace": e.key.namespace, "name": e.key.name, **due_fields(e.next_window(datetime.now(UTC)))}
                for e in (n.assignment.endpoints if n.assignment else ())
            ],
        }
        for n in listed.items
    ], ended


def due_fields(window: Window | None) -> Row:
    """Return when the next window is due and, where it was foretold, how surely it is used."""
    if window is None:
        return {"readyBy": ""}
    foretold = {"chance": window.confidence} if window.source is WindowSource.PREDICTED else {}
    return {"readyBy": format_time(window.ready_by), **foretold}


async def _outcomes(api: Any, namespace: str) -> Mapping[str, str]:
    from agent.fleet.ledger_keeper import NAME, last_outcomes
    from agent.kube.resources import CONFIGMAPS

    try:
        found = await api.get(CONFIGMAPS, NAME, namespace=namespace)
        return last_outcomes(json.loads(found.data.get("ledger.json", "{}")), datetime.now(UTC))
    except (PrewarmError, ValueError, RecursionError):
        return {}  # none yet, or not for this user: the rest is what was asked for


def fleet_rows(nodes: Iterable[Row], ended: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return a row for each endpoint on each node, endpoints in order."""
    rows = []
    for node in nodes:
        told = {e.get("key"): e for e in node["status"].get("endpoints", []) if isinstance(e, dict)}
        for endpoint in node["endpoints"]:
            stage = told.get(f"{endpoint['namespace']}.{endpoint['name']}", {})
            rows.append(
                {
                    **endpoint,
                    "node": node["node"],
                    "stage": stage.get("stage", "unknown"),
                    "lastWindow": ended.get(f"{endpoint['namespace']}.{endpoint['name']}", ""),
                    "reason": stage.get("reason", "the agent of this node has not said anything yet"),
                }
            )
    return sorted(rows, key=lambda r: (r["namespace"], r["name"], r["node"]))


def fleet_text(rows: Sequence[Row], nodes: Sequence[Row], namespace: str = "", only: str = "") -> Iterator[str]:
    """Write the fleet for a person, or what was asked for of it; `nodes` are shown with each item."""
    if not rows:
        of, to = f" of namespace {namespace}" if namespace else "", f"node {only}" if only else "any node"
        yield f"no endpoint{of} is assigned to {to}: annotate a Deployment with prewarm.dev/models and prewarm.dev/schedule"
    cells = [
        (r["namespace"], r["name"], r["node"], r["stage"], _due(r), r["lastWindow"] or "-", r["reason"]) for r in rows
    ]
    yield from table(("NAMESPACE", "ENDPOINT", "NODE", "STAGE", "READY BY", "LAST WINDOW", "WHY"), cells)
    for node in nodes:
        items = [i for i in node["status"].get("items", []) if isinstance(i, dict)]
        yield from table(("ITEM", "LEVEL", "BYTES", "WHY"), [_item_cells(i, datetime.now(UTC)) for i in items])


def _due(row: Row) -> str:
    foretold = f" (foretold from its history, {row['chance']} %)" if "chance" in row else ""
    return f"{row['readyBy'] or '-'}{foretold}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out columns as kubectl does; the last is not padded. What other nodes say cannot command the terminal."""
    if not rows:
        return
    yield ""
    rows = [[cut(cell, 1000) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head) - 1)]
    for row in (head, *rows):
        yield "   ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def _known(**fields: object) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v not in ("", None)}


def _time(seconds: int) -> str | None:
    return format_time(datetime.fromtimestamp(seconds, UTC)) if seconds else None


def _distance(time: str, now: datetime) -> str:
    seconds = (datetime.fromisoformat(time) - now).total_seconds()
    return f"in {format_duration(round(seconds))}" if seconds >= 0 else f"{format_duration(round(-seconds))} ago"
