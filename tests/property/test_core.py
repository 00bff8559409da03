"""Core parsers over any input: they answer or raise Invalid, and what they write they read back."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from agent.config import load_settings
from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource, Workload
from agent.core.assignment_json import format_assignment, parse_assignment, parse_time
from agent.core.errors import Invalid
from agent.core.refs import (
    Digest,
    ImageRef,
    endpoint_key,
    parse_image_ref,
    parse_model_source,
    parse_model_uri,
)
from agent.core.retry import Backoff
from agent.core.units import format_duration, format_size, parse_duration, parse_size

TEXT = st.text(st.characters(), max_size=80)
PIECES = st.sampled_from(
    [
        "s3://",
        "bucket",
        "/",
        "..",
        "?",
        "include=",
        "versionId=",
        "&",
        "%2F",
        "%",
        "#",
        "@",
        ":",
        "sha256:",
        "a",
        "[",
        "=",
    ]
)
PIECED = st.lists(PIECES | TEXT, max_size=8).map("".join)

SAFE = st.from_regex(r"[a-z0-9]([a-z0-9\-]{0,20}[a-z0-9])?", fullmatch=True)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
DIGESTS = HEX.map(lambda h: Digest(f"sha256:{h}"))
IMAGES = st.builds(
    lambda host, repository, tag: parse_image_ref(f"{host}{repository}{tag}"),
    st.sampled_from(["", "ghcr.io/", "localhost:5000/", "docker.io/"]),
    st.lists(SAFE.filter(lambda s: "." not in s), min_size=1, max_size=3).map("/".join),
    st.just("") | SAFE.map(lambda t: f":{t}") | DIGESTS.map(lambda d: f"@{d}"),
)
MODELS = st.builds(
    lambda name, bucket, key, query, digest, size: ModelWant(
        name=name, uri=parse_model_uri(f"s3://{bucket}xx/{key}/{query}"), digest=digest, size_bytes=size, files=size % 7
    ),
    SAFE,
    SAFE,
    SAFE,
    st.sampled_from(["", "?include=*.json", "?exclude=a%26b&include=x%3Dy"]),
    st.none() | DIGESTS,
    st.integers(0, 1 << 50),
)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001
WINDOWS = st.builds(
    lambda start, minutes, source, confidence: Window(
        ready_by=start, until=start + timedelta(minutes=minutes), source=source, confidence=confidence
    ),
    TIMES,
    st.integers(1, 10**5),
    st.sampled_from(WindowSource),
    st.integers(0, 100),
)
PRINTABLE = TEXT.filter(str.isprintable)
WANTS = st.builds(
    EndpointWant,
    key=st.builds(endpoint_key, SAFE, SAFE),
    workload=st.builds(Workload, kind=PRINTABLE, name=PRINTABLE),
    priority=st.integers(0, 1000),
    gpus=st.integers(0, 16),
    runtime_handler=PRINTABLE,
    images=st.lists(st.builds(ImageWant, ref=IMAGES, digest=st.just("") | DIGESTS), max_size=3).map(tuple),
    models=st.lists(MODELS, max_size=3, unique_by=lambda m: m.name).map(tuple),
    windows=st.lists(WINDOWS, max_size=3).map(lambda ws: tuple(sorted(ws))),
    container=PRINTABLE,
    metrics=PRINTABLE,
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.datetimes() | PIECED
KEYS = st.sampled_from(
    [
        "endpoints",
        "namespace",
        "name",
        "workload",
        "kind",
        "priority",
        "gpus",
        "images",
        "ref",
        "digest",
        "models",
        "uri",
        "sizeBytes",
        "files",
        "windows",
        "readyBy",
        "until",
        "source",
    ]
)
JSON = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS | TEXT, v, max_size=5), max_leaves=20
)


@given(st.lists(WANTS, max_size=3, unique_by=lambda w: w.key))
def test_an_assignment_survives_being_written_and_read(wants: list[EndpointWant]) -> None:
    assignment = Assignment(endpoints=tuple(wants))
    assert parse_assignment(format_assignment(assignment)) == assignment


@given(JSON)
def test_any_json_is_an_assignment_or_invalid(value: object) -> None:
    for spec in (
        value,
        {"endpoints": [value]},
        {"endpoints": [{"namespace": "a", "name": "b", "models": [value], "windows": [value]}]},
    ):
        with suppress(Invalid):
            parse_assignment(spec)


@given(LEAVES)
def test_any_value_is_a_time_in_utc_or_invalid(value: object) -> None:
    with suppress(Invalid):
        assert parse_time(value).tzinfo is UTC


@given(TEXT | PIECED)
def test_any_text_is_a_model_uri_that_reads_back_or_invalid(text: str) -> None:
    with suppress(Invalid):
        uri = parse_model_uri(text)
        assert parse_model_uri(str(uri)) == uri
        assert ".." not in uri.key.split("/")
        assert not uri.key.startswith("/")


@given(TEXT | PIECED)
def test_any_model_source_has_a_name_that_is_one_directory(text: str) -> None:
    with suppress(Invalid):
        name = parse_model_source(text).name
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert len(name) <= 63


@given(TEXT | PIECED)
def test_any_text_is_an_image_that_reads_back_or_invalid(text: str) -> None:
    with suppress(Invalid):
        ref = parse_image_ref(text)
        assert parse_image_ref(str(ref)) == ref
        assert bool(ref.tag) != bool(ref.digest)


@given(IMAGES)
def test_normal_image_names_are_stable(ref: ImageRef) -> None:
    assert parse_image_ref(str(ref)) == ref


@given(TEXT, TEXT)
def test_any_namespace_and_name_make_a_safe_key_or_invalid(namespace: str, name: str) -> None:
    with suppress(Invalid):
        key = endpoint_key(namespace, name)
        assert str(key).isascii()
        assert "/" not in str(key)
        assert len(str(key)) <= 63


@given(TEXT | st.from_regex(r"[0-9]{0,20}[dhms]?[0-9]{0,12}[hms]?", fullmatch=True))
def test_any_text_is_a_duration_and_a_size_or_invalid(text: str) -> None:
    with suppress(Invalid):
        assert timedelta(0) <= parse_duration(text) <= timedelta(days=366)
    with suppress(Invalid):
        assert parse_size(text) >= 0


@given(st.integers(10, 366 * 86400))
def test_whole_durations_read_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == timedelta(seconds=seconds)


@given(st.floats(0, 1e17, allow_nan=False))
def test_written_sizes_are_within_half_a_percent(size: float) -> None:
    assert abs(parse_size(format_size(size).replace("kB", "KB")) - size) <= max(size * 0.005, 0.5)


@given(st.integers(0, 200), st.integers())
def test_backoff_stays_between_its_floor_and_its_growing_cap(failures: int, seed: int) -> None:
    backoff = Backoff(base_seconds=0.5, cap_seconds=30.0, floor_seconds=0.1)
    for _ in range(failures):
        backoff = backoff.failed()
    top = min(30.0, 0.5 * 2.0 ** max(failures - 1, 0))
    assert 0.1 <= backoff.delay_seconds(Random(seed)) <= max(top, 0.1)


def test_backoff_spreads_and_grows() -> None:
    rng, once, often = Random(1), Backoff().failed(), Backoff(failures=9)
    first, later = ([b.delay_seconds(rng) for _ in range(200)] for b in (once, often))
    assert max(first) <= 0.5 < max(later) <= 30.0
    assert len(set(later)) > 190


@given(
    st.dictionaries(
        st.sampled_from(["sources", "warm_ahead", "timezone", "brake", "gpus", "connections", "bandwidth"]),
        TEXT | PIECED,
    )
)
def test_any_variables_give_settings_or_invalid(variables: dict[str, str]) -> None:
    with suppress(Invalid):
        load_settings(environ={f"PREWARM_{name.upper()}": text for name, text in variables.items()})
