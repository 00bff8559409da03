"""`prewarm wait`, an init container: wait until this pod's models are committed on this node, then link them.

Asking the agent puts the endpoint first in line. With no agent, a version already on disk is linked: its view is
`<views>/<namespace>/<endpoint>/<digest>/`, and the file `<digest>.json` beside it says `{"name", "uri", "digest", "committed"}`
(`committed`: RFC 3339, the newest wins). Failing that, or past `--timeout`, it does as `--otherwise` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.core.errors import Invalid, Permanent, PrewarmError, cut
from agent.core.refs import EndpointKey, ModelSource, ModelUri, parse_model_source
from agent.core.units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from agent.node.local_client import Progress
    from agent.node.waiting import WaitOrder

EXIT_OK, EXIT_FAILED, EXIT_TERMINATED = 0, 1, 143
_MAX_TIMEOUT = timedelta(days=1)  # what an agent takes
_CONNECT_SECONDS = 2.0  # no socket for so long: no agent
_HEAR_SECONDS = 5.0  # a socket, but not a word for so long: no agent that works
_RECONNECT_SECONDS = 0.5
_LOST = "the agent went away; connecting again"

Fetch = Callable[[ModelUri, Path], Awaitable[None]]


class NoAgent(PrewarmError):
    """Nobody answers on the socket."""


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
    return asyncio.run(_until_terminated(wait(_plan(options), fetch=_fetch_from_s3, say=_print)))


async def wait(plan: Plan, *, fetch: Fetch, say: Callable[[str], None]) -> int:
    """Wait, link, or do otherwise; return the exit code.

    Cancelled at any moment it leaves links and whole models only, and partial downloads under a hidden name.
    """
    try:
        return await _wait(plan, fetch, say)
    except OSError as error:
        say(f"failed: cannot write to {plan.into}: {cut(error)} (it must be a volume of the pod, such as an emptyDir)")
        return EXIT_FAILED


async def _wait(plan: Plan, fetch: Fetch, say: Callable[[str], None]) -> int:
    models = tuple(m for m in plan.models if not _is_fetched(plan.into / m.name))
    if not models:
        say("every model is here already" if plan.models else "this pod names no models")
        return EXIT_OK
    plan = replace(plan, models=models)
    try:
        paths = await _ask(plan, say)
        _check(paths, plan)
    except NoAgent as error:
        say(f"{error}; looking for a version on disk")
        found = {m.name: _on_disk(plan, m) for m in models}
        paths = {name: path for name, path in found.items() if path}
        missing = [m for m in models if m.name not in paths]
        reason = f"no committed version of {missing[0].name} on this node" if missing else ""
    except TimeoutError:
        paths, missing, reason = {}, list(models), f"not here within {format_duration(plan.timeout_seconds)}"
    except PrewarmError as error:
        paths, missing, reason = {}, list(models), str(error)
    else:
        missing, reason = [], ""
    for name, path in paths.items():
        link(path, plan.into / name)
        say(f"{name} -> {path}")
    return await _otherwise(plan, missing, reason, fetch, say) if missing else EXIT_OK


def link(target: Path, at: Path) -> None:
    """Make `at` a symbolic link to `target`, replacing a link in one step."""
    at.parent.mkdir(parents=True, exist_ok=True)
    temporary = at.with_name(f".{at.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(at)


async def _ask(plan: Plan, say: Callable[[str], None]) -> Mapping[str, Path]:
    """Wait at the agent; return where each model is.

    Raises:
        NoAgent: nobody has ever answered, or nobody does any more when the plan's timeout is over.
        TimeoutError: not within the plan's timeout.
        Permanent: the agent refuses.
    """
    tell = _Teller(say)
    try:
        async with asyncio.timeout(plan.timeout_seconds):
            return await _listen(plan, tell)
    except TimeoutError as error:
        if tell.last == _LOST:
            raise NoAgent(f"the agent did not come back within {format_duration(plan.timeout_seconds)}") from error
        raise


async def _listen(plan: Plan, tell: _Teller) -> Mapping[str, Path]:
    from agent.node.local_client import Away

    loop = asyncio.get_running_loop()
    started, heard = loop.time(), False
    while True:
        left = started + plan.timeout_seconds - loop.time()
        try:
            async with aclosing(_progress(plan, max(left, 0.1), silence=None if heard else _HEAR_SECONDS)) as steps:
                async for step in steps:
                    heard = True
                    if step.ready:
                        return step.paths
                    tell(_line(step))
        except Away as error:
            if not heard and loop.time() - started >= _CONNECT_SECONDS:
                raise NoAgent(f"no agent at {plan.socket}") from error
            if heard:
                tell(_LOST)
        await asyncio.sleep(_RECONNECT_SECONDS if heard else _CONNECT_SECONDS / 10)


class _Teller:
    """Says a line unless it is the last one again."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.last = ""

    def __call__(self, line: str) -> None:
        if line != self.last:
            self._say(line)
            self.last = line


async def _progress(plan: Plan, timeout_seconds: float, *, silence: float | None) -> AsyncGenerator[Progress, None]:
    """Yield the agent's steps over a new connection; `silence`: how long it may take to the first.

    Raises:
        NoAgent: not a word within `silence`.
    """
    from agent.node.local_client import LocalClient

    async with LocalClient(plan.socket) as client, aclosing(client.wait(_order(plan, timeout_seconds))) as steps:
        try:
            async with asyncio.timeout(silence) as patience:
                first = await anext(steps, None)
        except TimeoutError as error:
            if patience.expired():
                raise NoAgent(f"the agent at {plan.socket} says nothing") from error
            raise
        if first is not None:
            yield first
        async for step in steps:
            yield step


def _order(plan: Plan, timeout_seconds: float) -> WaitOrder:
    from agent.node.waiting import WaitOrder

    return WaitOrder(
        endpoint=plan.endpoint,
        pod_name=plan.pod_name,
        pod_uid=plan.pod_uid,
        models=plan.models,
        timeout_seconds=timeout_seconds,
    )


def _line(step: Progress) -> str:
    share = (
        f" ({step.done_bytes / step.total_bytes:.0%} of {format_size(step.total_bytes)})" if step.total_bytes else ""
    )
    return f"{step.message}{share}"


def _check(paths: Mapping[str, Path], plan: Plan) -> None:
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


def _on_disk(plan: Plan, model: ModelSource) -> Path | None:
    """Return the view of the newest committed version of a model, None if there is none."""
    found: list[tuple[str, Path]] = []
    for marker in (plan.views / plan.endpoint.namespace / plan.endpoint.name).glob("*.json"):
        view = marker.with_suffix("")
        with suppress(OSError, ValueError):
            told = json.loads(marker.read_text())
            if isinstance(told, dict) and (told.get("name"), told.get("uri")) == (model.name, str(model.uri)):
                found += [(str(told.get("committed", "")), view)] if view.is_dir() else []
    return max(found)[1] if found else None


async def _otherwise(
    plan: Plan, missing: Sequence[ModelSource], reason: str, fetch: Fetch, say: Callable[[str], None]
) -> int:
    if plan.otherwise == "fail":
        say(f"failed: {reason}")
        return EXIT_FAILED
    if plan.otherwise == "start":
        say(f"warning: starting without {', '.join(m.name for m in missing)}: {reason}")
        return EXIT_OK
    for model in missing:
        say(f"fetching {model.name} from {model.uri} by itself: {reason}")
        part = plan.into / f".{model.name}.part"
        part.mkdir(parents=True, exist_ok=True)
        try:
            await fetch(model.uri, part)
        except PrewarmError as error:
            say(f"failed: cannot fetch {model.name}: {error}")
            return EXIT_FAILED
        at = plan.into / model.name
        at.unlink(missing_ok=True)  # a link to a version that has gone
        part.rename(at)
    return EXIT_OK


def _is_fetched(at: Path) -> bool:
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


async def _until_terminated(work: Any) -> int:
    """Run `work` until SIGTERM, which ends it with 143; SIGINT is asyncio.run's own."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return int(await task)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():  # Ctrl-C cancels this task, SIGTERM only the work
            raise
        return EXIT_TERMINATED


async def _fetch_from_s3(uri: ModelUri, directory: Path) -> None:
    from agent.models.fetch import fetch

    fetched = await fetch(uri, directory)
    if fetched.is_unproved:
        _print(f"{cut(uri, 200)} is {fetched.proof}: it states no checksum of some files, their sizes and ETags agree")


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # nobody reads: the pod waits for its models all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
