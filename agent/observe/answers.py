"""Has a model server answered yet? Read from its own Prometheus metrics; what it sends is untrusted and bounded."""

from __future__ import annotations

import asyncio
import re

import aiohttp
from yarl import URL

MAX_BODY_BYTES = 1 << 20
ASK_SECONDS = 1.0
_COUNTERS = (
    "vllm:request_success",
    "nv_inference_request_success",  # Triton
    "tgi_request_success",
    "sglang:num_requests",  # counted when a request is finished
)
_LINE = re.compile(rf"(?:{'|'.join(_COUNTERS)})(?:_total)?(\{{.*\}})? +([0-9.eE+]+)(?: +-?[0-9]+)?")
_UNSUCCESSFUL = ('finished_reason="abort"', 'finished_reason="error"')


def counts_an_answer(text: str) -> bool:
    """Say whether metrics in the Prometheus text format show at least one successful answer."""
    return any(_positive(line) for line in text.splitlines() if ":" in line or "_request_success" in line)


def _positive(line: str) -> bool:
    found = _LINE.fullmatch(line.strip())
    if not found or any(word in (found[1] or "") for word in _UNSUCCESSFUL):
        return False
    try:
        return float(found[2]) > 0
    except ValueError:
        return False


class AnswerReader:
    """Asks pods over HTTP: no redirects, no proxies, MAX_BODY_BYTES and ASK_SECONDS at most. Close it after use."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def has_answered(self, ip: str, targets: tuple[tuple[int, str], ...]) -> bool:
        """Say whether any of the (port, path) targets of a pod shows an answer; one that cannot be read shows none."""
        for port, path in targets:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    if counts_an_answer(await self._read(URL.build(scheme="http", host=ip, port=port, path=path))):
                        return True
            except (aiohttp.ClientError, OSError, ValueError):
                continue  # not listening yet, or no HTTP: the ordinary case while a server starts
        return False

    async def close(self) -> None:
        """Close kept connections; the next question opens new ones."""
        session, self._session = self._session, None
        if session:
            await session.close()

    async def _read(self, url: URL) -> str:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        body = bytearray()
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return ""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    break
        return body[:MAX_BODY_BYTES].decode("utf-8", "replace")
