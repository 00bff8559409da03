"""Annotations of a workload -> the endpoint it declares, with every mistake told at once. Pure; never raises on bad text.

One endpoint's mistakes never touch another: the caller shows `problems` as Events on the workload and goes on.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from agent.core.errors import Invalid, cut
from agent.core.names import LABEL_ENDPOINT_NAME, LABEL_INJECT, OBJECT_NAME, PREFIX
from agent.core.refs import EndpointKey, ImageRef, ModelSource, endpoint_key, parse_image_ref, parse_model_source
from agent.core.sources import source_allowed, source_refusal
from agent.demand import values
from agent.demand.endpoint import (
    DEFAULT_LEAD,
    DEFAULT_PRIORITY,
    DEFAULT_REPLICAS,
    DEFAULT_WINDOW,
    DemandDefaults,
    Endpoint,
    EndpointReading,
    MinScale,
    Problem,
    ProblemKind,
    Schedule,
    WorkloadRef,
)
from agent.kube.objects import PodSpecView, WorkloadView

T = TypeVar("T")
U = TypeVar("U")

KEYS: tuple[str, ...] = (
    "models",
    "layout",
    "schedule",
    "timezone",
    "window",
    "lead",
    "predict",
    "history",
    "nodes",
    "images",
    "memory",
    "min-scale",
    "replicas",
    "provision",
    "priority",
    "container",
    "metrics",
)
# Words of a known key that this version cannot honour; what may be written instead is the first of `_WORDS`.
_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "layout": ("files", "triton"),
    }
)
_DOWNLOADS_AGAIN = (
    "KServe's storage-initializer downloads {uri} again at each start, whatever is warm: leave storageUri out, name the model in "
    f"{PREFIX}models and have the container read /models (docs/workloads.md)"
)
_FILE = re.compile(
    r"\.(bin|bst|gguf|gz|h5|joblib|json|mar|onnx|pickle|pkl|pt|pth|safetensors|tar|tgz|zip)$", re.IGNORECASE
)
_LABELS = (LABEL_ENDPOINT_NAME, LABEL_INJECT)
MAX_GPUS = 1024  # of one pod: as many as a NodeWarmup takes (deploy/crd.yaml)
_TOLD_UNKNOWN = 10  # an object can carry thousands: each told is an Event, and a search for the nearest key


def read_endpoint(workload: WorkloadView, defaults: DemandDefaults) -> EndpointReading:
    """Read what a workload's annotations declare; the pod template's value of a key wins over the workload's."""
    ref = _ref(workload)
    written = _ours(workload.annotations) | _ours(workload.template_annotations)
    if not written or workload.deleting:
        return EndpointReading(workload=ref)
    reader = _Reader(written)
    if not any(k in KEYS for k in written):
        return EndpointReading(workload=ref, problems=tuple(reader.problems))
    name = workload.template_labels.get(LABEL_ENDPOINT_NAME) or workload.name
    key = reader.guard("", lambda: endpoint_key(workload.namespace, name))
    endpoint = _read(reader, workload, key, defaults) if key else None
    problems = (*reader.problems, *_notes(workload))
    broken = any(p.kind is ProblemKind.INVALID for p in problems)
    return EndpointReading(workload=ref, key=key, endpoint=None if broken else endpoint, problems=problems)


def duplicates(readings: Iterable[EndpointReading]) -> Mapping[EndpointKey, tuple[WorkloadRef, ...]]:
    """Return the keys that more than one workload claims, with those workloads in order."""
    claims: defaultdict[EndpointKey, list[WorkloadRef]] = defaultdict(list)
    for reading in readings:
        if reading.key:
            claims[reading.key].append(reading.workload)
    return {key: tuple(sorted(refs)) for key, refs in claims.items() if len(refs) > 1}


def refuse_duplicates(readings: Sequence[EndpointReading]) -> tuple[EndpointReading, ...]:
    """Make every reading whose key another workload claims too Invalid; the others come back as they are."""
    twice = duplicates(readings)
    return tuple(_refused(r, twice[r.key]) if r.key and r.key in twice else r for r in readings)


class _Reader:
    """Collects problems while values are read."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self.written = written
        self.problems: list[Problem] = []
        self._check_keys()

    def guard(self, key: str, parse: Callable[[], T]) -> T | None:
        """Return what `parse` returns, or None after noting why not."""
        try:
            return parse()
        except Invalid as error:
            self.note(ProblemKind.INVALID, key, str(error))
            return None

    def value(self, key: str, parse: Callable[[str], T], default: U) -> T | U:
        """Return the parsed value of a key; its default if it is not written or wrong (then the endpoint is Invalid)."""
        if key not in self.written:
            return default
        found = self.guard(key, lambda: (parse(self.written[key]),))
        return found[0] if found else default

    def note(self, kind: ProblemKind, key: str, message: str) -> None:
        """Add a problem with an annotation ("" for none in particular)."""
        annotation = PREFIX + key if key else ""
        text = cut(f"{annotation}: {message}" if key else message, 600)
        self.problems.append(Problem(kind=kind, annotation=annotation, message=text))

    def _check_keys(self) -> None:
        for key in sorted(self.written):
            if key in _WORDS:
                self._check_word(key, *_WORDS[key])
        unknown = sorted(self.written.keys() - set(KEYS))
        for key in unknown[:_TOLD_UNKNOWN]:
            self.note(ProblemKind.UNKNOWN_KEY, cut(key, 80), _unknown(key))
        if (more := len(unknown) - _TOLD_UNKNOWN) > 0:
            self.note(ProblemKind.UNKNOWN_KEY, "", f"{more} more annotations that begin with {PREFIX} are unknown")

    def _check_word(self, key: str, supported: str, *later: str) -> None:
        found = self.value(key, lambda text: values.word(text, supported, *later), supported)
        if found != supported:
            message = f"{found!r} is not supported by this version, which does as {supported!r} says"
            self.note(ProblemKind.NOT_SUPPORTED, key, message)


def _read(reader: _Reader, workload: WorkloadView, key: EndpointKey, defaults: DemandDefaults) -> Endpoint:
    zone = reader.value("timezone", values.zone, defaults.timezone)
    return Endpoint(
        key=key,
        workload=_ref(workload),
        models=_models(reader, workload, defaults),
        schedule=tuple(Schedule(cron=cron, zone=zone) for cron in reader.value("schedule", values.schedule, ())),
        zone=zone,
        window=reader.value("window", values.window, DEFAULT_WINDOW),
        lead=reader.value("lead", values.lead, DEFAULT_LEAD),
        nodes=reader.value("nodes", values.nodes, workload.group_size),
        images=_images(reader, workload),
        memory=reader.value("memory", values.switch, False),
        min_scale=_min_scale(reader, workload),
        replicas=reader.value("replicas", values.replicas, DEFAULT_REPLICAS),
        provision=reader.value("provision", values.switch, False),
        priority=reader.value("priority", values.priority, DEFAULT_PRIORITY),
        gpus=_gpus(workload.spec),
        container=reader.value("container", lambda text: _container(text, workload.spec), workload.serving),
        metrics=reader.value("metrics", values.metrics, ""),
        predict=reader.value("predict", values.predict, defaults.predict),
        history=reader.value("history", values.history, ""),
        spec=_spec(reader, workload),
    )


def _spec(reader: _Reader, workload: WorkloadView) -> PodSpecView:
    """Return the pods' template, noting what no pod could start with: the schemas of some kinds let it through."""
    spec = workload.spec
    for name, field in ((spec.service_account, "serviceAccountName"), (spec.runtime_class, "runtimeClassName")):
        if name and not OBJECT_NAME.fullmatch(name):
            reader.note(ProblemKind.INVALID, "", f"{field} {cut(name, 60)!r} of its pods is no name")
    if workload.serving:
        reader.guard("", partial(values.container, workload.serving))
    if _gpus(spec) > MAX_GPUS:
        reader.note(
            ProblemKind.INVALID, "", f"a pod of it asks for {_gpus(spec)} GPUs, at most {MAX_GPUS} can be asked for"
        )
    return spec


def _models(reader: _Reader, workload: WorkloadView, defaults: DemandDefaults) -> tuple[ModelSource, ...]:
    models = reader.value("models", values.models, _stored(reader, workload))
    for model in models:
        if not source_allowed(defaults.sources, workload.namespace, model.uri):
            key = "models" if "models" in reader.written else ""
            reader.note(ProblemKind.INVALID, key, source_refusal(workload.namespace, model.uri))
    return models


def _stored(reader: _Reader, workload: WorkloadView) -> tuple[ModelSource, ...]:
    """Return the model that an InferenceService's storageUri is, where annotations do not say; and say what that costs."""
    uri = workload.storage_uri
    if not uri:
        return ()
    found = reader.guard("", lambda: parse_model_source(_directory(uri))) if uri.startswith("s3://") else None
    if found or "models" in reader.written:
        reader.note(ProblemKind.NOTE, "", _DOWNLOADS_AGAIN.format(uri=found.uri if found else cut(uri, 200)))
    elif not uri.startswith("s3://"):
        reader.note(ProblemKind.NOTE, "", f"storageUri {cut(uri, 200)!r} is not s3://…: only images are kept warm")
    return (found,) if found and "models" not in reader.written else ()


def _directory(uri: str) -> str:
    """Return a storageUri as KServe takes it: all below it, with or without a slash, unless it is one file."""
    return uri if uri.endswith("/") or _FILE.search(uri) else f"{uri}/"


def _images(reader: _Reader, workload: WorkloadView) -> tuple[ImageRef, ...]:
    """Return the template's images in the order they start in, then those listed besides; all once."""
    wanted = reader.value("images", values.images, True)
    if wanted is False:
        return ()
    spec = workload.spec
    texts = [*(c.image for c in (*spec.init_containers, *spec.containers) if c.image), *workload.more_images]
    found = [ref for text in texts if (ref := reader.guard("", partial(parse_image_ref, text)))]
    extra = wanted if isinstance(wanted, tuple) else ()
    images = tuple(dict.fromkeys([*found, *extra]))
    if len(images) > values.MAX_ITEMS:
        reader.note(ProblemKind.INVALID, "images", f"{len(images)} with the pod template's, at most {values.MAX_ITEMS}")
    return images


def _min_scale(reader: _Reader, workload: WorkloadView) -> MinScale:
    found = reader.value("min-scale", values.min_scale, MinScale.OFF)
    if found is MinScale.OFF or workload.kind != "InferenceService":
        return found
    message = "not supported on an InferenceService: KServe sets the bounds of what it makes, so change its minReplicas"
    reader.note(ProblemKind.NOT_SUPPORTED, "min-scale", message)
    return MinScale.OFF


def _gpus(spec: PodSpecView) -> int:
    """Return what the scheduler counts: the containers together, or one init container if that asks for more."""
    return max(sum(c.gpus for c in spec.containers), *(c.gpus for c in spec.init_containers), 0)


def _container(text: str, spec: PodSpecView) -> str:
    name, known = values.container(text), [c.name for c in spec.containers]
    if name not in known:
        raise Invalid(f"{name!r} is no container of the pod template, which has {cut(', '.join(known), 200)}")
    return name


def _notes(workload: WorkloadView) -> list[Problem]:
    """Say what injection and `prewarm wait` would miss: they read the pod, so it must stand on the template."""
    if workload.template_labels.get(LABEL_INJECT) != "true":
        return []
    notes, key = [], PREFIX + "models"
    if key in workload.annotations and key not in workload.template_annotations:
        message = f"{key}: injection reads the pod, so put this annotation on the pod template as well"
        notes.append(Problem(kind=ProblemKind.NOTE, annotation=key, message=message))
    if not workload.template_labels.get(LABEL_ENDPOINT_NAME):
        label = f"{LABEL_ENDPOINT_NAME}: {cut(workload.name, 80)}"
        message = f"injection reads the pod, so put the label {label} on the pod template"
        notes.append(Problem(kind=ProblemKind.NOTE, annotation="", message=message))
    return notes


def _unknown(key: str) -> str:
    if PREFIX + key in _LABELS:
        return "this is a label of the pod template, as an annotation it does nothing"
    near = difflib.get_close_matches(key[:80], KEYS, n=1, cutoff=0)
    return f"unknown, the nearest known key is {PREFIX}{near[0]}"


def _refused(reading: EndpointReading, claims: Sequence[WorkloadRef]) -> EndpointReading:
    others = ", ".join(f"{r.kind} {r.name}" for r in claims if r != reading.workload)
    message = f"{others} has the key {reading.key} too: set the label {LABEL_ENDPOINT_NAME} on one pod template"
    problem = Problem(kind=ProblemKind.INVALID, annotation="", message=cut(message, 600))
    return replace(reading, endpoint=None, problems=(*reading.problems, problem))


def _ours(annotations: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(PREFIX): text for key, text in annotations.items() if key.startswith(PREFIX)}


def _ref(workload: WorkloadView) -> WorkloadRef:
    return WorkloadRef(
        api_version=workload.api_version,
        kind=workload.kind,
        namespace=workload.namespace,
        name=workload.name,
        uid=workload.uid,
    )
