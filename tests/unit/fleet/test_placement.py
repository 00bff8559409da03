from __future__ import annotations

import time
from typing import Any

import pytest

from agent.core import names
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.fleet.placement import place
from agent.kube.objects import Condition, NodeRequirement, NodeView, PodSpecView, Taint, Toleration

READY = (Condition(type="Ready", status="True"),)
REF = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="a", name="b", uid="u")
TAINT = Taint(key="dedicated", value="ml", effect="NoSchedule")


def node(name: str = "n1", *, gpus: str = "8", **more: Any) -> NodeView:
    return NodeView(name=name, **{"conditions": READY, "allocatable": {"nvidia.com/gpu": gpus}, **more})


def endpoint(name: str = "e", *, nodes: int | None = 1, gpus: int = 0, **spec: Any) -> Endpoint:
    key = EndpointKey(namespace="a", name=name)
    return Endpoint(key=key, workload=REF, nodes=nodes, gpus=gpus, spec=PodSpecView(**spec))


def need(key: str, operator: str, *values: str, on_field: bool = False) -> NodeRequirement:
    return NodeRequirement(key=key, operator=operator, values=values, on_field=on_field)


def fits(endpoint: Endpoint, node: NodeView) -> bool:
    placement = place([endpoint], [node])
    assert bool(placement.unplaced) != bool(placement.assigned[node.name])
    return bool(placement.assigned[node.name])


LABELLED = node(labels={"gpu": "a100", "cores": "64", "word": "x"})


@pytest.mark.parametrize(
    ("requirement", "fit"),
    [
        (need("gpu", "In", "h100", "a100"), True),
        (need("gpu", "In", "h100"), False),
        (need("absent", "In", ""), False),
        (need("gpu", "NotIn", "h100"), True),
        (need("gpu", "NotIn", "a100"), False),
        (need("absent", "NotIn", "a100"), True),
        (need("gpu", "Exists"), True),
        (need("absent", "Exists"), False),
        (need("gpu", "DoesNotExist"), False),
        (need("absent", "DoesNotExist"), True),
        (need("cores", "Gt", "63"), True),
        (need("cores", "Gt", "64"), False),
        (need("cores", "Lt", "65"), True),
        (need("cores", "Lt", "64"), False),
        (need("word", "Gt", "1"), False),
        (need("absent", "Lt", "1"), False),
        (need("cores", "Gt", "many"), False),
        (need("cores", "Gt"), False),
        (need("gpu", "Matches", "a100"), False),
        (need("metadata.name", "In", "n1", on_field=True), True),
        (need("metadata.name", "In", "n2", on_field=True), False),
        (need("metadata.name", "NotIn", "n1", on_field=True), False),
        (need("metadata.uid", "In", "n1", on_field=True), False),
    ],
)
def test_required_affinity_is_read_as_the_scheduler_does(requirement: NodeRequirement, fit: bool) -> None:
    assert fits(endpoint(required_terms=((requirement,),)), LABELLED) is fit


@pytest.mark.parametrize(
    ("terms", "fit"),
    [
        ((), True),
        (((need("gpu", "Exists"), need("absent", "Exists")),), False),
        (((need("absent", "Exists"),), (need("gpu", "Exists"),)), True),
        (((),), False),
        (((), (need("gpu", "Exists"),)), True),
    ],
)
def test_terms_are_ored_and_their_requirements_anded(terms: tuple[tuple[NodeRequirement, ...], ...], fit: bool) -> None:
    assert fits(endpoint(required_terms=terms), LABELLED) is fit


def test_nodes_alike_but_for_what_one_endpoint_looks_at_are_told_apart() -> None:
    nodes = [
        node("n1"),
        node("n2"),
        node("n3", taints=(TAINT,)),
        node("n4", gpus="1"),
        node("n5", labels={"zone": "z"}),
    ]
    named = endpoint("named", nodes=None, required_terms=((need("metadata.name", "In", "n2", on_field=True),),))
    zoned = endpoint("zoned", nodes=None, node_selector={"zone": "z"})
    large = endpoint("large", nodes=None, gpus=2)
    assigned = place([named, zoned, large], nodes).assigned
    assert {name: [key.name for key in keys] for name, keys in assigned.items()} == {
        "n1": ["large"],
        "n2": ["large", "named"],
        "n3": [],
        "n4": [],
        "n5": ["large", "zoned"],
    }


def test_our_own_labels_never_exclude_a_node() -> None:
    ours = (need("endpoint.prewarm.dev/a.e", "In", "ready"), need("prewarm.dev/gpu", "In", "healthy"))
    assert fits(endpoint(required_terms=(ours,)), LABELLED)
    assert fits(endpoint(required_terms=((*ours, need("gpu", "In", "a100")),)), LABELLED)
    assert not fits(endpoint(required_terms=((*ours, need("gpu", "In", "h100")),)), LABELLED)
    assert fits(endpoint(required_terms=(ours, (need("gpu", "In", "h100"),))), LABELLED)
    assert fits(endpoint(node_selector={"prewarm.dev/gpu": "healthy"}), LABELLED)


def test_the_node_selector_must_match() -> None:
    assert fits(endpoint(node_selector={"gpu": "a100", "cores": "64"}), LABELLED)
    assert not fits(endpoint(node_selector={"gpu": "a100", "cores": "32"}), LABELLED)
    assert not fits(endpoint(node_selector={"absent": ""}), LABELLED)


@pytest.mark.parametrize(
    ("taint", "toleration", "fit"),
    [
        (TAINT, None, False),
        (Taint(key="dedicated", value="ml", effect="NoExecute"), None, False),
        (Taint(key="dedicated", value="ml", effect="PreferNoSchedule"), None, True),
        (TAINT, Toleration(key="dedicated", value="ml"), True),
        (TAINT, Toleration(key="dedicated", operator="", value="ml", effect="NoSchedule"), True),
        (TAINT, Toleration(key="dedicated", value="web"), False),
        (TAINT, Toleration(key="dedicated", value="ml", effect="NoExecute"), False),
        (TAINT, Toleration(key="dedicated", operator="Exists"), True),
        (TAINT, Toleration(key="other", operator="Exists"), False),
        (TAINT, Toleration(operator="Exists"), True),
        (TAINT, Toleration(operator="Equal"), False),
        (Taint(key="prewarm.dev/not-ready", effect="NoSchedule"), None, True),
        (Taint(key="node.kubernetes.io/disk-pressure", effect="NoSchedule"), None, False),
        (Taint(key="node.kubernetes.io/not-ready", effect="NoExecute"), Toleration(operator="Exists"), False),
        (Taint(key="node.kubernetes.io/unreachable", effect="NoSchedule"), Toleration(operator="Exists"), False),
    ],
)
def test_taints_are_read_as_the_scheduler_does(taint: Taint, toleration: Toleration | None, fit: bool) -> None:
    assert fits(endpoint(tolerations=(toleration,) if toleration else ()), node(taints=(taint,))) is fit


@pytest.mark.parametrize(
    ("allocatable", "gpus", "fit"), [("2", 2, True), ("1", 2, False), ("", 1, False), ("0", 0, True), ("1k", 1, False)]
)
def test_gpus_must_be_allocatable(allocatable: str, gpus: int, fit: bool) -> None:
    assert fits(endpoint(gpus=gpus), node(gpus=allocatable)) is fit


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        ({"unschedulable": True}, "1 cordoned"),
        ({"deleting": True}, "1 being deleted"),
        ({"conditions": ()}, "1 not Ready"),
        ({"taints": (Taint(key="karpenter.sh/disrupted", effect="NoSchedule"),)}, "1 about to go away"),
        ({"taints": (Taint(key="ToBeDeletedByClusterAutoscaler", effect="NoSchedule"),)}, "1 about to go away"),
        ({"taints": (Taint(key="aws-node-termination-handler/spot-itn", effect="NoSchedule"),)}, "1 about to go away"),
    ],
)
def test_closed_nodes_get_nothing(closed: dict[str, Any], told: str) -> None:
    placement = place([endpoint()], [node(**closed)])
    assert placement.assigned == {"n1": ()}
    assert placement.unplaced == {endpoint().key: f"no eligible node: {told}"}


def test_the_reason_counts_what_excludes_how_many() -> None:
    nodes = [
        *(node(f"plain{n}") for n in range(3)),
        *(node(f"tainted{n}", labels={"gpu": "a100"}, taints=(TAINT,)) for n in range(2)),
        node("small", labels={"gpu": "a100"}, gpus="1"),
        node("closed", unschedulable=True),
    ]
    placement = place([endpoint(gpus=2, node_selector={"gpu": "a100"})], nodes)
    assert placement.unplaced[endpoint().key] == (
        "no eligible node: 3 without label gpu=a100, 2 tainted dedicated=ml:NoSchedule, 1 cordoned, "
        "1 with fewer than 2 nvidia.com/gpu"
    )


def test_the_reason_names_a_single_requirement_and_stays_short() -> None:
    one = place([endpoint(required_terms=((need("zone", "In", "z1", "z2"),),))], [node()])
    assert list(one.unplaced.values()) == ["no eligible node: 1 not matching zone In [z1, z2]"]
    two = place([endpoint(required_terms=((need("a", "Exists"), need("b", "Exists")),))], [node()])
    assert list(two.unplaced.values()) == ["no eligible node: 1 outside the required node affinity"]
    many = place([endpoint()], [node(f"n{n}", taints=(Taint(key=f"t{n}", effect="NoSchedule"),)) for n in range(9)])
    assert next(iter(many.unplaced.values())).endswith("1 tainted t4:NoSchedule, 4 for other reasons")


def test_without_nodes_everything_is_unplaced() -> None:
    assert place([endpoint()], []).unplaced == {endpoint().key: "no eligible node: the cluster has none"}


def test_a_node_that_went_away_keeps_what_it_had_besides_the_one_chosen_instead() -> None:
    nodes = [node("n1"), node("n2")]
    before = place([endpoint()], nodes).assigned
    (holder,) = [name for name, keys in before.items() if keys]
    (other,) = [name for name, keys in before.items() if not keys]
    gone: dict[str, Any] = {"conditions": (Condition(type="Ready", status="Unknown"),)}
    after = place([endpoint()], [node(n, **(gone if n == holder else {})) for n in ("n1", "n2")], before)
    assert after.assigned == {holder: (endpoint().key,), other: (endpoint().key,)}
    assert place([endpoint()], nodes, after.assigned).assigned == before


@pytest.mark.parametrize("ready", ["n1", "n2"])
def test_of_a_node_that_returns_and_the_one_chosen_instead_the_one_that_is_ready_keeps_the_endpoint(ready: str) -> None:
    claim = {names.endpoint_label("a", "e"): names.READY}
    nodes = [node(name, labels=claim if name == ready else {}) for name in ("n1", "n2", "n3")]
    both = {"n1": (endpoint().key,), "n2": (endpoint().key,)}
    assert [name for name, keys in place([endpoint()], nodes, both).assigned.items() if keys] == [ready]


def test_a_node_that_went_away_does_not_keep_an_endpoint_that_is_gone() -> None:
    away = node(conditions=())
    assert place([], [away], {"n1": (endpoint().key,)}).assigned == {"n1": ()}


def test_a_cordoned_node_keeps_nothing() -> None:
    assert place([endpoint()], [node(unschedulable=True)], {"n1": (endpoint().key,)}).assigned == {"n1": ()}


def test_unhealthy_gpus_come_last_for_endpoints_that_need_gpus() -> None:
    sick = [node(f"s{n}", labels={"prewarm.dev/gpu": "unhealthy"}) for n in range(20)]
    well = node("well", labels={"prewarm.dev/gpu": "healthy"})
    placement = place([endpoint(f"e{n}", gpus=1) for n in range(20)], [*sick, well])
    assert len(placement.assigned["well"]) == 20
    assert sum(map(len, place([endpoint(nodes=3, gpus=1)], [*sick, well]).assigned.values())) == 3
    assert len(place([endpoint(f"e{n}") for n in range(20)], [*sick, well]).assigned["well"]) < 20
    assert not place([endpoint(gpus=1)], sick).unplaced


def test_the_choice_never_changes_between_versions() -> None:
    nodes = [node(f"node-{n}") for n in range(50)]
    placement = place([endpoint("chat"), endpoint("code", nodes=2)], nodes)
    chosen = {name: [k.name for k in keys] for name, keys in placement.assigned.items() if keys}
    assert chosen == {"node-21": ["code"], "node-43": ["chat"], "node-6": ["code"]}


def test_a_large_fleet_is_placed_within_the_planners_budget() -> None:
    taint = Taint(key="nvidia.com/gpu", effect="NoSchedule")
    nodes = [
        node(
            f"node-{n}.pool",
            labels={"kubernetes.io/hostname": f"node-{n}", "zone": f"z{n % 3}"},
            taints=(taint,) if n % 2 else (),
        )
        for n in range(5000)
    ]
    endpoints = [
        endpoint(
            f"e{n}",
            nodes=2,
            gpus=1 + n % 8,
            required_terms=(
                (need("zone", "In", "z1", f"z{n % 3}"), need(f"endpoint.prewarm.dev/a.e{n}", "In", "ready")),
            ),
            tolerations=(
                Toleration(key="nvidia.com/gpu", operator="Exists"),
                Toleration(key=f"t{n}", operator="Exists"),
            ),
        )
        for n in range(1000)
    ]
    begin = time.process_time()
    placement = place(endpoints, nodes)
    assert time.process_time() - begin < 15  # 5 is what bench.fleet asks of a quiet machine
    assert sum(map(len, placement.assigned.values())) == 2000
