"""Reads and writes assignments as the `spec` of a NodeWarmup (JSON shapes, camelCase); the same shape is a `--plan` file.

`parse_assignment` is total over JSON values: anything unexpected is `Invalid` naming the path, never another exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource, Workload
from agent.core.errors import Invalid, cut
from agent.core.refs import endpoint_key, parse_digest, parse_image_ref, parse_model_source, parse_model_uri

T = TypeVar("T")
Json = Mapping[str, object]
_MAX_NUMBER = 2**63 - 1  # the API's int64


def parse_assignment(spec: object, *, node: str = "", generation: int = 0, uid: str = "") -> Assignment:
    """Parse a spec (`{"endpoints": […]}`).

    Raises:
        Invalid: with the path of the first bad value.
    """
    root = _map(spec, "spec")
    endpoints = _list(root, "endpoints", "spec", _endpoint)
    if len({e.key for e in endpoints}) != len(endpoints):
        raise Invalid("spec.endpoints: the same endpoint stands twice")
    return Assignment(node=node, endpoints=endpoints, generation=generation, uid=uid)


def format_assignment(assignment: Assignment) -> dict[str, object]:
    """Return the `spec` of an assignment; parse_assignment(format_assignment(a)) has the same endpoints."""
    return {"endpoints": [_format_endpoint(e) for e in assignment.endpoints]}


def parse_time(text: object, where: str = "time") -> datetime:
    """Parse an RFC 3339 time with a zone into UTC.

    Raises:
        Invalid: quoting it.
    """
    if isinstance(text, datetime) and text.tzinfo is None:  # YAML reads a time with `Z` as a datetime in UTC
        return text.replace(tzinfo=UTC)
    try:
        found = text if isinstance(text, datetime) else datetime.fromisoformat(str(text))
        if found.tzinfo is None:
            raise Invalid(f"{where}: {cut(text, 60)!r} has no time zone")
        return found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{where}: {cut(text, 60)!r} is not an RFC 3339 time") from error


def format_time(time: datetime) -> str:
    """Write a time as RFC 3339 in UTC with whole seconds, as Kubernetes does."""
    return time.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _endpoint(value: object, where: str) -> EndpointWant:
    item = _map(value, where)
    workload = _map(item.get("workload", {}), f"{where}.workload")
    namespace, name = _text(item, "namespace", where, required=True), _text(item, "name", where, required=True)
    try:
        key = endpoint_key(namespace, name)
    except Invalid as error:
        raise Invalid(f"{where}: {error}") from error
    models = _list(item, "models", where, _model)
    if len({m.name for m in models}) != len(models):
        raise Invalid(f"{where}.models: two models have one name")
    return EndpointWant(
        key=key,
        workload=Workload(kind=_text(workload, "kind", where), name=_text(workload, "name", where)),
        priority=_number(item, "priority", where, default=500),
        gpus=_number(item, "gpus", where),
        runtime_handler=_text(item, "runtimeHandler", where),
        service_account=_text(item, "serviceAccount", where),
        pull_secrets=_list(item, "pullSecrets", where, _name),
        images=_list(item, "images", where, _image),
        models=models,
        windows=tuple(sorted(_list(item, "windows", where, _window))),
        memory=_flag(item, "memory", where),
        container=_text(item, "container", where),
        metrics=_text(item, "metrics", where),
    )


def _image(value: object, where: str) -> ImageWant:
    if isinstance(value, str):
        return ImageWant(ref=_at(where, parse_image_ref, value))
    item = _map(value, where)
    digest = _text(item, "digest", where)
    return ImageWant(
        ref=_at(where, parse_image_ref, _text(item, "ref", where, required=True)),
        digest=_at(where, parse_digest, digest) if digest else "",
    )


def _model(value: object, where: str) -> ModelWant:
    if isinstance(value, str):
        source = _at(where, parse_model_source, value)
        return ModelWant(name=source.name, uri=source.uri)
    item = _map(value, where)
    text, digest, name = (
        _text(item, "uri", where, required=True),
        _text(item, "digest", where),
        _text(item, "name", where),
    )
    uri = _at(where, parse_model_uri, text)
    source = _at(where, parse_model_source, f"{name}={uri}" if name else str(uri))
    return ModelWant(
        name=source.name,
        uri=uri,
        digest=_at(where, parse_digest, digest) if digest else None,
        size_bytes=_number(item, "sizeBytes", where),
        files=_number(item, "files", where),
    )


def _window(value: object, where: str) -> Window:
    item = _map(value, where)
    source = _text(item, "source", where) or WindowSource.DECLARED
    if source not in list(WindowSource):
        raise Invalid(f"{where}.source: {cut(source, 40)!r} is not one of {', '.join(WindowSource)}")
    window = Window(
        ready_by=parse_time(item.get("readyBy"), f"{where}.readyBy"),
        until=parse_time(item.get("until"), f"{where}.until"),
        source=WindowSource(source),
        confidence=_number(item, "confidence", where, default=100),
    )
    if window.until <= window.ready_by:
        raise Invalid(f"{where}: a window must end after it starts")
    return window


def _format_endpoint(e: EndpointWant) -> dict[str, object]:
    full: dict[str, object] = {
        "namespace": e.key.namespace,
        "name": e.key.name,
        "workload": {k: v for k, v in (("kind", e.workload.kind), ("name", e.workload.name)) if v},
        "priority": e.priority,
        "gpus": e.gpus,
        "runtimeHandler": e.runtime_handler,
        "serviceAccount": e.service_account,
        "pullSecrets": list(e.pull_secrets),
        "images": [{"ref": str(i.ref)} | ({"digest": i.digest} if i.digest else {}) for i in e.images],
        "models": [_format_model(m) for m in e.models],
        "windows": [
            {
                "readyBy": format_time(w.ready_by),
                "until": format_time(w.until),
                "source": str(w.source),
                "confidence": w.confidence,
            }
            for w in e.windows
        ],
        "memory": e.memory,
        "container": e.container,
        "metrics": e.metrics,
    }
    return {k: v for k, v in full.items() if v not in ("", {}, [], 0) or k in ("namespace", "name", "priority")}


def _format_model(m: ModelWant) -> dict[str, object]:
    full: dict[str, object] = {
        "name": m.name,
        "uri": str(m.uri),
        "digest": m.digest or "",
        "sizeBytes": m.size_bytes,
        "files": m.files,
    }
    return {k: v for k, v in full.items() if v}


def _map(value: object, where: str) -> Json:
    if not isinstance(value, Mapping):
        raise Invalid(f"{where}: expected a mapping, found {cut(value, 60)!r}")
    return value


def _list(item: Json, key: str, where: str, parse: Callable[[object, str], T]) -> tuple[T, ...]:
    value = item.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Invalid(f"{where}.{key}: expected a list, found {cut(value, 60)!r}")
    return tuple(parse(v, f"{where}.{key}[{n}]") for n, v in enumerate(value))


def _name(value: object, where: str) -> str:
    return _text({"name": value}, "name", where, required=True)


def _text(item: Json, key: str, where: str, *, required: bool = False) -> str:
    value = item.get(key, "")
    if not isinstance(value, str) or (required and not value) or any(not c.isprintable() for c in value):
        raise Invalid(f"{where}.{key}: expected text, found {cut(value, 60)!r}")
    return value


def _flag(item: Json, key: str, where: str) -> bool:
    value = item.get(key, False)
    if not isinstance(value, bool):
        raise Invalid(f"{where}.{key}: expected true or false, found {cut(value, 60)!r}")
    return value


def _number(item: Json, key: str, where: str, *, default: int = 0) -> int:
    value = item.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBER:
        raise Invalid(f"{where}.{key}: expected a whole number, found {cut(value, 60)!r}")
    return value


def _at(where: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except Invalid as error:
        raise Invalid(f"{where}: {error}") from error
