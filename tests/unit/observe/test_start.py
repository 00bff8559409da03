"""Phases of one pod's start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant
from agent.core.inventory import ImageLevel, ImageState, Inventory, ModelLevel, ModelState
from agent.core.names import node_pool
from agent.core.refs import Digest, EndpointKey, parse_image_ref, parse_model_uri
from agent.core.starts import Starts
from agent.kube.objects import Condition, ContainerStatusView, ContainerView, PodSpecView, PodView
from agent.observe.start import (
    Measure,
    Outcome,
    Phase,
    Start,
    advance,
    answer,
    begin,
    endpoint_of,
    metrics_targets,
    seen_too_late,
    serving_container,
    size_class,
    starting_models,
)

T0 = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
KEY = EndpointKey(namespace="shop", name="chat")
IMAGE = parse_image_ref("registry.example/vllm:1")
DIGEST = Digest("sha256:" + "a" * 64)
MODEL = ModelWant(name="m", uri=parse_model_uri("s3://models/m/"), digest=DIGEST, size_bytes=15 * 10**9)
WANT = EndpointWant(key=KEY, images=(ImageWant(ref=IMAGE),), models=(MODEL,))
ASSIGNMENT = Assignment(endpoints=(WANT,))
WARM = Inventory(
    proved=True,
    images={IMAGE: ImageState(ref=IMAGE, level=ImageLevel.UNPACKED)},
    models={DIGEST: ModelState(digest=DIGEST, level=ModelLevel.COMMITTED)},
)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def pod(
    *,
    started: float | None = None,
    ready: float | None = None,
    restarts: int = 0,
    phase: str = "Pending",
    deleting: bool = False,
) -> PodView:
    return PodView(
        namespace="shop",
        name="chat-5d8-x",
        uid="u1",
        labels={"prewarm.dev/endpoint": "chat"},
        created=T0,
        phase=phase,
        deleting=deleting,
        spec=PodSpecView(containers=(ContainerView(name="server", image=str(IMAGE), ports=(8000,)),)),
        conditions=() if ready is None else (Condition(type="Ready", status="True", since=at(ready)),),
        containers=(
            ContainerStatusView(name="server", restarts=restarts, started_at=None if started is None else at(started)),
        ),
    )


def fresh(inventory: Inventory = WARM) -> Start:
    start = begin(pod(), ASSIGNMENT, inventory, {})
    assert start is not None
    return start


def measured(*measures: Measure) -> dict[Phase, tuple[float, Outcome]]:
    assert len({m.phase for m in measures}) == len(measures)
    return {m.phase: (m.seconds, m.outcome) for m in measures}


def test_a_start_that_goes_well_has_each_phase_once() -> None:
    start, none = advance(fresh(), pod(), at(1))
    assert none == ()
    start, none = advance(start, pod(started=20), at(20.4))
    assert (none, start.to_ask) == ((), True)
    start, two = advance(start, pod(started=20, ready=65), at(66))
    assert measured(*two) == {Phase.IMAGE_PULL: (20, Outcome.OK), Phase.MODEL_LOAD: (45, Outcome.OK)}
    assert advance(start, pod(started=20, ready=65), at(67)) == (start, ())
    start, one = answer(start, at(70.5))
    assert measured(*one) == {Phase.TOTAL: (70.5, Outcome.OK)}
    assert (start.over, answer(start, at(80)), advance(start, None, at(90))) == (True, (start, ()), (start, ()))


def test_an_answer_before_ready_waits_for_ready() -> None:
    start, _ = advance(fresh(), pod(started=20), at(20))
    start, none = answer(start, at(30.5))
    assert (none, start.to_ask) == ((), False)
    start, three = advance(start, pod(started=20, ready=31), at(31))
    assert measured(*three)[Phase.TOTAL] == (30.5, Outcome.OK)
    assert (len(three), start.over) == (3, True)


@pytest.mark.parametrize(
    ("pods", "inventory", "pending", "loading"),
    [
        ([pod(), replace(pod(), uid="u2")], WARM, {("u1", DIGEST), ("u2", DIGEST)}, {DIGEST}),
        ([pod(phase="Running", started=1)], WARM, set(), {DIGEST}),
        ([pod(phase="Running", started=1, ready=2)], WARM, set(), set()),
        ([pod(deleting=True)], WARM, set(), set()),
        ([pod(phase="Failed")], WARM, set(), set()),
        ([pod()], Inventory(proved=True), set(), set()),  # not here yet: whoever waits for it is a download's business
        ([replace(pod(), namespace="other")], WARM, set(), set()),  # its name is not an endpoint's there
        ([], WARM, set(), set()),
    ],
)
def test_models_of_pods_that_start_are_those_of_pods_not_ready_yet(
    pods: list[PodView], inventory: Inventory, pending: set[tuple[str, Digest]], loading: set[Digest]
) -> None:
    found = starting_models(pods, ASSIGNMENT, inventory)
    assert found == Starts(pending=frozenset(pending), loading=frozenset(loading))
    assert starting_models(pods, None, inventory) == Starts()


def test_times_of_whole_seconds_never_give_negative_phases() -> None:
    start, _ = advance(fresh(), pod(started=-1), at(0.2))
    _, two = advance(start, pod(started=-1, ready=-1), at(0.4))
    assert measured(*two) == {Phase.IMAGE_PULL: (0, Outcome.OK), Phase.MODEL_LOAD: (0, Outcome.OK)}


def test_a_pod_that_nobody_asks_has_no_total() -> None:
    start, _ = advance(fresh(), pod(started=1), at(1))
    start, _ = advance(start, pod(started=1, ready=5), at(5))
    start, none = advance(start, pod(started=1, ready=5), at(604))
    assert (none, start.over) == ((), False)
    start, none = advance(start, pod(started=1, ready=5), at(606))
    assert (none, start.over) == ((), True)


def test_a_pod_without_a_metrics_port_has_no_total() -> None:
    start, _ = advance(replace(fresh(), targets=()), pod(started=1), at(1))
    assert start.to_ask is False
    start, two = advance(start, pod(started=1, ready=2), at(2))
    assert (len(two), advance(start, pod(started=1, ready=2), at(3))[0].over) == (2, True)


def test_a_container_that_ends_before_ready_failed() -> None:
    start, _ = advance(fresh(), pod(started=20), at(20))
    start, three = advance(start, pod(restarts=1), at(30))
    assert measured(*three) == {
        Phase.IMAGE_PULL: (20, Outcome.FAILED),
        Phase.MODEL_LOAD: (10, Outcome.FAILED),
        Phase.TOTAL: (30, Outcome.FAILED),
    }
    assert advance(start, pod(started=40, ready=50, restarts=1), at(50)) == (start, ())


def test_a_pod_deleted_before_it_started_has_no_load() -> None:
    start, two = advance(fresh(), None, at(7))
    assert measured(*two) == {Phase.IMAGE_PULL: (7, Outcome.NEVER_READY), Phase.TOTAL: (7, Outcome.NEVER_READY)}
    assert start.over


def test_a_failed_pod_failed_and_one_deleted_while_loading_was_never_ready() -> None:
    start, _ = advance(fresh(), pod(started=1), at(1))
    assert {m.outcome for m in advance(start, pod(phase="Failed"), at(2))[1]} == {Outcome.FAILED}
    assert {m.outcome for m in advance(start, pod(started=1, deleting=True), at(2))[1]} == {Outcome.NEVER_READY}


def test_a_restart_after_ready_drops_the_total() -> None:
    start, _ = advance(fresh(), pod(started=1), at(1))
    start, _ = advance(start, pod(started=1, ready=5), at(5))
    start, none = advance(start, pod(started=20, restarts=1), at(20))
    assert (none, start.over) == ((), True)


@pytest.mark.parametrize(
    ("images", "models", "expected"),
    [(True, True, "both"), (True, False, "image"), (False, True, "weights"), (False, False, "cold")],
)
def test_the_warm_level_is_what_was_proved_when_the_pod_appeared(images: bool, models: bool, expected: str) -> None:
    inventory = replace(WARM, images=WARM.images if images else {}, models=WARM.models if models else {})
    assert fresh(inventory).labels.warm == expected


def test_before_the_first_proof_nobody_knows_how_warm_the_node_is() -> None:
    assert fresh(replace(WARM, proved=False)).labels.warm == "unknown"


def test_partial_levels_are_not_warm() -> None:
    inventory = Inventory(
        proved=True,
        images={IMAGE: ImageState(ref=IMAGE, level=ImageLevel.PRESENT)},
        models={DIGEST: ModelState(digest=DIGEST, level=ModelLevel.PARTIAL)},
    )
    assert fresh(inventory).labels.warm == "cold"


def test_an_endpoint_without_models_is_warm_by_its_image_alone() -> None:
    start = begin(pod(), Assignment(endpoints=(replace(WANT, models=()),)), WARM, {})
    assert start
    assert (start.labels.warm, start.labels.size_class) == ("image", "none")


def test_a_pod_of_an_endpoint_warmed_elsewhere_is_cold_and_of_unknown_size() -> None:
    start = begin(pod(), None, Inventory(proved=True), {"node.kubernetes.io/instance-type": "p5"})
    assert start
    assert (start.labels.warm, start.labels.size_class, start.labels.node_pool) == ("cold", "unknown", "p5")


def test_the_models_size_is_taken_from_the_store_where_the_want_has_none() -> None:
    unsized = Assignment(endpoints=(replace(WANT, models=(replace(MODEL, size_bytes=0),)),))
    state = ModelState(digest=DIGEST, total_bytes=50 * 10**9)
    sized = begin(pod(), unsized, Inventory(models={DIGEST: state}), {})
    unknown = begin(pod(), unsized, Inventory(), {})
    assert sized
    assert unknown
    assert (sized.labels.size_class, unknown.labels.size_class) == ("40-100GB", "unknown")


@pytest.mark.parametrize(
    ("size_gb", "expected"),
    [
        (0, "none"),
        (1, "<10GB"),
        (10, "10-40GB"),
        (40, "40-100GB"),
        (100, "100-200GB"),
        (200, ">200GB"),
        (900, ">200GB"),
    ],
)
def test_size_classes(size_gb: int, expected: str) -> None:
    assert size_class(size_gb * 10**9) == expected


def test_the_node_pool_is_the_first_label_that_names_one() -> None:
    assert node_pool({"node.kubernetes.io/instance-type": "p5", "karpenter.sh/nodepool": "gpu"}) == "gpu"
    assert node_pool({"eks.amazonaws.com/nodegroup": "", "other": "x"}) == "none"


def test_the_endpoint_of_a_pod_comes_from_its_label_or_its_owner() -> None:
    bare = replace(pod(), labels={})
    assert endpoint_of(pod(), None) == (KEY, None)
    assert endpoint_of(pod(), ASSIGNMENT) == (KEY, WANT)
    assert endpoint_of(bare, ASSIGNMENT) is None
    assert endpoint_of(replace(bare, owner_kind="StatefulSet", owner_name="chat"), ASSIGNMENT) == (KEY, WANT)
    hashed = replace(bare, owner_kind="ReplicaSet", owner_name="chat-5d8", labels={"pod-template-hash": "5d8"})
    assert endpoint_of(hashed, ASSIGNMENT) == (KEY, WANT)
    assert endpoint_of(replace(hashed, namespace="other"), ASSIGNMENT) is None
    annotated = replace(hashed, annotations={"prewarm.dev/models": "s3://b/m/"})
    assert endpoint_of(annotated, None) == (KEY, None)


def test_the_serving_container_is_annotated_or_probed_or_first() -> None:
    spec = PodSpecView(
        containers=(
            ContainerView(name="proxy", image="p"),
            ContainerView(name="server", image="s", has_readiness_probe=True),
            ContainerView(name="other", image="o"),
        )
    )
    many = replace(pod(), spec=spec)
    assert serving_container(many, replace(WANT, container="other")) == "other"
    assert serving_container(many, WANT) == "server"
    assert serving_container(many, replace(WANT, container="gone")) == "server"
    assert serving_container(pod(), None) == "server"


def test_metrics_are_found_by_want_then_annotation_then_ports() -> None:
    annotated = replace(pod(), annotations={"prometheus.io/port": "9000", "prometheus.io/path": "/stats"})
    assert metrics_targets(annotated, replace(WANT, metrics="8002/metrics"), "server") == ((8002, "/metrics"),)
    assert metrics_targets(annotated, WANT, "server") == ((9000, "/stats"),)
    assert metrics_targets(pod(), WANT, "server") == ((8000, "/metrics"),)
    for port in ("99999999999", "0", "000001" + "9" * 5000, "9" * 5000, "٣"):
        bad = replace(pod(), annotations={"prometheus.io/port": port})
        assert metrics_targets(bad, None, "server") == ((8000, "/metrics"),)


def test_a_pod_that_already_ran_is_not_measured() -> None:
    start = fresh()
    running = pod(started=1)
    assert seen_too_late(start, running, at(2), first_listing=True)
    assert not seen_too_late(start, running, at(2), first_listing=False)
    assert seen_too_late(start, running, at(60), first_listing=False)
    assert seen_too_late(start, pod(restarts=1), at(2), first_listing=False)
    assert not seen_too_late(start, pod(), at(600), first_listing=True)


@pytest.mark.parametrize(
    "other", [pod(deleting=True), pod(phase="Succeeded"), replace(pod(), created=None), replace(pod(), labels={})]
)
def test_pods_that_are_no_start(other: PodView) -> None:
    assert begin(other, None, WARM, {}) is None


def test_pods_that_controllers_of_other_kinds_made_belong_to_the_workload_people_wrote() -> None:
    bare = replace(pod(), owner_kind="ReplicaSet", owner_name="chat-00001-deployment-5d8")
    for label in ("serving.knative.dev/service", "leaderworkerset.sigs.k8s.io/name"):
        assert endpoint_of(replace(bare, labels={"pod-template-hash": "5d8", label: "chat"}), ASSIGNMENT) == (KEY, WANT)
    kserve = {"serving.kserve.io/inferenceservice": "chat", "serving.knative.dev/service": "chat-predictor"}
    assert endpoint_of(replace(bare, labels=kserve), ASSIGNMENT) == (KEY, WANT)
    assert endpoint_of(replace(bare, labels={**kserve, "component": "transformer"}), ASSIGNMENT) is None
