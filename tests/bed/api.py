"""A small client of the API server for tests that time things: no start-up, no cache, no retry but of what is not ready to be read.

A connection for each request (a TLS handshake of a few ms), so that nothing lives on between tests.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

from tests.bed.process import BedError

Object = dict[str, Any]  # any Kubernetes object, as decoded JSON

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_INITIALIZING_SECONDS = 30.0  # the watch cache of a kind after a restart or a new CRD


class ApiError(BedError):
    """The API server refused; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of a watch: ADDED, MODIFIED or DELETED, the object, and when it came (`time.monotonic`)."""

    kind: str
    object: Object
    at: float


class Api:
    """The API server as administrator, or as whoever `token` speaks for. Paths are as in the API: `/api/v1/nodes/node-1`, with
    query if wanted.
    """

    def __init__(self, address: str, pki: Path, token: str = "") -> None:
        self._address, self._pki = address, pki
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        else:
            self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def as_account(self, account: str, namespace: str, pod: str = "") -> Api:
        """The same as a service account, by a token as the kubelet gives it to `pod` (which need not run); else one bound to none."""
        bound: Object = {}
        if pod:
            uid = self.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
            bound = {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []} | bound}
        return Api(self._address, self._pki, self.post(path, asked)["status"]["token"])

    def get(self, path: str) -> Object:
        """The object or list there; asked again, as every client does, while the server says that it is not ready to read it."""
        deadline = time.monotonic() + _INITIALIZING_SECONDS
        while True:
            try:
                return self._ask("GET", path)
            except ApiError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def post(self, path: str, body: Object) -> Object:
        """Create."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: Object) -> Object:
        """Replace."""
        return self._ask("PUT", path, body)

    def patch(self, path: str, body: object, kind: str = MERGE_PATCH) -> Object:
        """Change; `kind` is one of the *_PATCH content types."""
        return self._ask("PATCH", path, body, kind)

    def delete(self, path: str) -> Object:
        """Ask for deletion (it may be under way when this returns)."""
        return self._ask("DELETE", path)

    def watch(self, path: str, seconds: int = 30) -> Generator[Event, None, None]:
        """What is there, then every change, until `seconds` have passed; an empty wait just ends.

        Raises:
            ApiError: refused, or the watch was broken off by the server.
        """
        query = f"{'&' if '?' in path else '?'}watch=true&timeoutSeconds={seconds}"
        with self._answer("GET", path + query, seconds=seconds + 5) as answer:
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 0), f"watch {path}: {event['object'].get('message')}")
                yield Event(kind=event["type"], object=event["object"], at=time.monotonic())

    def until(self, path: str, condition: Callable[[Event], bool], seconds: int = 30) -> Event:
        """The first event of a watch for which `condition` holds.

        Raises:
            BedError: none came within `seconds`; the text has the last object seen.
        """
        last: Object = {}
        events = self.watch(path, seconds)
        try:
            for event in events:
                if condition(event):
                    return event
                last = event.object
        finally:
            events.close()  # its connection ends here, not some time later
        shown = json.dumps({"metadata": last.get("metadata", {}).get("name"), "status": last.get("status")})[:2000]
        raise BedError(f"not within {seconds} s on {path}; last seen: {shown}")

    def answers(self) -> bool:
        """Whether /readyz says ok."""
        try:
            with self._answer("GET", "/readyz", seconds=5) as answer:
                return answer.status == 200
        except (OSError, HTTPException, ApiError):
            return False

    def _ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Object:
        with self._answer(method, path, body, kind) as answer:
            found: Object = json.loads(answer.read())
            return found

    @contextmanager
    def _answer(
        self, method: str, path: str, body: object = None, kind: str = "application/json", seconds: float = 30
    ) -> Iterator[HTTPResponse]:
        connection = HTTPSConnection(self._address, 443, context=self._tls, timeout=seconds)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, content, self._headers | {"Content-Type": kind})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise ApiError(answer.status, f"{method} {path}: {answer.status}: {answer.read(2000).decode()}")
            with answer:
                yield answer
        finally:
            connection.close()


def condition(found: Object, kind: str) -> str:
    """The status of an object's condition of this type: True, False or Unknown; empty where it has none."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")
