"""A Kubernetes API server in memory, over real HTTP: enough of it for prewarm's client, and failures on command.

It passes `tests/integration/kube/contract.py`, as the real one does (`tests/cluster/test_kube_contract.py`). Any path of the
form /api/v1/… or /apis/GROUP/VERSION/… is a collection; nothing is validated. Lists, pages, watches with bookmarks, 410 after
`forget_history`, optimistic locks, generation, the status subresource and the three kinds of patch work as in the real one.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from agent.core.latest import Signal
from agent.kube.api import KubeApi
from agent.kube.credentials import FixedServer
from agent.kube.errors import Away, refusal
from tests.fakes.managed import Disputed, applied, updated

Object = dict[str, Any]
Query = Mapping[str, str]


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    def body(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": self.reason,
            "message": str(self),
            "code": self.status,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed path: collection (`/api/v1/pods`), namespace, name, subresource."""

    collection: str
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.collection, self.namespace, self.name)


@dataclass(slots=True)
class Request:
    """What was asked, for assertions on traffic."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    authorization: str = ""


class FakeApiServer:
    """Holds objects; `url` is where it serves while `serving()`."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Request] = []
        self.failures: list[int] = []  # statuses that the next requests get
        self.asked = Signal()  # fired by every request
        self.silent = False  # accept requests and never answer
        self.forbidden = ""  # refuse requests whose path has this
        self.not_installed: set[str] = set()  # collections of kinds that this server does not know
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: list[
            tuple[int, str, Object | None, Object]
        ] = []  # version, collection, before, after or dropped
        self._version = 100
        self._forgotten = 0
        self._changed = asyncio.Condition()
        self._cut = 0
        self._runner: web.AppRunner | None = None
        self._port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeApiServer]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Serve, on the same port as before."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Refuse connections; objects stay."""
        await self.cut_watches()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def cut_watches(self) -> None:
        """End every open watch as a server restart does."""
        async with self._changed:
            self._cut += 1
            self._changed.notify_all()

    async def forget_history(self) -> None:
        """Compact: watches from any earlier version get 410."""
        self._forgotten = self._version
        self._history.clear()
        await self.cut_watches()

    async def put(self, path: str, item: Object) -> Object:
        """Store an object as an administrator, replacing what is there; it may have a status."""
        target, item = _target(path), copy.deepcopy(item)
        updated(self._objects.get(target.key), item, "admin")
        return await self._store(target, item)

    async def remove(self, path: str) -> None:
        await self._drop(_target(path))

    def get(self, path: str) -> Object | None:
        found = self._objects.get(_target(path).key)
        return copy.deepcopy(found) if found else None

    def all(self, collection: str) -> list[Object]:
        return [copy.deepcopy(o) for k, o in sorted(self._objects.items()) if k[0] == collection]

    def count(self, method: str, ending: str = "") -> int:
        return sum(r.method == method and r.path.endswith(ending) for r in self.requests)

    async def act(
        self, method: str, path: str, query: Query, body: Any, content_type: str, authorization: str = ""
    ) -> Object:
        """Answer one request.

        Raises:
            Refused: as the API server would.
        """
        await self._admit(method, path, query, authorization)
        target = _target(path)
        match method:
            case "GET" if target.name:
                return self._found(target)
            case "GET":
                return self._list(query, target)
            case "POST":
                return await self._create(target, body)
            case "PUT":
                return await self._replace(target, body)
            case "PATCH":
                patched = _patched(self._found(target), body, content_type, query.get("fieldManager", ""))
                return await self._replace(target, patched, applied="apply" in content_type)
            case "DELETE":
                if body and (body.get("preconditions") or {}).get("uid") not in (None, _uid(self._found(target))):
                    raise Refused(409, "Conflict", "the UID in the precondition does not match")
                return await self._drop(target)
        raise Refused(405, "MethodNotAllowed", method)

    async def watch(self, path: str, query: Query) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a watch."""
        await self._admit("GET", path, query)
        target, seen, born = _target(path), int(query["resourceVersion"]), self._cut
        if seen < self._forgotten:
            raise Refused(410, "Expired", f"too old resource version: {seen}")
        yield b""  # the answer has begun
        deadline = asyncio.get_running_loop().time() + float(query.get("timeoutSeconds", 600))
        while self._cut == born:
            for version, collection, before, item in [h for h in self._history if h[0] > seen]:
                if collection == target.collection and (event := self._event(query, target, before, item)):
                    yield _line(event, item)
                seen = version
            try:
                async with asyncio.timeout_at(deadline), self._changed:
                    await self._changed.wait_for(lambda: self._version > seen or self._cut != born)  # noqa: B023
            except TimeoutError:
                yield _line("BOOKMARK", {"kind": "X", "metadata": {"resourceVersion": str(self._version)}})
                return

    async def _admit(self, method: str, path: str, query: Query, authorization: str = "") -> None:
        self.requests.append(Request(method, path, dict(query), authorization))
        self.asked.fire()
        if self.silent:
            await asyncio.Event().wait()
        if self.forbidden and self.forbidden in path:
            raise Refused(403, "Forbidden", f"{path} is forbidden")
        if _target(path).collection in self.not_installed:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if self.failures:
            raise Refused(self.failures.pop(0), "Broken", "failing as told")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.query.get("watch"):
                return await self._stream(request)
            text = await request.text()
            body: Any = json.loads(text) if text else None
            return web.json_response(
                await self.act(
                    request.method,
                    request.path,
                    request.query,
                    body,
                    request.content_type,
                    request.headers.get("Authorization", ""),
                )
            )
        except Refused as refused:
            return web.json_response(refused.body(), status=refused.status)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        async with aclosing(self.watch(request.path, request.query)) as lines:
            await anext(lines)
            await answer.prepare(request)
            async for line in lines:
                await answer.write(line)
        return answer

    def _found(self, target: Target) -> Object:
        if target.key not in self._objects:
            raise Refused(404, "NotFound", f"{target.collection} {target.name!r} not found")
        return self._objects[target.key]

    def _selected(self, item: Object, query: Query, target: Target) -> bool:
        meta = item["metadata"]
        if target.namespace and meta.get("namespace") != target.namespace:
            return False
        labels = [p.partition("=") for p in query.get("labelSelector", "").split(",") if p]
        fields = [p.partition("=") for p in query.get("fieldSelector", "").split(",") if p]
        known = {"metadata.name": meta["name"], "spec.nodeName": (item.get("spec") or {}).get("nodeName", "")}
        have = meta.get("labels") or {}
        return all(have.get(k) == v if equals else k in have for k, equals, v in labels) and all(
            known[k] == v for k, _, v in fields
        )

    def _list(self, query: Query, target: Target) -> Object:
        every = [o for k, o in sorted(self._objects.items()) if k[0] == target.collection]
        found = [o for o in every if self._selected(o, query, target)]
        start, size = int(query.get("continue") or 0), int(query.get("limit") or 1_000_000)
        meta: Object = {"resourceVersion": str(self._version)}
        if start + size < len(found):
            meta["continue"] = str(start + size)
        bare = [{k: v for k, v in o.items() if k not in ("kind", "apiVersion")} for o in found[start : start + size]]
        return {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": bare}

    async def _create(self, target: Target, body: Object) -> Object:
        name = body["metadata"]["name"]
        full = Target(target.collection, target.namespace or body["metadata"].get("namespace", ""), name, "")
        if full.key in self._objects:
            raise Refused(409, "AlreadyExists", f"{name!r} already exists")
        body.pop("status", None)
        updated(None, body, "prewarm")
        return await self._store(full, body)

    async def _replace(self, target: Target, body: Object, *, applied: bool = False) -> Object:
        before = self._found(target)
        wanted = body["metadata"].get("resourceVersion")
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified")
        keep = "spec" if target.subresource == "status" else "status"
        after = {k: v for k, v in body.items() if k != keep} | ({keep: before[keep]} if keep in before else {})
        if not applied:
            after["metadata"]["managedFields"] = before["metadata"].get("managedFields") or []
            updated(before, after, "prewarm")
        comparable = {**after, "metadata": {**after["metadata"], "resourceVersion": ""}}
        if comparable == {**before, "metadata": {**before["metadata"], "resourceVersion": ""}}:
            return before
        return await self._store(target, after)

    async def _store(self, target: Target, item: Object) -> Object:
        self._version += 1
        before = self._objects.get(target.key)
        meta = item.setdefault("metadata", {})
        meta["name"], meta["resourceVersion"] = target.name, str(self._version)
        meta.setdefault("uid", _uid(before) if before else f"uid-{self._version}")
        if target.namespace:
            meta["namespace"] = target.namespace
        generation = before["metadata"]["generation"] if before else 0
        meta["generation"] = generation + (1 if not before or before.get("spec") != item.get("spec") else 0)
        self._objects[target.key] = item
        await self._tell(target, before, item)
        return item

    async def _drop(self, target: Target) -> Object:
        item = copy.deepcopy(self._found(target))
        del self._objects[target.key]
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        await self._tell(target, item, item)
        return item

    async def _tell(self, target: Target, before: Object | None, item: Object) -> None:
        async with self._changed:
            self._history.append((self._version, target.collection, copy.deepcopy(before), copy.deepcopy(item)))
            self._changed.notify_all()

    def _event(self, query: Query, target: Target, before: Object | None, item: Object) -> str:
        matched = before is not None and self._selected(before, query, target)
        matches = before != item and self._selected(item, query, target)  # dropped objects are told as (item, item)
        match matched, matches:
            case True, True:
                return "MODIFIED"
            case True, False:
                return "DELETED"
            case False, True:
                return "ADDED"
        return ""


class DirectApi(KubeApi):
    """The client on a fake without sockets in between, for tests in virtual time. A server that is `down` refuses."""

    def __init__(self, server: FakeApiServer) -> None:
        super().__init__(FixedServer("http://fake"))
        self._server = server
        self.down = False

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float = 15.0,
    ) -> Object:
        if self.down:
            raise Away(f"{method} {path}: connection refused")
        try:
            async with asyncio.timeout(seconds):
                sent = json.loads(json.dumps(body))
                return copy.deepcopy(await self._server.act(method, path, query or {}, sent, content_type))
        except TimeoutError as error:
            raise Away(f"{method} {path}: no answer in time") from error
        except Refused as refused:
            raise refusal(f"{method} {path}", refused.status, refused.reason, str(refused)) from refused

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        if self.down:
            raise Away(f"GET {path}: connection refused")
        async with aclosing(self._server.watch(path, query)) as lines:
            try:
                await anext(lines)
            except Refused as refused:
                raise refusal(f"GET {path}", refused.status, refused.reason, str(refused)) from refused
            yield lines


def _line(event: str, item: Object) -> bytes:
    return json.dumps({"type": event, "object": item}).encode() + b"\n"


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])


def _target(path: str) -> Target:
    parts = path.strip("/").split("/")
    root, rest = (parts[:2], parts[2:]) if parts[0] == "api" else (parts[:3], parts[3:])
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    name, subresource = [*rest[1:], "", ""][:2]
    return Target("/" + "/".join([*root, rest[0]]), namespace, name, subresource)


def _patched(item: Object, body: Any, content_type: str, manager: str) -> Object:
    item = copy.deepcopy(item)
    match content_type:
        case "application/apply-patch+yaml":
            try:
                return applied(item, body, manager)
            except Disputed as error:
                raise Refused(409, "Conflict", str(error)) from error
        case "application/merge-patch+json":
            return _merged(item, body, strategic=False)  # type: ignore[no-any-return]
        case "application/strategic-merge-patch+json":
            return _merged(item, body, strategic=True)  # type: ignore[no-any-return]
        case "application/json-patch+json":
            for step in body:
                _step(item, step)
            return item
    raise Refused(415, "UnsupportedMediaType", content_type)


def _merged(old: Any, new: Any, *, strategic: bool, key: str = "") -> Any:
    if isinstance(new, dict):
        base = dict(old) if isinstance(old, dict) else {}
        for name, value in new.items():
            if value is None:
                base.pop(name, None)
            else:
                base[name] = _merged(base.get(name), value, strategic=strategic, key=name)
        return base
    if strategic and key == "conditions" and isinstance(old, list):
        by_type = {c["type"]: c for c in old}
        for c in new:
            by_type[c["type"]] = by_type.get(c["type"], {}) | c
        return list(by_type.values())
    return new


def _step(item: Object, step: Object) -> None:
    *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].strip("/").split("/")]
    try:
        at: Any = item
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if isinstance(at, list):
            _list_step(at, last, step)
        elif step["op"] == "remove":
            del at[last]
        elif step["op"] == "test":
            _test(at.get(last), step["value"])
        else:
            at[last] = step["value"]
    except (KeyError, IndexError, ValueError) as error:
        raise Refused(422, "Invalid", "the server rejected our request due to an error in our request") from error


def _list_step(at: list[Any], last: str, step: Object) -> None:
    match step["op"]:
        case "add" if last == "-":
            at.append(step["value"])
        case "add":
            at.insert(int(last), step["value"])
        case "remove":
            del at[int(last)]
        case "replace":
            at[int(last)] = step["value"]
        case "test":
            _test(at[int(last)], step["value"])


def _test(found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(wanted)
