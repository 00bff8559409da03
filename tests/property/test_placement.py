"""Placement over any fleet: order does not matter, little moves, load spreads, and nothing eligible is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.fleet.eligibility import Needs, closed, exclusion
from agent.fleet.placement import place
from agent.kube.objects import NodeView, Taint, Toleration
from tests.unit.fleet.test_placement import READY, TAINT, endpoint, need, node

LABELS = st.dictionaries(st.sampled_from(["gpu", "zone"]), st.sampled_from(["a", "b"]), max_size=2)
NODE = st.builds(
    lambda name, labels, taints, cordoned, ready, gpus: node(
        f"n{name}",
        labels=labels,
        taints=taints,
        unschedulable=cordoned,
        conditions=READY if ready else (),
        gpus=str(gpus),
    ),
    st.integers(0, 99),
    LABELS,
    st.sampled_from([(), (), (TAINT,), (Taint(key="prewarm.dev/not-ready", effect="NoSchedule"),)]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([True, True, True, False]),
    st.integers(0, 2),
)
NODES = st.lists(NODE, max_size=15, unique_by=lambda n: n.name)
ENDPOINT = st.builds(
    lambda name, nodes, gpus, selector, terms, tolerations: endpoint(
        f"e{name}", nodes=nodes, gpus=gpus, node_selector=selector, required_terms=terms, tolerations=tolerations
    ),
    st.integers(0, 99),
    st.none() | st.integers(1, 4),
    st.integers(0, 2),
    LABELS,
    st.sampled_from(
        [
            (),
            ((need("zone", "Exists"),),),
            ((need("zone", "NotIn", "a"),), (need("metadata.name", "In", "n1", on_field=True),)),
        ]
    ),
    st.sampled_from([(), (Toleration(key="dedicated", operator="Exists"),)]),
)
ENDPOINTS = st.lists(ENDPOINT, max_size=10, unique_by=lambda e: e.key)


def holders(assigned: Mapping[str, tuple[EndpointKey, ...]], key: EndpointKey) -> set[str]:
    return {name for name, keys in assigned.items() if key in keys}


def eligible(of: Endpoint, nodes: list[NodeView]) -> set[str]:
    return {n.name for n in nodes if not closed(n) and not exclusion(n, Needs.of(of.spec, of.gpus))}


@given(ENDPOINTS, NODES)
def test_each_endpoint_gets_as_many_eligible_nodes_as_it_asks_for(
    endpoints: list[Endpoint], nodes: list[NodeView]
) -> None:
    placement = place(endpoints, nodes)
    assert set(placement.assigned) == {n.name for n in nodes}
    for each in endpoints:
        can, has = eligible(each, nodes), holders(placement.assigned, each.key)
        assert has <= can
        assert len(has) == len(can) if each.nodes is None else len(has) == min(each.nodes, len(can))
        assert (each.key in placement.unplaced) == (not can)
    assert all(why.startswith("no eligible node: ") for why in placement.unplaced.values())


@given(ENDPOINTS, NODES, st.randoms())
def test_the_order_of_endpoints_and_nodes_does_not_matter(
    endpoints: list[Endpoint], nodes: list[NodeView], rng: Random
) -> None:
    before = place(endpoints, nodes)
    turned = rng.sample(endpoints, len(endpoints)), rng.sample(nodes, len(nodes))
    assert place(*turned) == before


@given(ENDPOINTS, NODES, ENDPOINT)
def test_another_endpoint_moves_nobody(endpoints: list[Endpoint], nodes: list[NodeView], other: Endpoint) -> None:
    before, after = place(endpoints, nodes), place([*(e for e in endpoints if e.key != other.key), other], nodes)
    for each in endpoints:
        if each.key != other.key:
            assert holders(after.assigned, each.key) == holders(before.assigned, each.key)


@given(ENDPOINTS, NODES, NODE)
def test_a_node_that_joins_or_leaves_moves_at_most_one_place_of_each_endpoint(
    endpoints: list[Endpoint], nodes: list[NodeView], joining: NodeView
) -> None:
    without = [n for n in nodes if n.name != joining.name]
    less, more = place(endpoints, without), place(endpoints, [*without, joining])
    for each in endpoints:
        before, after = holders(less.assigned, each.key), holders(more.assigned, each.key)
        assert after - before <= {joining.name}
        assert len(before - after) <= (1 if joining.name in after else 0)


def test_endpoints_spread_evenly_and_a_node_that_leaves_gives_up_only_its_own() -> None:
    nodes = [node(f"ip-10-0-0-{n}.ec2.internal") for n in range(40)]
    endpoints = [endpoint(f"team-{n}") for n in range(4000)]
    full = place(endpoints, nodes).assigned
    counts = Counter({name: len(keys) for name, keys in full.items()})
    assert min(counts.values()) > 60
    assert max(counts.values()) < 145
    gone = nodes[17].name
    rest = place(endpoints, [n for n in nodes if n.name != gone]).assigned
    assert all(set(full[name]) <= set(rest[name]) for name in rest)
    taken = Counter({name: len(set(rest[name]) - set(full[name])) for name in rest})
    assert sum(taken.values()) == counts[gone]
    assert max(taken.values()) < counts[gone] / 4
