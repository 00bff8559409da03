"""Readiness over all inventories: no claim without proof, and losing proof never adds one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window
from agent.core.inventory import (
    GpuReport,
    GpuVerdict,
    ImageLevel,
    ImageState,
    Inventory,
    ModelLevel,
    ModelState,
)
from agent.core.names import endpoint_label
from agent.core.refs import Digest, EndpointKey, parse_image_ref, parse_model_uri
from agent.node.readiness import Readiness, TaintWish, readiness
from tests.fakes.virtual_time import START

DIGESTS = [Digest("sha256:" + c * 64) for c in "abc"]
IMAGES = [parse_image_ref(f"r.local/i:{n}") for n in range(3)]
URIS = [parse_model_uri(f"s3://bucket/m{n}/") for n in range(3)]

image_wants = st.builds(ImageWant, ref=st.sampled_from(IMAGES), digest=st.sampled_from(["", *DIGESTS]))
model_wants = st.builds(
    ModelWant, name=st.sampled_from(["m", "n"]), uri=st.sampled_from(URIS), digest=st.sampled_from([None, *DIGESTS])
)
windows = st.integers(-7200, 7200).map(
    lambda s: Window(ready_by=START + timedelta(seconds=s), until=START + timedelta(seconds=s + 3600))
)
keys = st.builds(
    EndpointKey, namespace=st.sampled_from(["a", "b"]), name=st.text(min_size=1, max_size=70) | st.just("x")
)
endpoints = st.builds(
    EndpointWant,
    key=keys,
    gpus=st.integers(0, 8),
    images=st.lists(image_wants, max_size=2).map(tuple),
    models=st.lists(model_wants, max_size=2).map(tuple),
    windows=st.lists(windows, max_size=2).map(tuple),
)
assignments = st.none() | st.builds(
    Assignment, endpoints=st.lists(endpoints, max_size=4, unique_by=lambda e: e.key).map(tuple)
)
image_states = st.fixed_dictionaries(
    {},
    optional={
        r: st.builds(
            ImageState, ref=st.just(r), level=st.sampled_from(ImageLevel), digest=st.sampled_from(["", *DIGESTS])
        )
        for r in IMAGES
    },
)
model_states = st.fixed_dictionaries(
    {}, optional={d: st.builds(ModelState, digest=st.just(d), level=st.sampled_from(ModelLevel)) for d in DIGESTS}
)
inventories = st.builds(
    Inventory,
    boot_id=st.sampled_from(["", "boot"]),
    images=image_states,
    models=model_states,
    resolved=st.dictionaries(st.sampled_from([str(u) for u in URIS]), st.sampled_from(DIGESTS)),
    gpu=st.builds(
        GpuReport,
        verdict=st.sampled_from(GpuVerdict),
        reason=st.text(max_size=20),
        alone=st.none() | st.sampled_from(GpuVerdict),
        together=st.none() | st.sampled_from(GpuVerdict),
        usable=st.none() | st.integers(0, 8),
    ),
    proved=st.booleans(),
)
settings = st.sampled_from(["gpu", "windows", "off"])


def claims(found: Readiness) -> set[str]:
    """What anyone could act on as good news."""
    good = {k for k, v in found.labels.items() if v in ("ready", "healthy")}
    good |= {c.type for c in found.conditions if c.status == "True" and c.reason in ("Healthy", "AllWarm")}
    return good | ({"lift"} if found.taint is TaintWish.LIFT else set())


@st.composite
def poorer(draw: st.DrawFn) -> tuple[Inventory, Inventory]:
    """An inventory, and the same with one proof lost."""
    rich = draw(inventories)
    losses = [replace(rich, proved=False), replace(rich, gpu=GpuReport(verdict=GpuVerdict.UNKNOWN))]
    losses.append(replace(rich, gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY)))
    for ref, image in rich.images.items():
        losses.append(replace(rich, images={**rich.images, ref: replace(image, level=ImageLevel.PRESENT)}))
        losses.append(replace(rich, images={k: v for k, v in rich.images.items() if k != ref}))
    for digest, model in rich.models.items():
        losses.append(replace(rich, models={**rich.models, digest: replace(model, level=ModelLevel.PARTIAL)}))
        losses.append(replace(rich, models={k: v for k, v in rich.models.items() if k != digest}))
    losses += [replace(rich, resolved={k: v for k, v in rich.resolved.items() if k != gone}) for gone in rich.resolved]
    return rich, draw(st.sampled_from(losses))


@given(assignments, poorer(), settings)
def test_losing_any_proof_never_adds_a_claim(
    assignment: Assignment | None, pair: tuple[Inventory, Inventory], lift_taint: str
) -> None:
    rich, poor = (claims(readiness(assignment, i, START, lift_taint=lift_taint)) for i in pair)
    assert poor <= rich


@given(assignments, inventories, settings)
def test_no_endpoint_is_ready_without_proof_of_all_of_it(
    assignment: Assignment | None, inventory: Inventory, lift_taint: str
) -> None:
    found = readiness(assignment, inventory, START, lift_taint=lift_taint)
    by_label = {endpoint_label(e.key.namespace, e.key.name): e for e in (assignment.endpoints if assignment else ())}
    for label in found.labels.keys() - {"prewarm.dev/gpu"}:
        want = by_label[label]
        assert inventory.proved
        assert want.images or want.models
        assert want.gpus == 0 or inventory.gpu.verdict_for(want.gpus) is GpuVerdict.HEALTHY
        for image in want.images:
            state = inventory.images[image.ref]
            assert state.level in (ImageLevel.UNPACKED, ImageLevel.LAZY, ImageLevel.HYDRATED)
            assert image.digest in ("", state.digest)
        for model in want.models:
            digest = model.digest or inventory.resolved[str(model.uri)]
            assert inventory.models[digest].level in (ModelLevel.COMMITTED, ModelLevel.RESIDENT)


@given(assignments, inventories, settings)
def test_it_is_deterministic_and_every_label_has_one_sentence(
    assignment: Assignment | None, inventory: Inventory, lift_taint: str
) -> None:
    found = readiness(assignment, inventory, START, lift_taint=lift_taint)
    assert found == readiness(assignment, inventory, START, lift_taint=lift_taint)
    asked = {endpoint_label(e.key.namespace, e.key.name) for e in (assignment.endpoints if assignment else ())}
    assert set(found.reasons) == asked | {"prewarm.dev/gpu"}
    assert all(reason and reason.isprintable() for reason in found.reasons.values())
    assert found.labels.keys() <= found.reasons.keys()
    if inventory.proved and inventory.gpu.verdict is not GpuVerdict.UNKNOWN and assignment is not None:
        assert found.undecided == frozenset()
