"""No key, however hostile, leaves the version's directory or shares a file with another; the digest names what it should."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import Permanent, PrewarmError
from agent.core.refs import parse_model_uri
from agent.models.manifest import Listed, Manifest, ObjectEntry, choose, manifest_from_json, manifest_to_json
from agent.models.ranges import ALIGN, parts_of

URI = parse_model_uri("s3://bucket/m/")
PIECES = st.sampled_from(["a", "b", "..", ".", "", "é", "e\u0301", "x\n", "\u202e", "\x00", "a" * 256, " ", "\\", "~"])
KEYS = st.lists(PIECES, min_size=1, max_size=5).map(lambda parts: "m/" + "/".join(parts)) | st.text(max_size=30).map(
    lambda t: "m/" + t
)


def listed(key: str, size: int = 1) -> Listed:
    return Listed(key=key, size=size, etag='"e"')


@given(st.lists(KEYS, min_size=1, max_size=6, unique=True))
def test_what_is_chosen_stays_below_and_apart(keys: list[str]) -> None:
    try:
        chosen = choose(URI, [listed(k) for k in keys])
    except PrewarmError:
        return
    paths = [path for _, path in chosen]
    root = Path("/store/version/files")
    for path in paths:
        assert Path(os.path.normpath(root / path)) == root / path
        assert (root / path).is_relative_to(root)
        assert path
        assert "\0" not in path
    plain = [unicodedata.normalize("NFC", p) for p in paths]
    assert len(set(plain)) == len(plain)
    assert not any(a != b and b.startswith(a + "/") for a in plain for b in plain)


@pytest.mark.parametrize(
    "key",
    ["m/../x", "m//etc/passwd", "m/a//b", "m/a/./b", "m/a\nb", "m/\x1b[2J", "m/" + "x" * 256, "m/" + "y/" * 501 + "z"],
)
def test_a_hostile_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(Permanent, match="key 'm/"):
        choose(URI, [listed("m/good"), listed(key)])


@pytest.mark.parametrize(
    "keys",
    [("m/a", "m/a/b"), ("m/\u00e9", "m/e\u0301"), ("m/e\u0301/x", "m/\u00e9")],
    ids=["file-dir", "nfc", "nfc-dir"],
)
def test_keys_that_cannot_both_be_files_are_refused(keys: tuple[str, str]) -> None:
    with pytest.raises(Permanent, match="would be"):
        choose(URI, [listed(k) for k in keys])


def test_directory_markers_are_left_out_and_nothing_is_refused() -> None:
    assert [p for _, p in choose(URI, [listed("m/", 0), listed("m/d/", 0), listed("m/d/f")])] == ["d/f"]
    with pytest.raises(Permanent, match="nothing under s3://bucket/m/"):
        choose(URI, [listed("m/", 0)])


def test_filters_see_the_path_below_the_prefix() -> None:
    uri = parse_model_uri("s3://bucket/m/?include=*.json&include=w/*&exclude=w/old*")
    keys = ["m/a.json", "m/w/1", "m/w/old1", "m/readme"]
    assert [p for _, p in choose(uri, [listed(k) for k in keys])] == ["a.json", "w/1"]


ENTRY = ObjectEntry(
    key="m/a", path="a", size=5, etag='"e"', version_id="v", checksum="crc32:AAAA", checksum_type="FULL_OBJECT"
)
MANIFEST = Manifest(uri=URI, objects=(ENTRY,))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "m/b"},
        {"size": 6},
        {"etag": '"f"'},
        {"version_id": ""},
        {"checksum": ""},
        {"checksum_type": "COMPOSITE"},
    ],
)
def test_the_digest_covers_every_field(change: dict[str, object]) -> None:
    other = replace(MANIFEST, objects=(replace(ENTRY, **change),))  # type: ignore[arg-type]
    assert other.digest != MANIFEST.digest
    assert replace(MANIFEST, uri=parse_model_uri("s3://bucket/m/?exclude=x")).digest != MANIFEST.digest


def test_a_manifest_is_read_back_as_it_was_and_a_forged_path_is_refused() -> None:
    told = manifest_to_json(MANIFEST)
    assert manifest_from_json(told) == MANIFEST
    told["objects"][0]["path"] = "../../etc/passwd"  # type: ignore[index]
    with pytest.raises(PrewarmError, match="do not follow from its keys"):
        manifest_from_json(told)


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=12), st.integers(1, 4))
def test_parts_cover_every_byte_once(sizes: list[int], pages: int) -> None:
    objects = tuple(replace(ENTRY, key=f"m/{n:03}", path=f"{n:03}", size=size) for n, size in enumerate(sizes))
    parts = parts_of(Manifest(uri=URI, objects=objects), pages * ALIGN)
    for n, size in enumerate(sizes):
        mine = sorted(p for p in parts if p.file == n)
        assert [p.offset for p in mine] == list(range(0, size, pages * ALIGN))
        assert sum(p.length for p in mine) == size
        assert all(p.length == pages * ALIGN for p in mine[:-1])


def test_a_key_that_was_not_asked_for_is_refused_by_name() -> None:
    """Its bytes would come from where the namespace may not read."""
    with pytest.raises(Permanent, match="key 'x/secret' was listed under s3://bucket/m/, where it does not lie"):
        choose(URI, [listed("m/a"), listed("x/secret")])
    with pytest.raises(Permanent, match="would be the same file"):
        choose(URI, [listed("m/a"), listed("m/a")])
