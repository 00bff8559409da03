"""What `SHA256SUMS` and safetensors indexes ask for, and that they are read as text from anybody."""

from __future__ import annotations

import json

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_model_uri
from agent.models.completeness import MAX_BYTES, check_complete, named_files, names_files, refuse_large

URI = parse_model_uri("s3://bucket/m/")
A, B = "a" * 64, "b" * 64
INDEX = "model.safetensors.index.json"


def index(*files: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"w{n}": f for n, f in enumerate(files)}}).encode()


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("SHA256SUMS", True),
        ("sub/SHA256SUMS", True),
        (INDEX, True),
        ("unet/diffusion_pytorch_model.safetensors.index.json", True),
        ("SHA256SUMS.txt", False),
        ("model.safetensors", False),
    ],
)
def test_which_files_name_others(path: str, names: bool) -> None:
    assert names_files(path) is names


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"{A}  a b.bin", {"a b.bin": A}),
        (f"{A} *./x/a.bin\r", {"x/a.bin": A}),
        (f"{A.upper()}  a", {"a": A}),
        (f"SHA256 (a (1).bin) = {A}", {"a (1).bin": A}),
        (f"\\{A}  a\\nb\\\\n", {"a\nb\\n": A}),
        ("# made by hand\n\n", {}),
        (f"{A}  SHA256SUMS", {}),  # what it says of itself cannot be
    ],
)
def test_sums_are_read_in_every_form_that_sha256sum_writes(line: str, named: dict[str, str]) -> None:
    assert named_files("SHA256SUMS", line.encode()) == named


def test_names_are_relative_to_the_file_that_names_them() -> None:
    assert named_files(f"unet/{INDEX}", index("a", "a", "../b")) == {"unet/a": "", "b": ""}
    assert named_files("sub/SHA256SUMS", f"{A}  ../x\n{B}  y".encode()) == {"x": A, "sub/y": B}


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("SHA256SUMS", b"hello", "line 1 is not a SHA-256 and a name"),
        ("SHA256SUMS", f"{A}  ok\n{A[1:]}  short".encode(), "line 2"),
        ("SHA256SUMS", b"\xff\xfe", "not the text it should be"),
        ("SHA256SUMS", f"{A}  /etc/passwd".encode(), "'/etc/passwd', which is outside the model"),
        ("sub/SHA256SUMS", f"{A}  ../../x".encode(), "outside the model"),
        (INDEX, index("../../etc/passwd"), "outside the model"),
        (INDEX, index(".."), "outside the model"),
        (INDEX, index(5), "no weight_map"),
        (INDEX, b"[]", "no weight_map"),
        (INDEX, b'{"weight_map": []}', "no weight_map"),
        (INDEX, b"{", "not the text it should be"),
        (INDEX, b"[" * 900, "not the text it should be"),
        (INDEX, b"[" * 100_000, "more in it than"),
        (INDEX, b'{"weight_map": {}, "x": [' + b"{}," * 100_000 + b"0]}", "more in it than"),
    ],
)
def test_what_is_no_such_file_is_refused_by_name(path: str, content: bytes, said: str) -> None:
    with pytest.raises(Permanent, match=said) as told:
        named_files(path, content)
    assert path in str(told.value)


def test_a_file_too_large_to_be_one_is_refused_before_it_is_read() -> None:
    refuse_large({INDEX: MAX_BYTES})
    with pytest.raises(Permanent, match=r"'model.safetensors.index.json' has 16.8 MB"):
        refuse_large({INDEX: MAX_BYTES, "SHA256SUMS": 1})


def test_what_is_absent_is_named_with_who_names_it() -> None:
    with pytest.raises(Permanent, match="is not complete: 'x' and 1 more, named in 'SHA256SUMS', is absent"):
        check_complete(URI, {"a"}, {"SHA256SUMS": {"a": A, "x": A, "y": A}})


def test_what_the_filters_leave_out_is_not_asked_for() -> None:
    uri = parse_model_uri("s3://bucket/m/?exclude=*.md")
    assert check_complete(uri, {"a"}, {"SHA256SUMS": {"a": A, "README.md": B}}) == {"a": A}


def test_two_digests_for_one_file_are_refused() -> None:
    assert check_complete(URI, {"a"}, {"SHA256SUMS": {"a": A}, "s/SHA256SUMS": {"a": A}, INDEX: {"a": ""}}) == {"a": A}
    with pytest.raises(Permanent, match="two SHA-256 are stated for 'a'"):
        check_complete(URI, {"a"}, {"SHA256SUMS": {"a": A}, "s/SHA256SUMS": {"a": B}})
