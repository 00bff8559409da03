from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource, Workload
from agent.core.assignment_json import format_assignment, format_time, parse_assignment, parse_time
from agent.core.errors import Invalid
from agent.core.refs import EndpointKey, parse_digest, parse_image_ref, parse_model_uri

SHA = parse_digest("sha256:" + "ab" * 32)
NINE = datetime(2026, 11, 24, 8, tzinfo=UTC)

FULL = EndpointWant(
    key=EndpointKey(namespace="team-a", name="chat"),
    workload=Workload(kind="Deployment", name="chat"),
    priority=0,
    gpus=2,
    runtime_handler="nvidia",
    images=(ImageWant(ref=parse_image_ref("vllm/vllm-openai:v1"), digest=SHA), ImageWant(ref=parse_image_ref("pause"))),
    models=(
        ModelWant(name="llm", uri=parse_model_uri("s3://models/llama/"), digest=SHA, size_bytes=10**12, files=30),
        ModelWant(name="x", uri=parse_model_uri("s3://models/x?versionId=1")),
    ),
    windows=(Window(ready_by=NINE, until=NINE + timedelta(hours=1), source=WindowSource.PREDICTED, confidence=0),),
    memory=True,
    container="server",
    metrics="8000/metrics",
)


def spec(**endpoint: Any) -> dict[str, Any]:
    return {"endpoints": [{"namespace": "a", "name": "b"} | endpoint]}


def test_what_is_written_is_read_back() -> None:
    whole = Assignment(endpoints=(FULL, EndpointWant(key=EndpointKey(namespace="a", name="b"))))
    assert parse_assignment(format_assignment(whole)) == whole


def test_defaults_are_not_written() -> None:
    assert format_assignment(Assignment(endpoints=(EndpointWant(key=EndpointKey(namespace="a", name="b")),))) == {
        "endpoints": [{"namespace": "a", "name": "b", "priority": 500}]
    }


def test_images_and_models_may_be_plain_text_as_in_a_plan_file() -> None:
    (found,) = parse_assignment(spec(images=["nginx"], models=["llm=s3://models/llama/"])).endpoints
    assert found.images == (ImageWant(ref=parse_image_ref("nginx")),)
    assert found.models == (ModelWant(name="llm", uri=parse_model_uri("s3://models/llama/")),)


def test_an_empty_or_null_list_is_no_endpoint() -> None:
    assert parse_assignment({}).endpoints == parse_assignment({"endpoints": None}).endpoints == ()


def test_windows_come_sorted() -> None:
    window = {"readyBy": "2026-11-24T09:00:00Z", "until": "2026-11-24T10:00:00Z"}
    early = {"readyBy": "2026-11-23T09:00:00+01:00", "until": "2026-11-23T10:00:00Z"}
    (found,) = parse_assignment(spec(windows=[window, early])).endpoints
    assert [w.ready_by.day for w in found.windows] == [23, 24]
    assert found.windows[0].ready_by == datetime(2026, 11, 23, 8, tzinfo=UTC)
    assert found.windows[0].source is WindowSource.DECLARED


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "spec: expected a mapping"),
        ([], "spec: expected a mapping"),
        ({"endpoints": {}}, "spec.endpoints: expected a list"),
        ({"endpoints": 0}, "spec.endpoints: expected a list"),
        ({"endpoints": ["x"]}, "spec.endpoints[0]: expected a mapping"),
        ({"endpoints": [{"name": "b"}]}, "spec.endpoints[0].namespace: expected text"),
        ({"endpoints": [{"namespace": "..", "name": "b"}]}, "spec.endpoints[0]: namespace '..'"),
        ({"endpoints": [{"namespace": "a", "name": "../../etc"}]}, "spec.endpoints[0]: endpoint name '../../etc'"),
        ({"endpoints": [{"namespace": "a", "name": "b"}] * 2}, "the same endpoint stands twice"),
        (spec(priority=-1), "spec.endpoints[0].priority: expected a whole number"),
        (spec(priority=True), "spec.endpoints[0].priority"),
        (spec(gpus=1.5), "spec.endpoints[0].gpus"),
        (spec(models=[{"uri": "s3://models/x", "sizeBytes": 2**63}]), "spec.endpoints[0].models[0].sizeBytes"),
        (spec(workload="x"), "spec.endpoints[0].workload: expected a mapping"),
        (spec(container="a\nb"), "spec.endpoints[0].container: expected text"),
        (spec(images=["UPPER:"]), "spec.endpoints[0].images[0]: image"),
        (spec(images=[{"ref": "nginx", "digest": "md5:1"}]), "spec.endpoints[0].images[0]: digest"),
        (spec(models=["http://x"]), "spec.endpoints[0].models[0]: model uri"),
        (spec(models=[{"uri": "s3://models/x", "name": "../up"}]), "spec.endpoints[0].models[0]: model name"),
        (spec(models=["s3://models/a/x", "s3://models/b/x"]), "spec.endpoints[0].models: two models have one name"),
        (spec(windows=[{}]), "spec.endpoints[0].windows[0].readyBy: 'None' is not an RFC 3339 time"),
        (spec(windows=[{"readyBy": "2026-11-24T09:00:00"}]), "readyBy: '2026-11-24T09:00:00' has no time zone"),
        (
            spec(windows=[{"readyBy": "2026-11-24T09:00:00Z", "until": "2026-11-24T09:00:00Z"}]),
            "a window must end after it starts",
        ),
        (
            spec(windows=[{"readyBy": "2026-11-24T09:00:00Z", "until": "2026-11-24T10:00:00Z", "source": "guess"}]),
            "windows[0].source: 'guess' is not one of declared, predicted, manual",
        ),
    ],
)
def test_anything_unexpected_is_invalid_with_its_path(value: object, told: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_assignment(value)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "", "9", "2026-02-30T00:00:00Z"]
)
def test_a_time_that_is_none_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        parse_time(text)


def test_times_from_yaml_are_taken_as_they_are() -> None:
    assert parse_time(NINE.replace(tzinfo=None)) == NINE
    assert parse_time(NINE.astimezone(timezone(timedelta(hours=9)))) == NINE
    with pytest.raises(Invalid):
        parse_time(datetime.max.replace(tzinfo=timezone(timedelta(hours=-9))))


def test_times_are_written_in_utc_with_whole_seconds() -> None:
    assert (
        format_time(NINE.replace(microsecond=999999).astimezone(timezone(timedelta(hours=9)))) == "2026-11-24T08:00:00Z"
    )
    assert format_time(datetime(99, 1, 1, tzinfo=UTC)) == "0099-01-01T00:00:00Z"


def test_an_endpoints_next_window_is_the_first_that_has_not_ended() -> None:
    late = Window(ready_by=NINE + timedelta(hours=5), until=NINE + timedelta(hours=6))
    want = EndpointWant(key=FULL.key, windows=(late, *FULL.windows))
    assert want.next_window(NINE) == FULL.windows[0]
    assert want.next_window(NINE + timedelta(hours=1)) == late
    assert want.next_window(late.until) is None
