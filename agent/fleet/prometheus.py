"""Asks a Prometheus (or what speaks its HTTP API) how high a query was, slot by slot. What it answers is untrusted and bounded."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.demand.history import SLOT_SECONDS, WEEK_SLOTS, Track

MAX_SLOTS = WEEK_SLOTS  # of one question: 1,008 points a series, Prometheus answers at most 11,000
MAX_SERIES = 100
MAX_ANSWER_BYTES = 8 << 20
ASK_SECONDS = 30.0
_NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # the last: a name that cannot be looked up


class Prometheus:
    """One server, no redirects, no proxies. `token_file` holds a bearer token and is read for each question. Close it after use."""

    def __init__(self, url: str, token_file: Path | None = None) -> None:
        self._url = URL(url) / "api/v1/query_range"
        self._token_file = token_file
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close kept connections; the next question opens new ones."""
        session, self._session = self._session, None
        if session:
            await session.close()

    async def track(self, query: str, first: int, count: int) -> Track:
        """Return the slots from `first` on (at most MAX_SLOTS): known where any series has a sample, active where one is above 0.

        Raises:
            Transient, Permanent: as `levels`.
        """
        active = known = 0
        for slot, value in (await self.levels(query, first, count)).items():
            known |= 1 << slot - first
            active |= (value > 0) << slot - first
        return Track(first=first, active=active, known=known)

    async def levels(self, query: str, first: int, count: int) -> Mapping[int, float]:
        """Return the greatest sample of any series in each slot from `first` on (at most MAX_SLOTS) that has one.

        A query is evaluated at the end of each slot.

        Raises:
            Transient: no usable answer now.
            Permanent: the query is refused, or answers more than is reasonable.
        """
        begin, count = (first + 1) * SLOT_SECONDS, min(count, MAX_SLOTS)
        form = {
            "query": query,
            "start": str(begin),
            "end": str(begin + (count - 1) * SLOT_SECONDS),
            "step": str(SLOT_SECONDS),
            "timeout": f"{ASK_SECONDS:.0f}s",
        }
        status, content = await self._ask(form)
        found: dict[int, float] = {}
        for slot, value in (sample for one in _result(status, content) for sample in _samples(one)):
            if 0 <= slot - first < count:
                found[slot] = max(value, found.get(slot, value))
        return found

    async def _ask(self, form: Mapping[str, str]) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ASK_SECONDS + 5),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "prewarm", "Accept-Encoding": "identity"},
                auto_decompress=False,  # a few bytes could become many
            )
        headers = {"Authorization": f"Bearer {await self._token()}"} if self._token_file else {}
        try:
            async with self._session.post(self._url, data=form, headers=headers, allow_redirects=False) as answer:
                return answer.status, await _read(answer)
        except _NO_ANSWER as error:
            raise Transient(f"Prometheus at {self._url.host} does not answer: {cut(error) or 'too late'}") from error

    async def _token(self) -> str:
        try:
            token = (await asyncio.to_thread((self._token_file or Path()).read_text)).strip()
            if not (token.isascii() and token.isprintable()):
                raise ValueError("it is not one line of ASCII")
        except (OSError, ValueError) as error:
            raise Transient(
                f"cannot read the token for Prometheus: {cut(error)} (setting prometheus_token_file, flag --token-file)"
            ) from error
        return token


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = list[bytes](), 0
    async for chunk in answer.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise Permanent(
                f"the query answers more than {MAX_ANSWER_BYTES >> 20} MiB: have it answer one series, as sum(…) does"
            )
    return b"".join(parts)


def _result(status: int, content: bytes) -> list[Any]:
    """Return the series of an answer; errors as `Prometheus.track`."""
    try:
        answer = json.loads(content)
        told = answer if isinstance(answer, dict) else {}
    except (ValueError, RecursionError):
        told = {}
    if status != 200:
        raise _refused(status, cut(told.get("error", "")))
    data = told.get("data")
    if told.get("status") != "success" or not isinstance(data, dict) or not isinstance(data.get("result"), list):
        raise Transient("what answers at prometheus_url, or --from-prometheus, is no Prometheus")
    if data.get("resultType") != "matrix":
        raise Permanent(f"the query answers {cut(data.get('resultType'), 40)!r}, not series over time")
    if len(data["result"]) > MAX_SERIES:
        raise Permanent(
            f"the query answers {len(data['result'])} series, at most {MAX_SERIES}: have it answer one, as sum(…) does"
        )
    found: list[Any] = data["result"]
    return found


def _refused(status: int, words: str) -> PrewarmError:
    if status in (400, 422):
        return Permanent(f"Prometheus refuses the query: {words or f'status {status}'}")
    if status in (401, 403):
        return Transient(
            f"Prometheus answers {status}: give a token (setting prometheus_token_file, flag --token-file)"
        )
    return Transient(
        f"Prometheus answers {status}"
        + (f": {words}" if words else " (is prometheus_url, or --from-prometheus, its address?)")
    )


def _samples(series: Any) -> Iterator[tuple[int, float]]:
    """Yield slot and value of each sample that can be read and is a number."""
    values = series.get("values") if isinstance(series, dict) else None
    for sample in values if isinstance(values, list) else ():
        try:
            at, text = sample
            time, value = float(at), float(text)
            slot, off = divmod(time, SLOT_SECONDS)
        except (TypeError, ValueError, OverflowError):
            continue
        if off == 0 and math.isfinite(slot) and not math.isnan(value):
            yield int(slot) - 1, value
