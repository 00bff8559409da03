"""Which files a model says it consists of: `SHA256SUMS` and safetensors indexes, read as the untrusted text they are. Pure.

A model whose upload has not ended, or of which a file was forgotten, is refused before a byte of it is fetched.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping

from agent.core.errors import Permanent, cut
from agent.core.refs import ModelUri
from agent.core.units import format_size

MAX_BYTES = 16 << 20  # of all such files of a model: the index of a model of 671 billion weights has 9 MB
_MAX_NESTED = (
    1000  # an index has a handful of objects in it; millions of empty ones would be a hundred times their text
)
_SUMS = "SHA256SUMS"
_INDEX = ".safetensors.index.json"
# As `sha256sum` writes it, in both of its formats; a backslash first says that the name is escaped.
_LINE = re.compile(
    r"(?P<esc>\\?)(?:(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<bsd>.+)\) = (?P<bsdsum>[0-9a-fA-F]{64}))"
)
_ESCAPED = re.compile(r"\\(.)")


def names_files(path: str) -> bool:
    """Say whether a file of this path tells which other files belong to the model."""
    return path.rpartition("/")[2] == _SUMS or path.endswith(_INDEX)


def refuse_large(sizes: Mapping[str, int]) -> None:
    """Refuse, before they are read, files that are larger than any that are what their names say.

    Raises:
        Permanent: naming the largest.
    """
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        told = f"{_shown(largest)} has {format_size(sizes[largest])}: with others of its kind more than"
        raise Permanent(f"{told} {format_size(MAX_BYTES)}, too much to check completeness by; exclude= leaves it out")


def named_files(path: str, content: bytes) -> dict[str, str]:
    """Return the files that the file at `path` names, by their paths in the model, with hex SHA-256 or "".

    Raises:
        Permanent: it is not what its name says, or names a file outside the model.
    """
    try:
        text = content.decode()
        named = dict(_sums(text)) if path.rpartition("/")[2] == _SUMS else dict.fromkeys(_weights(text), "")
    except (ValueError, RecursionError) as error:
        what = cut(error, 100) if isinstance(error, _Malformed) else "it is not the text it should be"
        raise Permanent(f"{_shown(path)} cannot be read: {what}; mend it, or leave it out with exclude=") from error
    found = {}
    for name, digest in named.items():
        at = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if name.startswith("/") or at == ".." or at.startswith("../"):
            raise Permanent(f"{_shown(path)} names {_shown(name)}, which is outside the model")
        if at != path:
            found[at] = digest
    return found


def check_complete(uri: ModelUri, here: Collection[str], named_by: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Compare the files that are here with those that `named_by` (see `named_files`) asks for; what `uri` filters out is not.

    Returns:
        The hex SHA-256 of those files for which one is stated.

    Raises:
        Permanent: files are missing, or two SHA-256 are stated for one.
    """
    digests: dict[str, str] = {}
    for by, named in named_by.items():
        missing = sorted(path for path in named if path not in here and uri.wants(path))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Permanent(
                f"{cut(uri, 200)} is not complete: {_shown(missing[0])}{more}, named in {_shown(by)}, is absent"
            )
        for path, digest in named.items():
            if digest and digests.setdefault(path, digest) != digest:
                raise Permanent(f"two SHA-256 are stated for {_shown(path)}, one of them in {_shown(by)}")
    return {path: digest for path, digest in digests.items() if path in here}


class _Malformed(ValueError):
    pass


def _weights(text: str) -> Iterable[str]:
    if text.count("{") + text.count("[") > _MAX_NESTED:
        raise _Malformed("it has more in it than a safetensors index")
    whole = json.loads(text)
    weights = whole.get("weight_map") if isinstance(whole, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) and name for name in weights.values()):
        raise _Malformed("it has no weight_map from names to files")
    return set(weights.values())


def _sums(text: str) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.removesuffix("\r"))
        if found is None:
            raise _Malformed(f"line {number} is not a SHA-256 and a name")
        name = found["name"] or found["bsd"]
        if found["esc"]:
            name = _ESCAPED.sub(lambda each: {"n": "\n", "r": "\r"}.get(each[1], each[1]), name)
        yield name, (found["sum"] or found["bsdsum"]).lower()


def _shown(path: str) -> str:
    return cut(ascii(path), 200)
