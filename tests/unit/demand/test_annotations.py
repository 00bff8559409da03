from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest

from agent.core.refs import EndpointKey, parse_image_ref, parse_model_source
from agent.demand.annotations import KEYS, duplicates, read_endpoint, refuse_duplicates
from agent.demand.endpoint import MinScale, Predict, ProblemKind, Schedule
from agent.kube.objects import ContainerView, PodSpecView
from tests.unit.demand.workloads import DEFAULTS, SPEC, endpoint, read, workload

TEMPLATE_IMAGES = (
    "docker.io/library/busybox:latest",
    "docker.io/vllm/vllm-openai:v0.11.0",
    "registry.k8s.io/pause:3.10",
)
DAILY = Schedule(cron="0 9 * * *", zone="Europe/Paris")

# key, text, attribute of the endpoint, its value
GOOD: list[tuple[str, str, str, object]] = [
    ("models", "s3://models/llama/8b/", "models", (parse_model_source("8b=s3://models/llama/8b/"),)),
    (
        "models",
        "m=s3://models/llama/x.bin?versionId=v1",
        "models",
        (parse_model_source("m=s3://models/llama/x.bin?versionId=v1"),),
    ),
    (
        "models",
        "\n a=s3://models/llama/8b/?include=*.json&exclude=*.bin,\n b=s3://models/llama/70b/\n",
        "models",
        (
            parse_model_source("a=s3://models/llama/8b/?include=*.json&exclude=*.bin"),
            parse_model_source("b=s3://models/llama/70b/"),
        ),
    ),
    ("layout", "files", "models", ()),
    ("schedule", "0 9 * * *", "schedule", (DAILY,)),
    (
        "schedule",
        "0 9 * * *; 30  13 * * mon-fri ;",
        "schedule",
        (DAILY, Schedule(cron="30 13 * * mon-fri", zone="Europe/Paris")),
    ),
    ("schedule", "0 9 1,15 * *\n0 9 * * *", "schedule", (Schedule(cron="0 9 1,15 * *", zone="Europe/Paris"), DAILY)),
    ("timezone", "America/New_York", "schedule", ()),
    ("timezone", " UTC ", "schedule", ()),
    ("window", "1h30m", "window", timedelta(hours=1, minutes=30)),
    ("window", "1s", "window", timedelta(seconds=1)),
    ("lead", "0s", "lead", timedelta()),
    ("lead", "1d", "lead", timedelta(days=1)),
    ("predict", "off", "predict", Predict.OFF),
    ("predict", " shadow ", "predict", Predict.SHADOW),
    ("predict", "on", "predict", Predict.ON),
    ("nodes", "3", "nodes", 3),
    ("nodes", "all", "nodes", None),
    ("images", "on", "images", tuple(map(parse_image_ref, TEMPLATE_IMAGES))),
    ("images", "off", "images", ()),
    ("images", "redis:8, busybox:latest", "images", tuple(map(parse_image_ref, (*TEMPLATE_IMAGES, "redis:8")))),
    ("memory", "off", "memory", False),
    ("memory", " on ", "memory", True),
    ("min-scale", "off", "min_scale", MinScale.OFF),
    ("min-scale", "recommend", "min_scale", MinScale.RECOMMEND),
    ("min-scale", " apply ", "min_scale", MinScale.APPLY),
    ("replicas", "12", "replicas", 12),
    ("provision", "off", "provision", False),
    ("provision", "on", "provision", True),
    ("priority", "0", "priority", 0),
    ("priority", "1000", "priority", 1000),
    ("container", "proxy", "container", "proxy"),
    ("metrics", "8000/metrics", "metrics", "8000/metrics"),
    ("metrics", "65535/", "metrics", "65535/"),
    ("history", "auto", "history", ""),
    ("history", "\n sum(\n  rate(x[10m]))\n", "history", "sum(\n  rate(x[10m]))"),
]

# key, text, what the message says is accepted or wrong
BAD: list[tuple[str, str, str]] = [
    ("models", "", "is empty: write [name=]s3://bucket/key-or-prefix/"),
    ("models", " ,\n", "is empty"),
    ("models", "https://models/llama/", "does not start with s3://"),
    ("models", "s3://models/llama/../secret/", "'..' path part"),
    ("models", "s3://models/llama//x", "empty"),
    ("models", "s3://UPPER/x", "names no valid bucket"),
    ("models", "s3://models/llama/8b/?region=x", "accepted are versionId=, include= and exclude="),
    ("models", "s3://models/llama/8b/?versionId=1", "versionId= goes with one object"),
    ("models", "../up=s3://models/llama/8b/", "model name '../up'"),
    ("models", "s3://models/llama/8b/,s3://models/llama/old/8b/", "two models are named '8b'"),
    ("models", "s3://models/llama/8b/\x00", "control characters"),
    ("models", "s3://models/mistral/", "sources: team-a=s3://models/mistral/"),
    ("models", "s3://other/llama/8b/", "sources: team-a=s3://other/llama/8b/"),
    ("models", "s3://models/llama", "sources: team-a=s3://models/"),
    ("models", ",".join(f"s3://models/llama/{n}/" for n in range(51)), "51 entries are more than 50"),
    ("layout", "Triton", "'Triton' is not one of files, triton"),
    ("schedule", "", "is empty: write cron expressions"),
    ("schedule", "0 9 * *", "'0 9 * *' must have five fields"),
    ("schedule", "0 0 9 * * *", "must have five fields"),
    ("schedule", "@daily", "'@daily' must have five fields"),
    ("schedule", "61 9 * * *", "'61 9 * * *' has a bad minute"),
    ("schedule", "0 9 * * *; 0 9 * * 8", "'0 9 * * 8' has a bad day-of-week"),
    ("schedule", "0 9 30 2 *", "has a bad day-of-month"),
    ("schedule", "0 9 */30 * 1#2", "'0 9 */30 * 1#2' never comes"),
    ("schedule", "0 0 31 2 MON#5L", "has a bad"),
    ("schedule", "0 " + "9" * 150 + " * * *", "has a bad hour"),
    ("schedule", "0 " + "9" * 5000 + " * * *", "longer than 200 characters"),
    ("schedule", ";".join(["0 9 * * *"] * 17), "17 cron expressions are more than 16"),
    ("timezone", "Mars/Olympus", "'Mars/Olympus' is no IANA time zone: write it like Europe/Paris"),
    ("timezone", "", "is no IANA time zone"),
    ("timezone", "../../etc/passwd", "is no IANA time zone"),
    ("timezone", "Europe", "is no IANA time zone"),
    ("timezone", "+02:00", "is no IANA time zone"),
    ("timezone", "x" * 5000, "is no IANA time zone"),
    ("window", "soon", "'soon' is not a duration: write it like 1h30m"),
    ("window", "0s", "'0s' is no time at all"),
    ("window", "-1h", "is not a duration"),
    ("window", "60", "is not a duration"),
    ("window", "400d", "longer than 366 days"),
    ("window", "99999999d99999999h", "longer than 366 days"),
    ("lead", "1d1s", "'1d1s' is longer than 1d"),
    ("lead", "five minutes", "is not a duration"),
    ("predict", "yes", "'yes' is not one of off, shadow, on"),
    ("predict", "", "'' is not one of"),
    ("predict", "on\n\x1b[2J" * 2000, "is not one of off, shadow, on"),
    ("nodes", "0", "'0' is not a number from 1 to 100000, or all"),
    ("nodes", "-1", "is not a number"),
    ("nodes", "1.5", "is not a number"),
    ("nodes", "ALL", "is not a number"),
    ("nodes", "\u0663", "is not a number"),
    ("images", "", "is empty: write on, off or image names"),
    ("images", "UPPER:x", "is not an image name"),
    ("images", ",".join(f"redis:{n}" for n in range(48)), "51 with the pod template's, at most 50"),
    ("images", "redis:8,redis@sha256:12", "must be sha256: and 64 hex digits"),
    ("memory", "maybe", "'maybe' is not one of on, off"),
    ("min-scale", "3", "'3' is not one of off, recommend, apply"),
    ("replicas", "0", "'0' is not a number from 1 to 100000"),
    ("replicas", "p95", "'p95' is not a number"),
    ("provision", "true", "'true' is not one of on, off"),
    ("priority", "1001", "'1001' is not a number from 0 to 1000"),
    ("priority", "high", "'high' is not a number from 0 to 1000"),
    ("container", "sidecar", "no container of the pod template, which has server, proxy"),
    ("container", "No Name", "is not a container's name"),
    ("history", " ", "neither auto nor PromQL"),
    ("history", "x" * 4001, "at most 4000 characters"),
    ("history", "x\x00", "neither auto nor PromQL"),
    ("metrics", "8000", "'8000' is not port/path: write it like 8000/metrics"),
    ("metrics", "0/metrics", "is not port/path"),
    ("metrics", "65536/metrics", "is not port/path"),
    ("metrics", "8000/me trics", "is not port/path"),
    ("metrics", "http://host/metrics", "is not port/path"),
]


@pytest.mark.parametrize(("key", "text", "attribute", "value"), GOOD)
def test_a_good_value_is_read(key: str, text: str, attribute: str, value: object) -> None:
    reading = read({key: text})
    assert reading.problems == ()
    assert reading.key == EndpointKey(namespace="team-a", name="chat")
    assert reading.endpoint is not None
    assert getattr(reading.endpoint, attribute) == value


@pytest.mark.parametrize(("key", "text", "told"), BAD)
def test_a_bad_value_makes_the_endpoint_invalid_and_is_told(key: str, text: str, told: str) -> None:
    reading = read({key: text})
    assert reading.endpoint is None
    assert reading.key == EndpointKey(namespace="team-a", name="chat")
    (problem,) = reading.problems
    assert (problem.kind, problem.annotation) == (ProblemKind.INVALID, f"prewarm.dev/{key}")
    assert problem.message.startswith(f"prewarm.dev/{key}: ")
    assert told in problem.message
    assert problem.message.isprintable()
    assert len(problem.message) <= 600


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("layout", "triton"),
    ],
)
def test_what_this_version_cannot_do_is_told_and_the_rest_works(key: str, text: str) -> None:
    reading = read({key: text, "schedule": "0 9 * * *"})
    (problem,) = reading.problems
    assert (problem.kind, problem.annotation) == (ProblemKind.NOT_SUPPORTED, f"prewarm.dev/{key}")
    assert "not supported by this version" in problem.message
    assert reading.endpoint is not None
    assert reading.endpoint.schedule == (DAILY,)


def test_every_key_of_the_catalogue_is_in_the_tables() -> None:
    assert {g[0] for g in GOOD} == set(KEYS)
    assert {b[0] for b in BAD} == set(KEYS)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modles", "models"),
        ("time-zone", "timezone"),
        ("minscale", "min-scale"),
        ("image", "images"),
        ("node", "nodes"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_known_one(key: str, near: str) -> None:
    reading = read({key: "x", "schedule": "0 9 * * *"})
    (problem,) = reading.problems
    assert problem.kind is ProblemKind.UNKNOWN_KEY
    assert problem.message == f"prewarm.dev/{key}: unknown, the nearest known key is prewarm.dev/{near}"
    assert reading.endpoint is not None


@pytest.mark.parametrize("key", ["inject", "endpoint"])
def test_a_label_written_as_annotation_is_reported(key: str) -> None:
    (problem,) = read({key: "true", "nodes": "1"}).problems
    assert problem.kind is ProblemKind.UNKNOWN_KEY
    assert "label of the pod template" in problem.message


def test_thousands_of_unknown_keys_are_told_in_a_few_sentences_and_cost_nothing() -> None:
    began = time.process_time()
    reading = read({f"key-{n:05}": "" for n in range(15_000)} | {"schedule": "0 9 * * *"})
    assert time.process_time() - began < 1
    assert len(reading.problems) == 11
    assert reading.problems[-1].message == "14990 more annotations that begin with prewarm.dev/ are unknown"
    assert reading.endpoint is not None


def test_only_unknown_keys_make_no_endpoint_but_are_reported() -> None:
    reading = read({"modles": "s3://models/llama/8b/"})
    assert (reading.key, reading.endpoint) == (None, None)
    assert [p.kind for p in reading.problems] == [ProblemKind.UNKNOWN_KEY]


def test_all_mistakes_are_told_at_once() -> None:
    reading = read({"window": "x", "nodes": "y", "schedule": "z", "layout": "triton", "foo": ""})
    assert sorted((p.annotation, str(p.kind)) for p in reading.problems) == [
        ("prewarm.dev/foo", "UnknownKey"),
        ("prewarm.dev/layout", "NotSupported"),
        ("prewarm.dev/nodes", "Invalid"),
        ("prewarm.dev/schedule", "Invalid"),
        ("prewarm.dev/window", "Invalid"),
    ]


def test_a_workload_without_our_annotations_is_no_endpoint() -> None:
    other = workload()
    reading = read_endpoint(other, DEFAULTS)
    assert (reading.key, reading.endpoint, reading.problems) == (None, None, ())
    assert reading.workload.uid == "uid-chat"


def test_a_workload_being_deleted_is_no_endpoint() -> None:
    reading = read({"schedule": "0 9 * * *"}, deleting=True)
    assert (reading.key, reading.endpoint, reading.problems) == (None, None, ())


def test_the_pod_template_wins_key_by_key() -> None:
    found = endpoint({"window": "2h", "lead": "1m"}, template={"window": "3h"})
    assert (found.window, found.lead) == (timedelta(hours=3), timedelta(minutes=1))


def test_a_good_template_value_hides_a_bad_one_of_the_workload() -> None:
    assert endpoint({"window": "x"}, template={"window": "3h"}).window == timedelta(hours=3)


def test_defaults_are_those_of_the_design() -> None:
    found = endpoint({"schedule": "0 9 * * *"})
    assert (found.window, found.lead, found.nodes, found.priority) == (timedelta(hours=1), timedelta(minutes=5), 1, 500)
    assert (found.container, found.metrics, found.models) == ("", "", ())
    assert [str(i) for i in found.images] == list(TEMPLATE_IMAGES)
    assert found.schedule == (DAILY,)


def test_the_zone_applies_to_the_schedule() -> None:
    found = endpoint({"schedule": "0 9 * * *", "timezone": "Asia/Tokyo"})
    assert found.schedule == (Schedule(cron="0 9 * * *", zone="Asia/Tokyo"),)


def test_the_template_label_names_the_endpoint() -> None:
    assert str(endpoint({"nodes": "1"}, labels={"prewarm.dev/endpoint": "front"}).key) == "team-a.front"


@pytest.mark.parametrize("name", ["a" * 57, "-bad", "a/b", "x y"])
def test_a_name_that_makes_no_key_is_invalid(name: str) -> None:
    reading = read({"nodes": "1"}, labels={"prewarm.dev/endpoint": name})
    assert (reading.key, reading.endpoint) == (None, None)
    assert [p.kind for p in reading.problems] == [ProblemKind.INVALID]
    assert name[:20] in reading.problems[0].message


def test_the_longest_key_is_63_characters() -> None:
    assert len(str(endpoint({"nodes": "1"}, labels={"prewarm.dev/endpoint": "a" * 56}).key)) == 63


def test_an_image_of_the_template_that_is_none_is_invalid_unless_images_are_off() -> None:
    broken = PodSpecView(containers=(ContainerView(name="server", image="Not An Image"),))
    (problem,) = read({"nodes": "1"}, spec=broken).problems
    assert problem.kind is ProblemKind.INVALID
    assert "'Not An Image'" in problem.message
    assert endpoint({"images": "off"}, spec=broken).images == ()


@pytest.mark.parametrize(
    ("containers", "init", "gpus"),
    [((), (), 0), ((1, 2), (), 3), ((1, 2), (2, 2), 3), ((1,), (4, 2), 4)],
)
def test_gpus_are_counted_as_the_scheduler_does(containers: tuple[int, ...], init: tuple[int, ...], gpus: int) -> None:
    spec = PodSpecView(
        containers=tuple(ContainerView(name=f"c{n}", image="a", gpus=g) for n, g in enumerate(containers)),
        init_containers=tuple(ContainerView(name=f"i{n}", image="a", gpus=g) for n, g in enumerate(init)),
        runtime_class="nvidia",
    )
    found = endpoint({"nodes": "1"}, spec=spec)
    assert (found.gpus, found.runtime_class, found.spec) == (gpus, "nvidia", spec)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (replace(SPEC, service_account="sa\tx"), "serviceAccountName 'sa x' of its pods is no name"),
        (replace(SPEC, service_account="x" * 254), "of its pods is no name"),
        (replace(SPEC, runtime_class="rc\nx"), "runtimeClassName 'rc x' of its pods is no name"),
        (
            replace(SPEC, containers=(ContainerView(name="server", image="a", gpus=1025),)),
            "a pod of it asks for 1025 GPUs, at most 1024 can be asked for",
        ),
    ],
)
def test_pods_that_nobody_could_start_are_invalid(spec: PodSpecView, told: str) -> None:
    """Not every kind's schema says what a name is, and one that a NodeWarmup refuses would keep all others out of it."""
    (problem,) = read({"nodes": "1"}, spec=spec).problems
    assert problem.kind is ProblemKind.INVALID
    assert told in problem.message


def test_no_source_rule_means_no_access() -> None:
    reading = read({"models": "s3://models/llama/8b/"}, namespace="team-b")
    assert reading.endpoint is None
    assert "namespace team-b may not use s3://models/llama/8b/" in reading.problems[0].message


def test_injection_with_models_on_the_workload_only_is_noted() -> None:
    reading = read({"models": "s3://models/llama/8b/"}, labels={"prewarm.dev/inject": "true"})
    assert [(p.kind, p.annotation) for p in reading.problems] == [
        (ProblemKind.NOTE, "prewarm.dev/models"),
        (ProblemKind.NOTE, ""),
    ]
    assert "prewarm.dev/endpoint: chat" in reading.problems[1].message
    assert reading.endpoint is not None


def test_injection_with_everything_on_the_template_is_not_noted() -> None:
    labels = {"prewarm.dev/inject": "true", "prewarm.dev/endpoint": "chat"}
    assert read({}, template={"models": "s3://models/llama/8b/"}, labels=labels).problems == ()


def test_two_workloads_with_one_key_are_both_invalid_and_others_are_not() -> None:
    label = {"prewarm.dev/endpoint": "chat"}
    works = [
        workload({"nodes": "1"}, name="chat"),
        workload({"nodes": "2"}, name="other", labels=label),
        workload({"nodes": "3"}, name="third"),
        workload(name="fourth", labels=label),
    ]
    readings = [read_endpoint(w, DEFAULTS) for w in works]
    (found,) = duplicates(readings).items()
    assert found[0] == EndpointKey(namespace="team-a", name="chat")
    assert [ref.name for ref in found[1]] == ["chat", "other"]
    refused = refuse_duplicates(readings)
    assert [r.endpoint is None for r in refused] == [True, True, False, True]
    assert "Deployment other has the key team-a.chat too" in refused[0].problems[0].message
    assert "Deployment chat has the key team-a.chat too" in refused[1].problems[0].message
    assert refused[2:] == tuple(readings[2:])


def test_the_same_name_in_two_namespaces_is_no_duplicate() -> None:
    readings = [read({"nodes": "1"}, namespace=n, spec=SPEC) for n in ("team-a", "team-b")]
    assert duplicates(readings) == {}
