"""Parsers for the value of each annotation: text in, a checked value out, `Invalid` with what is accepted otherwise."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from agent.config import zone_name
from agent.core.errors import Invalid, cut
from agent.core.refs import ImageRef, ModelSource, parse_image_ref, parse_model_source
from agent.core.units import format_duration, parse_duration
from agent.demand.endpoint import MinScale, Predict

MAX_ITEMS = 50  # models or images of one endpoint: as many as a NodeWarmup takes (deploy/crd.yaml)
MAX_SCHEDULES = 16  # each may fire every minute, which costs the planner about 20 ms a cycle
MAX_LEAD = timedelta(days=1)
_MAX_CRON = 200  # characters of one expression
_MAX_QUERY = 4000  # characters of PromQL
_CONTAINER = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_METRICS = re.compile(r"([0-9]{1,5})(/[\x21-\x7e]{0,200})")
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def models(text: str) -> tuple[ModelSource, ...]:
    """Parse the `models` list; names must differ, as each becomes a directory under /models."""
    found = tuple(parse_model_source(item) for item in _items(text, "\n,", "[name=]s3://bucket/key-or-prefix/"))
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Invalid(f"two models are named {twice[0]!r}: give one another name, as in other=s3://…")
    return found


def schedule(text: str) -> tuple[str, ...]:
    """Parse `;`-separated cron expressions; each comes back with single spaces."""
    items = _items(text, "\n;", "cron expressions such as 0 9 * * MON-FRI")
    if len(items) > MAX_SCHEDULES:
        raise Invalid(f"{len(items)} cron expressions are more than {MAX_SCHEDULES}")
    return tuple(_cron(item) for item in items)


def zone(text: str) -> str:
    """Check an IANA zone name."""
    return zone_name(text.strip())


def window(text: str) -> timedelta:
    """Parse how long a window lasts, at least a second."""
    length = parse_duration(text)
    if not length:
        raise Invalid(f"{cut(text, 60)!r} is no time at all: a window lasts at least 1s")
    return length


def lead(text: str) -> timedelta:
    """Parse the margin before a start, at most a day."""
    length = parse_duration(text)
    if length > MAX_LEAD:
        raise Invalid(f"{cut(text, 60)!r} is longer than {format_duration(MAX_LEAD)}")
    return length


def nodes(text: str) -> int | None:
    """Parse a number from 1, or `all` (None)."""
    return None if text.strip() == "all" else _whole(text, 1, 100_000, "a number from 1 to 100000, or all")


def replicas(text: str) -> int:
    """Parse a number from 1."""
    return _whole(text, 1, 100_000, "a number from 1 to 100000")


def min_scale(text: str) -> MinScale:
    """Parse what becomes of the minimum scale."""
    return MinScale(word(text, *MinScale))


def predict(text: str) -> Predict:
    """Parse what becomes of predicted windows."""
    return Predict(word(text, *Predict))


def priority(text: str) -> int:
    """Parse 0 to 1000."""
    return _whole(text, 0, 1000, "a number from 0 to 1000")


def images(text: str) -> tuple[ImageRef, ...] | bool:
    """Parse `on` (True), `off` (False), or a list of images to warm besides the pod template's."""
    word = text.strip()
    if word in ("on", "off"):
        return word == "on"
    return tuple(dict.fromkeys(parse_image_ref(item) for item in _items(text, "\n,", "on, off or image names")))


def switch(text: str) -> bool:
    """Parse `on` or `off`."""
    return word(text, "on", "off") == "on"


def container(text: str) -> str:
    """Parse a container's name."""
    name = text.strip()
    if not _CONTAINER.fullmatch(name):
        raise Invalid(f"{cut(text, 80)!r} is not a container's name")
    return name


def metrics(text: str) -> str:
    """Parse `port/path`."""
    found = _METRICS.fullmatch(text.strip())
    if not found or not 1 <= int(found[1]) <= 65535:
        raise Invalid(f"{cut(text, 80)!r} is not port/path: write it like 8000/metrics")
    return f"{int(found[1])}{found[2]}"


def history(text: str) -> str:
    """Parse PromQL, or `auto` (""); whether Prometheus takes it shows when it is asked."""
    query = text.strip()
    if not query or len(query) > _MAX_QUERY or not all(c.isprintable() or c.isspace() for c in query):
        raise Invalid(f"{cut(text, 80)!r} is neither auto nor PromQL of at most {_MAX_QUERY} characters")
    return "" if query == "auto" else query


def word(text: str, *words: str) -> str:
    """Parse one of `words`."""
    found = text.strip()
    if found not in words:
        raise Invalid(f"{cut(text, 60)!r} is not one of {', '.join(words)}")
    return found


def _cron(text: str) -> str:
    expression = " ".join(text.split())
    what = f"cron expression {cut(text, 80)!r}"
    if len(expression) > _MAX_CRON:
        raise Invalid(f"{what} is longer than {_MAX_CRON} characters")
    if len(expression.split()) != 5:
        raise Invalid(f"{what} must have five fields: minute hour day-of-month month day-of-week")
    try:
        fires = next(CronSim(expression, _ANY_DAY), None)
    except (CronSimError, ValueError) as error:
        hint = str(error).removeprefix("Bad ")
        raise Invalid(f"{what} has a bad {hint}: write it like 0 9 * * MON-FRI") from error
    if fires is None:
        raise Invalid(f"{what} never comes")
    return expression


def _items(text: str, separators: str, accepted: str) -> tuple[str, ...]:
    """Split a list; empty entries (a comma before a line end) are skipped, an empty list is refused."""
    found = tuple(item for part in re.split(f"[{separators}]", text) if (item := part.strip()))
    if not found:
        raise Invalid(f"{cut(text, 60)!r} is empty: write {accepted}, or leave the annotation out")
    if len(found) > MAX_ITEMS:
        raise Invalid(f"{len(found)} entries are more than {MAX_ITEMS}")
    return found


def _whole(text: str, least: int, most: int, accepted: str) -> int:
    digits = text.strip()
    if not re.fullmatch(r"[0-9]{1,6}", digits) or not least <= int(digits) <= most:
        raise Invalid(f"{cut(text, 60)!r} is not {accepted}")
    return int(digits)
