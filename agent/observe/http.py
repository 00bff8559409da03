"""The agent's HTTP: `/livez`, `/readyz` and `/metrics`. Nothing here can be written to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from agent.core.errors import Permanent

HEARTBEAT_SECONDS = 30.0  # a proof older than this proves nothing
WITHDRAWAL_SECONDS = 5.0  # a withdrawal that waits longer has failed
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GOODBYE_SECONDS = 1.0
_NONE: Mapping[str, str] = MappingProxyType({})


def what_is_red(
    ages_seconds: Mapping[str, float], withdrawal_waiting_seconds: float, missed: Mapping[str, str] = _NONE
) -> list[str]:
    """Return why this node may not be called ready, a sentence each; empty when all is well.

    `missed` tells what keeps a prover from completing a cycle.
    """
    red = []
    for prover, age in sorted(ages_seconds.items()):
        why = f": {missed[prover]}" if prover in missed else ""
        if age == float("inf"):
            red.append(f"{prover}: has not completed a cycle yet{why}")
        elif age >= HEARTBEAT_SECONDS:
            red.append(f"{prover}: last completed a cycle {age:.0f} s ago{why}")
    if withdrawal_waiting_seconds > WITHDRAWAL_SECONDS:
        red.append(f"publisher: a withdrawal has waited for {withdrawal_waiting_seconds:.0f} s")
    return red


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port`, `[v6]:port` or `:port` (all interfaces).

    Raises:
        Permanent: quoting the setting.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise Permanent(f"http_address: {address!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 (the kubelet and Prometheus come from outside)


class HttpServer:
    """Serves the registry and what `ready` says: an empty list is green.

    `serve` binds; `/livez` answers from then on, whatever the rest of the agent does.
    """

    name = "http"

    def __init__(self, address: str, registry: CollectorRegistry, ready: Callable[[], list[str]]) -> None:
        self._host, self._port = parse_address(address)
        self._registry = registry
        self._ready = ready
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is bound, for an address with port 0."""
        if self._runner is None:
            return self._port
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Bind and answer.

        Raises:
            Permanent: the address cannot be bound.
        """
        app = web.Application()
        app.add_routes(
            [web.get("/livez", self._livez), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=GOODBYE_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise Permanent(
                f"cannot serve HTTP on {self._host}:{self._port}: {error.strerror or error} (setting http_address)"
            ) from error
        self._runner = runner

    async def run(self) -> None:
        """Serve until cancelled; binds first unless `start` has."""
        if self._runner is None:
            await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop answering."""
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    async def _livez(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        red = self._ready()
        return web.Response(text="".join(f"{line}\n" for line in red) or "ok\n", status=503 if red else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": METRICS_TYPE})
