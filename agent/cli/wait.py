"""`prewarm wait`, an init container: wait until this pod's models are committed on this node, then link them.

It stands in the way of every start, so it first asks with as little as that takes (`ask.sock`), and imports what waiting needs only
if the models are not here yet (see waiting_pod.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from agent.cli import nobody_reads
from agent.core.errors import Invalid, Permanent, cut
from agent.core.refs import EndpointKey, ModelSource, parse_model_source
from agent.core.units import format_duration, parse_duration

EXIT_OK, EXIT_FAILED, EXIT_TERMINATED = 0, 1, 143
_MAX_TIMEOUT = timedelta(days=1)  # what an agent takes
_ASK_SECONDS = 2.0
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one call is to do. Paths as this container sees them."""

    endpoint: EndpointKey
    models: tuple[ModelSource, ...]
    pod_name: str
    pod_uid: str
    into: Path
    views: Path
    socket: Path
    timeout_seconds: float
    otherwise: str


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    env = os.environ
    parser: argparse.ArgumentParser = subparsers.add_parser("wait", help="wait until this pod's models are here")
    parser.add_argument("--endpoint", metavar="NAMESPACE/NAME", default=env.get("PREWARM_ENDPOINT", ""))
    parser.add_argument("--models", default=env.get("PREWARM_MODELS", ""), help="as in the annotation (PREWARM_MODELS)")
    parser.add_argument("--into", type=Path, default=Path("/models"), help="where the links go (default: %(default)s)")
    parser.add_argument("--timeout", default="10m", help="give up waiting after (default: %(default)s)")
    parser.add_argument(
        "--otherwise",
        choices=("fetch", "start", "fail"),
        default="fetch",
        help="past the timeout, or if nothing here warms this pod: download by itself, start without, or fail",
    )
    parser.add_argument("--socket", type=Path, default=Path("/run/prewarm/agent.sock"))
    parser.add_argument("--views", type=Path, default=Path("/var/lib/prewarm/views"))
    parser.add_argument("--pod-name", default=env.get("POD_NAME") or env.get("HOSTNAME", ""), help="(POD_NAME)")
    parser.add_argument("--pod-uid", default=env.get("POD_UID", ""), help="(POD_UID)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        Invalid: an option is wrong.
    """
    plan = _plan(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # as PID 1 it would not be heard otherwise
    known = any(is_fetched(plan.into / m.name) for m in plan.models)
    if plan.models and not known and (paths := at_once(plan)):
        with suppress(OSError):  # told below
            for name, path in paths.items():
                link(path, plan.into / name)
                say(f"{name} -> {path}")
            return EXIT_OK
    from agent.cli import waiting_pod

    return waiting_pod.run(plan)


def at_once(plan: Plan) -> Mapping[str, Path]:
    """Ask whether every model is here; empty unless so, also if nobody answers or the answer is not to be trusted."""
    question = {
        "namespace": plan.endpoint.namespace,
        "endpoint": plan.endpoint.name,
        "pod_name": plan.pod_name,
        "pod_uid": plan.pod_uid,
        "models": [[m.name, str(m.uri)] for m in plan.models],
    }
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(_ASK_SECONDS)
            asked.connect(str(plan.socket.with_name("ask.sock")))
            asked.sendall(json.dumps(question).encode() + b"\n")
            with asked.makefile("rb") as answer:
                paths = {str(n): Path(p) for n, p in json.loads(answer.readline(_ANSWER_BYTES))["paths"].items()}
        check(paths, plan)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, Permanent):
        return {}
    return {m.name: paths[m.name] for m in plan.models}


def link(target: Path, at: Path) -> None:
    """Make `at` a symbolic link to `target`, replacing a link in one step."""
    at.parent.mkdir(parents=True, exist_ok=True)
    temporary = at.with_name(f".{at.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(at)


def check(paths: Mapping[str, Path], plan: Plan) -> None:
    """Link only what lies in this endpoint's views and is mounted here.

    Raises:
        Permanent: naming the path.
    """
    home = plan.views / plan.endpoint.namespace / plan.endpoint.name
    for model in plan.models:
        path = paths.get(model.name)
        if path is None or path.parent != home:
            raise Permanent(f"model {model.name} is at {cut(path)}, which is not in {home}")
        if not path.is_dir():
            raise Permanent(f"{path} is not mounted in this pod")


def is_fetched(at: Path) -> bool:
    """True if an earlier run of this init container downloaded the model (a link is asked for again)."""
    return at.is_dir() and not at.is_symlink()


def _plan(options: argparse.Namespace) -> Plan:
    namespace, slash, name = options.endpoint.partition("/")
    if not (namespace and slash and name) or "/" in name or ".." in (namespace, name):
        raise Invalid(f"--endpoint {cut(options.endpoint, 80)!r}: write it NAMESPACE/NAME")
    models = tuple(parse_model_source(part) for part in re.split(r"[,\n]", options.models) if part.strip())
    if len({m.name for m in models}) != len(models):
        raise Invalid("--models: two models have one name; write name=s3://…")
    timeout = parse_duration(options.timeout)
    if timeout > _MAX_TIMEOUT:
        raise Invalid(f"--timeout {cut(options.timeout, 60)!r} is longer than {format_duration(_MAX_TIMEOUT)}")
    return Plan(
        endpoint=EndpointKey(namespace=namespace, name=name),
        models=models,
        pod_name=options.pod_name,
        pod_uid=options.pod_uid,
        into=options.into,
        views=options.views,
        socket=options.socket,
        timeout_seconds=timeout.total_seconds(),
        otherwise=options.otherwise,
    )


def say(line: str) -> None:
    """Print a line at once."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # nobody reads: the pod waits for its models all the same
        nobody_reads()
