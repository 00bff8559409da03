"""No text in any annotation raises, and whatever is accepted keeps its promises."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from agent.demand.annotations import KEYS, read_endpoint
from agent.demand.endpoint import ProblemKind
from agent.demand.windows import MAX_WINDOWS, windows
from tests.unit.demand.test_annotations import BAD, GOOD
from tests.unit.demand.workloads import DEFAULTS, workload

ANY_TEXT = st.text(st.characters(), max_size=60)
PIECES = st.sampled_from(
    [
        "s3://",
        "models/",
        "llama/",
        "..",
        "?include=",
        "*",
        ";",
        ",",
        "\n",
        "=",
        "0 9 * * *",
        "*/0",
        "1h",
        "9" * 30,
        "#",
        "L",
        "@",
        ":",
        " ",
    ]
)
NASTY = st.lists(PIECES | ANY_TEXT, max_size=6).map("".join)
KNOWN = st.sampled_from([g[1] for g in GOOD] + [b[1] for b in BAD])


@given(st.sampled_from(KEYS), ANY_TEXT | NASTY | KNOWN)
def test_any_text_for_any_key_gives_an_endpoint_or_says_why_not(key: str, text: str) -> None:
    reading = read_endpoint(workload({key: text}), DEFAULTS)
    invalid = [p for p in reading.problems if p.kind is ProblemKind.INVALID]
    assert (reading.endpoint is None) == bool(invalid)
    assert all(p.message.isprintable() and len(p.message) <= 600 for p in reading.problems)
    if reading.endpoint and reading.endpoint.schedule:
        assert len(windows(reading.endpoint, datetime(2026, 3, 28, 12, 7, 31, tzinfo=UTC))) <= MAX_WINDOWS


@given(st.dictionaries(ANY_TEXT | st.sampled_from(KEYS), ANY_TEXT | KNOWN, max_size=8), ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_any_workload_is_read_without_raising(
    annotations: dict[str, str], name: str, label: str, namespace: str
) -> None:
    labels = {"prewarm.dev/endpoint": label, "prewarm.dev/inject": "true"}
    reading = read_endpoint(workload(annotations, name=name, namespace=namespace, labels=labels), DEFAULTS)
    assert reading.endpoint is None or reading.endpoint.key == reading.key
    assert reading.key is None or len(str(reading.key)) <= 63


@given(st.permutations([("nodes", "2"), ("window", "x"), ("lead", "y"), ("foo", "z"), ("memory", "on")]))
def test_the_order_of_annotations_does_not_matter(items: list[tuple[str, str]]) -> None:
    reading = read_endpoint(workload(dict(items)), DEFAULTS)
    assert set(reading.problems) == set(read_endpoint(workload(dict(sorted(items))), DEFAULTS).problems)
