"""`prewarm wait` when the models are not here yet.

Asking the agent puts the endpoint first in line. With no agent, a version already on disk is linked: its view is
`<views>/<namespace>/<endpoint>/<digest>/`, and the file `<digest>.json` beside it says `{"name", "uri", "digest", "committed"}`
(`committed`: RFC 3339, the newest wins). Failing that, or past `--timeout`, it does as `--otherwise` says.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.cli.wait import EXIT_FAILED, EXIT_OK, EXIT_TERMINATED, Plan, check, is_fetched, link
from agent.cli.wait import say as say_line
from agent.core.errors import PrewarmError, cut
from agent.core.refs import ModelSource, ModelUri
from agent.core.units import format_duration, format_size
from agent.node.local_client import Away, LocalClient, Progress
from agent.node.waiting import WaitOrder

_CONNECT_SECONDS = 2.0  # no socket for so long: no agent
_HEAR_SECONDS = 5.0  # a socket, but not a word for so long: no agent that works
_RECONNECT_SECONDS = 0.5
_LOST = "the agent went away; connecting again"

Fetch = Callable[[ModelUri, Path], Awaitable[None]]


class NoAgent(PrewarmError):
    """Nobody answers on the socket."""


def run(plan: Plan) -> int:
    """Wait as an init container does; returns the exit code."""
    return asyncio.run(_until_terminated(wait(plan, fetch=_fetch_from_s3, say=say_line)))


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
    models = tuple(m for m in plan.models if not is_fetched(plan.into / m.name))
    if not models:
        say("every model is here already" if plan.models else "this pod names no models")
        return EXIT_OK
    plan = replace(plan, models=models)
    try:
        paths = await _ask(plan, say)
        check(paths, plan)
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
        say_line(
            f"{cut(uri, 200)} is {fetched.proof}: it states no checksum of some files, their sizes and ETags agree"
        )
