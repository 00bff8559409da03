"""Who owns which field, for the API server in memory: enough of server-side apply for maps and single values; lists are atomic."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]
Owner = tuple[str, str]  # manager, operation

_IDENTITY = {("apiVersion",), ("kind",)}
_OURS = ("labels", "annotations", "finalizers", "ownerReferences")  # what of metadata anybody manages


class Disputed(Exception):
    """Another manager has set a field differently."""


def applied(live: Object, body: Object, manager: str) -> Object:
    """Return the object after `manager` applies `body`.

    Raises:
        Disputed: not forced, as the real server words it.
    """
    owners, mine = _owners(live), (manager, "Apply")
    wanted, have = dict(_leaves(body)), dict(_leaves(live))
    disputes = sorted(
        f'conflict with "{who[0]}": .{".".join(path)}'
        for path, value in wanted.items()
        for who, paths in owners.items()
        if who != mine and path in paths and have.get(path) != value
    )
    if disputes:
        raise Disputed(f"Apply failed with {len(disputes)} conflict{'s'[: len(disputes) > 1]}: {', '.join(disputes)}")
    after = copy.deepcopy(live)
    for path in owners.get(mine, set()) - wanted.keys():
        if not any(path in paths for who, paths in owners.items() if who != mine):
            _remove(after, path)
    for path, value in wanted.items():
        _set(after, path, value)
    _note(after, {**owners, mine: set(wanted)})
    return after


def updated(before: Object | None, after: Object, manager: str) -> None:
    """Note in `after` that `manager` wrote what differs from `before`."""
    old, new = dict(_leaves(before or {})), dict(_leaves(after))
    changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    if not changed:
        return
    owners = {who: paths - changed for who, paths in _owners(before or {}).items()}
    mine = (manager, "Update")
    owners[mine] = owners.get(mine, set()) | (changed & new.keys())
    _note(after, owners)


def _leaves(item: Object) -> Iterator[tuple[Path, Any]]:
    def walk(at: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if isinstance(at, dict) and at:
            for key, value in at.items():
                yield from walk(value, (*path, key))
        elif path and path not in _IDENTITY and not isinstance(at, dict):
            yield path, at

    for path, value in walk(item, ()):
        if path[0] != "metadata" or path[1] in _OURS:
            yield path, value


def _owners(item: Object) -> dict[Owner, set[Path]]:
    def walk(fields: Object, path: Path) -> Iterator[Path]:
        if not fields and path:
            yield path
        for key, below in fields.items():
            yield from walk(below, (*path, key.removeprefix("f:")))

    entries = (item.get("metadata") or {}).get("managedFields") or []
    return {(e["manager"], e.get("operation", "")): set(walk(e.get("fieldsV1") or {}, ())) for e in entries}


def _note(item: Object, owners: dict[Owner, set[Path]]) -> None:
    entries = []
    for (manager, operation), paths in owners.items():
        fields: Object = {}
        for path in paths:
            at = fields
            for key in path:
                at = at.setdefault(f"f:{key}", {})
        if paths:
            entries.append({"manager": manager, "operation": operation, "fieldsV1": fields})
    item.setdefault("metadata", {})["managedFields"] = entries


def _set(item: Object, path: Path, value: Any) -> None:
    for key in path[:-1]:
        item = item.setdefault(key, {})
    item[path[-1]] = value


def _remove(item: Object, path: Path) -> None:
    for key in path[:-1]:
        item = item.get(key) or {}
    item.pop(path[-1], None)
