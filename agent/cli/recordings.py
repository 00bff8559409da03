"""Reads recorded traffic from files for `prewarm replay` and the benchmarks."""

from __future__ import annotations

import csv
import gzip
import io
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from agent.core.errors import Invalid, cut
from agent.demand import values
from agent.demand.recording import Recorded, Recording
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS

MAX_SLOTS = 10 * 366 * DAY_SLOTS
MAX_CELLS = 500_000_000
_YEAR_9999 = 253_370_764_800  # the clock of Python ends with it; milliseconds since 1970 are beyond


def read_recording(path: Path, zone: str = "UTC", learn_days: int = 7) -> Recording:
    """Read a folder (trace.toml, endpoints.csv, demand.csv or .gz), or one CSV file of endpoint,slot_start_epoch_s,demand.

    endpoints.csv has endpoint,timezone and, if known, group and schedule (as the annotation is written). A single file has one time zone and one group for all, and its first `learn_days` are only learned from.

    Raises:
        Invalid: with the file and line of what cannot be read.
    """
    try:
        return _folder(path) if path.is_dir() else _file(path, zone, learn_days)
    except (OSError, EOFError, UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error, zlib.error) as error:
        raise Invalid(f"cannot read {path}: {cut(str(error), 200)}") from error


def _folder(folder: Path) -> Recording:
    meta = tomllib.loads((folder / "trace.toml").read_text())
    endpoints = tuple(
        Recorded(
            name=_field(row, "endpoint", folder),
            timezone=_field(row, "timezone", folder),
            group=row.get("group") or "all",
            schedule=values.schedule(declared) if (declared := row.get("schedule")) else (),
        )
        for row in _rows(folder / "endpoints.csv")
    )
    if meta.get("slot_seconds") != SLOT_SECONDS:
        raise Invalid(f"{folder}: slots of {meta.get('slot_seconds')} s: replay needs slots of {SLOT_SECONDS} s")
    start, end = _whole(meta.get("start"), folder), _whole(meta.get("evaluation_end"), folder)
    first = _whole(meta.get("evaluation_start", start), folder)
    data = folder / "demand.csv"
    gaps = _gaps(meta.get("known_gaps", []), folder)
    return _recording(data if data.exists() else data.with_suffix(".csv.gz"), endpoints, start, end, first, gaps)


def _gaps(found: Any, where: object) -> list[tuple[int, int]]:
    try:
        return [(_whole(begin, where), _whole(end, where)) for begin, end in found]
    except (TypeError, ValueError) as error:
        raise Invalid(f"{where}: known_gaps {cut(str(found), 60)} is no list of [start, end]") from error


def _file(path: Path, zone: str, learn_days: int) -> Recording:
    names: dict[str, None] = {}
    starts = []
    for line, row in enumerate(_rows(path), 2):
        names[_field(row, "endpoint", path)] = None
        starts.append(_whole(row.get("slot_start_epoch_s"), f"{path} line {line}"))
    if not starts:
        raise Invalid(f"{path} has no traffic: write lines of endpoint,slot_start_epoch_s,demand")
    start = min(starts) // SLOT_SECONDS * SLOT_SECONDS
    endpoints = tuple(Recorded(name=name, timezone=zone, group="all") for name in names)
    return _recording(
        path, endpoints, start, max(starts) + SLOT_SECONDS, start + learn_days * DAY_SLOTS * SLOT_SECONDS, []
    )


def _recording(
    path: Path, endpoints: tuple[Recorded, ...], start: int, end: int, first: int, gaps: list[tuple[int, int]]
) -> Recording:
    for endpoint in endpoints:
        _check_zone(endpoint.timezone, path)
    slots = max(0, -(-(end - start) // SLOT_SECONDS))
    if slots > MAX_SLOTS or slots * len(endpoints) > MAX_CELLS:
        raise Invalid(
            f"{path}: {len(endpoints)} endpoints over {slots // DAY_SLOTS} days are too many: cut the recording"
        )
    row_of = {endpoint.name: row for row, endpoint in enumerate(endpoints)}
    active = np.zeros((len(endpoints), slots), bool)
    for line, row in enumerate(_rows(path), 2):
        where, name = f"{path} line {line}", row.get("endpoint") or ""
        slot = (_whole(row.get("slot_start_epoch_s"), where) - start) // SLOT_SECONDS
        if name not in row_of or not 0 <= slot < slots:
            raise Invalid(f"{where}: endpoint {cut(name, 60)!r} at slot {slot} is not of this recording")
        active[row_of[name], slot] |= _number(row.get("demand"), where) > 0
    times = start + SLOT_SECONDS * np.arange(slots)
    known = np.ones(slots, bool)
    for begin, until in gaps:
        known &= (times < begin) | (times >= until)
    return Recording(start=start, endpoints=endpoints, active=active & known, known=known, counted=times >= first)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with (
        path.open("rb") as raw,
        gzip.open(raw) if path.suffix == ".gz" else raw as data,
        io.TextIOWrapper(data, newline="") as lines,
    ):
        yield from csv.DictReader(lines)


def _field(row: dict[str, str], name: str, where: object) -> str:
    if not (found := (row.get(name) or "").strip()):
        raise Invalid(f"{where}: a line without {name}: the first line must name the columns, endpoint among them")
    return found


def _whole(value: Any, where: object) -> int:
    try:
        if 0 <= (found := int(value)) < _YEAR_9999:
            return found
        raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"{where}: {cut(str(value), 40)!r} is not a time in whole seconds since 1970") from error


def _number(value: Any, where: object) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Invalid(f"{where}: demand {cut(str(value), 40)!r} is not a number") from error


def _check_zone(zone: str, path: Path) -> None:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise Invalid(f"{path}: {cut(zone, 60)!r} is no IANA time zone") from error
