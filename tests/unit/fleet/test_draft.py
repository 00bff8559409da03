"""The whole fleet's plan from workloads, nodes and versions."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource, Workload
from agent.core.assignment_json import format_assignment
from agent.core.refs import Digest, EndpointKey, ImageRef, ModelUri, parse_image_ref, parse_model_uri
from agent.core.sources import SourceRule
from agent.demand.endpoint import DemandDefaults, Predict
from agent.demand.values import MAX_ITEMS
from agent.demand.windows import MAX_WINDOWS
from agent.fleet.draft import MAX_ENDPOINTS, MAX_SPEC_BYTES, Draft, Drafter, FleetState
from agent.fleet.resolutions import Resolution, Resolutions, ResolvedModel, from_warmups
from agent.kube.events import EventType
from agent.kube.objects import (
    Condition,
    ConfigMapView,
    ContainerView,
    NodeView,
    NodeWarmupView,
    PodSpecView,
    WorkloadView,
)
from agent.kube.placeholders import Shape
from agent.kube.pull_secrets import PullFor

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
DEFAULTS = DemandDefaults(timezone="UTC", sources=(SourceRule(namespace="*", bucket="weights", prefix=""),))
URI = parse_model_uri("s3://weights/llama/")
IMAGE = parse_image_ref("registry.bed/server:1")
LLAMA = ResolvedModel(digest=Digest("sha256:" + "1" * 64), size_bytes=2_000, files=3)
SERVER = "sha256:" + "2" * 64
KNOWN = Resolutions(models={URI: Resolution(value=LLAMA)}, images={IMAGE: Resolution(value=SERVER)})
CHAT = EndpointKey(namespace="shop", name="chat")


def workload(name: str = "chat", runtime: str = "", **annotations: str) -> WorkloadView:
    written = {"models": "s3://weights/llama/", "schedule": "0 9 * * *"} | annotations
    return WorkloadView(
        api_version="apps/v1",
        kind="Deployment",
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        annotations={f"prewarm.dev/{k}": v for k, v in written.items() if v},
        spec=PodSpecView(
            containers=(ContainerView(name="server", image="registry.bed/server:1"),), runtime_class=runtime
        ),
    )


def node(name: str) -> NodeView:
    return NodeView(name=name, uid=f"uid-{name}", conditions=(Condition(type="Ready", status="True"),))


def draft(
    *workloads: WorkloadView, known: Resolutions = KNOWN, nodes: tuple[str, ...] = ("n1",), now: datetime = NOW
) -> Draft:
    state = FleetState(workloads=workloads, nodes=tuple(map(node, nodes)), resolutions=known)
    return Drafter(DEFAULTS).draft(state, now)


def foretold(hours: float, until: float, chance: int = 60) -> Window:
    """A predicted window, hours after NOW."""
    begin, end = (NOW + timedelta(hours=h) for h in (hours, until))
    return Window(ready_by=begin, until=end, source=WindowSource.PREDICTED, confidence=chance)


def predicting(predict: str, schedule: str = "", *guesses: Window) -> Draft:
    """The draft of one endpoint for which windows are foretold."""
    state = FleetState(
        workloads=(workload(predict=predict, schedule=schedule, provision="on", **{"min-scale": "apply"}),),
        nodes=(node("n1"),),
        resolutions=KNOWN,
        predicted={CHAT: guesses},
    )
    return Drafter(DEFAULTS).draft(state, NOW)


def told(found: Draft) -> list[tuple[str, str]]:
    return sorted((a.about.name, a.reason) for a in found.announcements)


def test_endpoint_goes_to_its_node_with_versions_and_windows() -> None:
    found = draft(workload())
    want = EndpointWant(
        key=CHAT,
        workload=Workload(kind="Deployment", name="chat"),
        images=(ImageWant(ref=IMAGE, digest=SERVER),),
        models=(ModelWant(name="llama", uri=URI, digest=LLAMA.digest, size_bytes=2_000, files=3),),
        windows=found.assignments["n1"].endpoints[0].windows,
    )
    assert found.assignments == {"n1": Assignment(node="n1", endpoints=(want,))}
    assert want.windows[0] == Window(ready_by=NOW + timedelta(minutes=55), until=NOW + timedelta(hours=2))
    assert found.announcements == frozenset()
    assert found.models == {URI: want.windows}
    assert found.images == {IMAGE: want.windows}


def test_predicted_windows_are_assigned_where_predict_is_on() -> None:
    guesses = (foretold(-1, 2), foretold(6, 7, 80))
    found = predicting("on", "", *guesses)
    assert found.assignments["n1"].endpoints[0].windows == found.windows[CHAT] == guesses
    assert found.models == {URI: guesses}
    assert found.scalings[0].windows == (), "pods are not raised for a guess"
    assert [p.windows for p in found.provisions] == [()], "nor are nodes brought up"


@pytest.mark.parametrize("predict", ["shadow", "off", ""])
def test_in_shadow_the_draft_is_as_without_a_forecast(predict: str) -> None:
    found = predicting(predict, "0 9 * * *", foretold(-1, 2), foretold(6, 7))
    assert found == predicting(predict, "0 9 * * *")


def test_the_setting_says_what_is_predicted_where_no_annotation_does() -> None:
    state = FleetState(
        workloads=(workload(schedule=""), workload("calm", schedule="", predict="off")),
        nodes=(node("n1"),),
        resolutions=KNOWN,
        predicted=dict.fromkeys((CHAT, replace(CHAT, name="calm")), (foretold(1, 2),)),
    )
    found = Drafter(replace(DEFAULTS, predict=Predict.ON)).draft(state, NOW)
    assert [len(e.windows) for e in found.assignments["n1"].endpoints] == [0, 1]


def test_declared_windows_come_before_predicted_ones() -> None:
    found = predicting("on", "0 9 * * *", foretold(0, 3), foretold(1, 1.5), foretold(30, 31))
    first, declared, rest, *_ = found.windows[CHAT]
    assert (declared.source, declared.ready_by) == (WindowSource.DECLARED, NOW + timedelta(minutes=55))
    assert (first, rest) == (foretold(0, 55 / 60), foretold(2, 3))
    slivers = predicting("on", "0 9 * * *", foretold(0.5, 2 + 25 / 60)).windows[CHAT]
    assert all(w.source is WindowSource.DECLARED for w in slivers), "25 minutes before, and after"
    guesses = [foretold(n / 5, n / 5 + 0.5) for n in range(MAX_WINDOWS + 50)]
    crowded = predicting("on", "0 9 * * *", *guesses).windows[CHAT]
    assert sum(w.source is WindowSource.DECLARED for w in crowded) == 3
    assert len(crowded) == MAX_WINDOWS


def test_a_guess_that_comes_too_late_is_no_miss() -> None:
    large = replace(LLAMA, size_bytes=10**13)
    state = FleetState(
        workloads=(workload(schedule="", predict="on"),),
        nodes=(node("n1"),),
        resolutions=replace(KNOWN, models={URI: Resolution(value=large)}),
        predicted={CHAT: (foretold(0.5, 2),)},
    )
    found = Drafter(DEFAULTS).draft(state, NOW)
    assert (found.misses, told(found)) == ({}, [])
    promised = Drafter(DEFAULTS).draft(replace(state, workloads=(workload(),)), NOW)
    assert told(promised) == [("chat", "CannotBeReady")]


def test_a_clock_that_is_set_back_does_not_keep_the_windows_of_the_future() -> None:
    drafter, state = Drafter(DEFAULTS), FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN)
    drafter.draft(state, NOW + timedelta(days=300))
    assert drafter.draft(state, NOW).assignments == draft(workload()).assignments


def test_every_node_has_an_assignment_and_one_of_them_the_endpoint() -> None:
    found = draft(workload(), nodes=("n1", "n2", "n3"))
    assert set(found.assignments) == {"n1", "n2", "n3"}
    assert sum(len(a.endpoints) for a in found.assignments.values()) == 1


def test_model_without_a_version_keeps_its_endpoint_unassigned_and_no_other() -> None:
    new = "s3://weights/new/"
    broken: Resolution[ResolvedModel] = Resolution(error="s3://weights/new/: no object", lasting=True)
    known = Resolutions(models={**KNOWN.models, parse_model_uri(new): broken}, images=KNOWN.images)
    found = draft(workload(), workload("other", models=new), known=known)
    assert [e.key for e in found.assignments["n1"].endpoints] == [CHAT]
    assert [(a.reason, a.message) for a in found.announcements] == [("Unresolved", "s3://weights/new/: no object")]
    assert parse_model_uri(new) in found.models


def test_model_not_asked_for_yet_is_waited_for_in_silence() -> None:
    found = draft(workload(), known=Resolutions())
    assert found.assignments["n1"].endpoints == ()
    assert found.announcements == frozenset()


def test_outage_keeps_the_known_version_without_an_event() -> None:
    known = Resolutions(models={URI: Resolution(value=LLAMA, error="s3 is away")}, images=KNOWN.images)
    found = draft(workload(), known=known)
    assert found.assignments["n1"].endpoints[0].models[0].digest == LLAMA.digest
    assert found.announcements == frozenset()


def test_image_without_a_digest_stays_by_its_tag_and_is_told() -> None:
    failed: Resolution[str] = Resolution(error="registry.bed/server:1: no such tag", lasting=True)
    found = draft(workload(), known=Resolutions(models=KNOWN.models, images={IMAGE: failed}))
    assert found.assignments["n1"].endpoints[0].images == (ImageWant(ref=IMAGE),)
    assert told(found) == [("chat", "Unresolved")]


def test_pinned_image_is_not_asked_for() -> None:
    found = draft(workload(images=f"registry.bed/side@{SERVER}"))
    side = ImageRef(host="registry.bed", repository="side", digest=SERVER)
    assert ImageWant(ref=side, digest=SERVER) in found.assignments["n1"].endpoints[0].images
    assert set(found.images) == {IMAGE}


def test_broken_annotation_is_told_and_leaves_the_other_endpoint_alone() -> None:
    alone = draft(workload())
    found = draft(workload(), workload("broken", nodes="many"))
    assert found.assignments == alone.assignments
    assert told(found) == [("broken", "Invalid")]
    about = next(iter(found.announcements)).about
    assert (about.kind, about.namespace, about.uid) == ("Deployment", "shop", "uid-broken")


def test_what_no_nodewarmup_could_hold_is_told_and_leaves_the_other_endpoint_alone() -> None:
    state = FleetState(
        workloads=(workload(), workload("odd", runtime="gpu")),
        nodes=(node("n1"),),
        handlers={"gpu": "nvidia\n"},
        resolutions=KNOWN,
    )
    found = Drafter(DEFAULTS).draft(state, NOW)
    assert [e.key.name for e in found.assignments["n1"].endpoints] == ["chat"]
    ((about, reason),) = told(found)
    assert (about, reason) == ("odd", "Invalid")


def test_unplaceable_endpoint_says_why() -> None:
    found = draft(workload(), nodes=())
    assert [(a.reason, a.message) for a in found.announcements] == [
        ("Unplaceable", "no eligible node: the cluster has none")
    ]


def test_runtime_class_becomes_its_handler() -> None:
    state = FleetState(
        workloads=(workload(runtime="gpu"),), nodes=(node("n1"),), handlers={"gpu": "nvidia"}, resolutions=KNOWN
    )
    found = Drafter(DEFAULTS).draft(state, NOW)
    assert found.assignments["n1"].endpoints[0].runtime_handler == "nvidia"


def test_note_is_a_normal_event() -> None:
    noted = workload(models="")
    noted = WorkloadView(
        api_version="apps/v1",
        kind="Deployment",
        namespace="shop",
        name="chat",
        uid="u",
        annotations=noted.annotations,
        template_labels={"prewarm.dev/inject": "true"},
        spec=noted.spec,
    )
    found = draft(noted)
    assert {(a.reason, a.type) for a in found.announcements} == {("Note", EventType.NORMAL)}


def test_deleted_workload_leaves_an_empty_assignment() -> None:
    drafter = Drafter(DEFAULTS)
    state = FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN)
    assert drafter.draft(state, NOW).assignments["n1"].endpoints
    after = drafter.draft(FleetState(nodes=(node("n1"),), resolutions=KNOWN), NOW)
    assert after.assignments == {"n1": Assignment(node="n1")}
    assert after.models == {}


def test_plan_changes_when_a_window_ends_and_not_before() -> None:
    drafter = Drafter(DEFAULTS)
    state = FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN)
    first = drafter.draft(state, NOW)
    ends = NOW + timedelta(hours=2)
    assert first.wake_at == ends - timedelta(
        hours=1, minutes=5, seconds=19, microseconds=20
    )  # the last moment to start, and one more
    assert drafter.draft(state, NOW + timedelta(minutes=55)).wake_at == ends
    assert drafter.draft(state, ends - timedelta(seconds=1)).assignments == first.assignments
    after = drafter.draft(state, ends).assignments["n1"].endpoints[0].windows
    assert all(w.until > ends for w in after)


def test_unchanged_endpoint_is_the_same_object_in_the_next_draft() -> None:
    drafter = Drafter(DEFAULTS)
    first = drafter.draft(FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN), NOW)
    again = drafter.draft(FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN), NOW)
    assert again.assignments["n1"].endpoints[0] is first.assignments["n1"].endpoints[0]


def test_changed_annotation_is_read_again() -> None:
    drafter = Drafter(DEFAULTS)
    drafter.draft(FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN), NOW)
    changed = FleetState(workloads=(workload(priority="900"),), nodes=(node("n1"),), resolutions=KNOWN)
    assert drafter.draft(changed, NOW).assignments["n1"].endpoints[0].priority == 900


def test_new_leader_knows_what_the_old_one_resolved() -> None:
    assignment = draft(workload()).assignments["n1"]
    known = from_warmups([NodeWarmupView(name="n1", assignment=assignment), NodeWarmupView(name="n2", problem="bad")])
    assert known.models == {URI: Resolution(value=LLAMA)}
    assert known.images == {IMAGE: Resolution(value=SERVER)}
    assert draft(workload(), known=known).assignments["n1"] == assignment


@pytest.mark.parametrize("newest_first", [True, False])
def test_where_the_old_leader_died_between_two_versions_the_new_one_goes_on_with_the_newer(newest_first: bool) -> None:
    newer = replace(LLAMA, digest=Digest("sha256:" + "f" * 64))
    known = replace(KNOWN, models={URI: Resolution(value=newer)})
    warmups = [
        NodeWarmupView(name=f"n{n}", assignment=draft(workload(), known=found).assignments["n1"], written_at=at)
        for n, (found, at) in enumerate([(known, NOW), (KNOWN, NOW - timedelta(seconds=1)), (KNOWN, None)])
    ]
    found = from_warmups(warmups if newest_first else reversed(warmups))
    assert found.models == {URI: Resolution(value=newer)}


def test_many_endpoints_want_a_model_for_all_their_windows() -> None:
    found = draft(workload(), workload("later", schedule="0 12 * * *"))
    uris: list[ModelUri] = list(found.models)
    assert uris == [URI]
    hours = {(w.ready_by + timedelta(minutes=5)).hour for w in found.models[URI]}
    assert hours == {9, 12}


def test_a_node_is_told_no_more_than_a_nodewarmup_holds_by_priority() -> None:
    many = [workload(f"e{n:03}", priority=str(n)) for n in range(MAX_ENDPOINTS + 2)]
    found = draft(*many)
    names = [e.key.name for e in found.assignments["n1"].endpoints]
    assert names == [f"e{n:03}" for n in range(2, MAX_ENDPOINTS + 2)]
    assert told(found) == [("e000", "Crowded"), ("e001", "Crowded")]


def test_large_endpoints_are_left_out_before_the_store_refuses_all_of_them() -> None:
    long = [f"registry.bed/{'x' * 240}{n}:1" for n in range(40)]
    many = [workload(f"e{n:03}", images=",".join(long), priority=str(n)) for n in range(MAX_ENDPOINTS)]
    found = draft(*many)
    spec = format_assignment(found.assignments["n1"])
    assert MAX_SPEC_BYTES * 0.95 < len(json.dumps(spec)) <= MAX_SPEC_BYTES
    kept = {e.key.name for e in found.assignments["n1"].endpoints}
    assert "e199" in kept
    assert {name for name, reason in told(found) if reason == "Crowded"} == {w.name for w in many} - kept


def test_limits_are_those_of_the_crd() -> None:
    crd: Any = yaml.safe_load(Path("deploy/crd.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["endpoints"]
    one = spec["items"]["properties"]
    assert spec["maxItems"] == MAX_ENDPOINTS
    assert (one["images"]["maxItems"], one["models"]["maxItems"]) == (MAX_ITEMS, MAX_ITEMS)
    assert one["windows"]["maxItems"] == MAX_WINDOWS


CHRISTMAS = ConfigMapView(namespace="prewarm", name="germany", uid="c", data={"holidays": "2026-03-03 Carnival"})


def test_a_holiday_leaves_the_windows_on_a_third_of_the_nodes_and_says_so() -> None:
    wide = workload(nodes="3")
    state = FleetState(
        workloads=(wide,), nodes=tuple(map(node, ("n1", "n2", "n3"))), resolutions=KNOWN, calendars=(CHRISTMAS,)
    )
    drafter = Drafter(DEFAULTS)
    found = drafter.draft(state, NOW)
    days = [sorted({w.ready_by.day for w in a.endpoints[0].windows}) for a in found.assignments.values()]
    assert sorted(days) == [[2, 3, 4], [2, 4], [2, 4]]
    assert [(a.reason, a.type, a.message) for a in found.announcements] == [
        (
            "Softened",
            EventType.NORMAL,
            "2026-03-03 is a holiday (Carnival): windows that start on it are kept warm on 1 of 3 nodes",
        )
    ]
    again = drafter.draft(state, NOW)
    assert all(again.assignments[n].endpoints[0] is found.assignments[n].endpoints[0] for n in again.assignments)


def test_a_holiday_takes_nothing_from_an_endpoint_of_one_node() -> None:
    state = FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN, calendars=(CHRISTMAS,))
    found = Drafter(DEFAULTS).draft(state, NOW)
    assert {w.ready_by.day for w in found.assignments["n1"].endpoints[0].windows} == {2, 3, 4}
    assert told(found) == []


def test_a_calendar_with_a_mistake_is_told_on_its_configmap_and_the_rest_of_it_holds() -> None:
    bad = ConfigMapView(
        namespace="prewarm", name="c", data={"holidays": "x\n2026-03-03 y", "events": "2026-03-02T20:00 1h z"}
    )
    state = FleetState(workloads=(workload(),), nodes=(node("n1"),), resolutions=KNOWN, calendars=(bad,))
    found = Drafter(DEFAULTS).draft(state, NOW)
    assert [(a.about.kind, a.reason) for a in found.announcements] == [("ConfigMap", "Invalid")]
    assert NOW.replace(hour=19, minute=55) in {w.ready_by for w in found.assignments["n1"].endpoints[0].windows}


def test_a_calendar_that_changes_changes_the_windows() -> None:
    drafter, nodes = Drafter(DEFAULTS), (node("n1"), node("n2"), node("n3"))
    before = FleetState(workloads=(workload(nodes="3"),), nodes=nodes, resolutions=KNOWN)
    drafter.draft(before, NOW)
    after = FleetState(workloads=before.workloads, nodes=nodes, resolutions=KNOWN, calendars=(CHRISTMAS,))
    lengths = {len(a.endpoints[0].windows) for a in drafter.draft(after, NOW).assignments.values()}
    assert len(lengths) == 2


def test_whose_pull_secrets_count_for_an_image_goes_with_it() -> None:
    spec = PodSpecView(
        containers=(ContainerView(name="server", image="registry.bed/server:1"),),
        service_account="robot",
        pull_secrets=("regcred",),
    )
    found = draft(replace(workload(), spec=spec), workload("other"))
    chat, other = found.assignments["n1"].endpoints
    assert (chat.service_account, chat.pull_secrets) == ("robot", ("regcred",))
    assert (other.service_account, other.pull_secrets) == ("", ())
    users = [
        PullFor(namespace="shop"),
        PullFor(namespace="shop", service_account="robot", secrets=("regcred",)),
    ]
    assert found.pulls == {IMAGE: tuple(users)}


def provisioned(**more: str) -> WorkloadView:
    """A workload that asks for nodes, with constraints of its own and of ours."""
    spec = PodSpecView(
        containers=(ContainerView(name="server", image="registry.bed/server:1"),),
        node_selector={"pool": "gpu", "prewarm.dev/gpu": "healthy"},
        runtime_class="nvidia",
        requests={"nvidia.com/gpu": "1"},
    )
    return replace(workload(provision="on", **more), spec=spec)


def test_what_asks_for_nodes_does_so_with_its_own_constraints_and_none_of_ours() -> None:
    (found,) = draft(provisioned(nodes="2"), workload("other")).provisions
    assert (found.key, found.nodes, found.running) == (CHAT, 2, False)
    assert found.shape == Shape(selector=(("pool", "gpu"),), requests={"nvidia.com/gpu": "1"}, runtime_class="nvidia")
    assert found.warming == timedelta(minutes=1)  # 2 GB of image, assumed, at 100 MB/s
    assert found.windows[0].ready_by == NOW + timedelta(minutes=55)
    assert draft(replace(provisioned(), running=True)).provisions[0].running
    assert draft(provisioned(nodes="all")).provisions[0].nodes == 1


def test_an_endpoint_goes_to_the_node_that_is_held_for_it_and_stays_there() -> None:
    nodes = tuple(f"n{n}" for n in range(6))
    (first,) = placed(draft(workload(), nodes=nodes))
    other = next(n for n in nodes if n != first)
    state = FleetState(workloads=(workload(),), nodes=tuple(map(node, nodes)), resolutions=KNOWN)
    holding = Drafter(DEFAULTS).draft(replace(state, held={CHAT: frozenset({other})}), NOW)
    assert placed(holding) == [other]
    written = {n: NodeWarmupView(name=n, assignment=a) for n, a in holding.assignments.items()}
    assert placed(Drafter(DEFAULTS).draft(replace(state, warmups=written), NOW)) == [other]


def placed(found: Draft) -> list[str]:
    return [name for name, a in found.assignments.items() if a.endpoints]
