from __future__ import annotations

import pytest

from agent.core.errors import Invalid
from agent.core.refs import (
    ModelUri,
    endpoint_key,
    parse_digest,
    parse_image_ref,
    parse_model_source,
    parse_model_uri,
)

SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        (f"nginx@{SHA}", f"docker.io/library/nginx@{SHA}"),
        (f"ghcr.io/a/b:1@{SHA}", f"ghcr.io/a/b@{SHA}"),
        (" nginx ", "docker.io/library/nginx:latest"),
    ],
)
def test_images_are_named_as_containerd_names_them(text: str, normal: str) -> None:
    assert str(parse_image_ref(text)) == normal
    assert parse_image_ref(normal) == parse_image_ref(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":1",
        "a b",
        "Nginx",
        "a//b",
        "a/../b",
        "nginx:",
        "nginx:a/b",
        "nginx@",
        "nginx@sha256:12",
        "-.io/a",
        "a:b:c",
        "http://x/y",
        "x\n"[:1] + "\u00e9",
        "a.io/" + "x" * 256,
        "a..b.com/x",
        "a" * 64 + ".com/x",
        "a.b" * 100 + ".com/x",
        "[" + ":" * 40 + "]/x",
        "reg.io:99999/x",
        "reg.io:0/x",
        "[::::::]/x",
    ],
)
def test_what_is_no_image_is_invalid(text: str) -> None:
    with pytest.raises(Invalid, match="image "):
        parse_image_ref(text)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("s3://models/llama/", ModelUri(bucket="models", key="llama/")),
        ("s3://models", ModelUri(bucket="models", key="")),
        ("s3://models/", ModelUri(bucket="models", key="")),
        ("s3://models/a b/ü.bin", ModelUri(bucket="models", key="a b/ü.bin")),
        ("s3://models/x.bin?versionId=a%2Bb", ModelUri(bucket="models", key="x.bin", version_id="a+b")),
        (
            "s3://models/x/?include=*.json&exclude=a%26b&include=*.st",
            ModelUri(bucket="models", key="x/", include=("*.json", "*.st"), exclude=("a&b",)),
        ),
    ],
)
def test_model_uris_are_read_and_written_back(text: str, uri: ModelUri) -> None:
    assert parse_model_uri(text) == uri
    assert parse_model_uri(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not start with s3://"),
        ("S3://models/x", "does not start with s3://"),
        ("s3://", "names no valid bucket"),
        ("s3://UPPER/x", "names no valid bucket"),
        ("s3://user@models/x", "names no valid bucket"),
        ("s3://models:80/x", "names no valid bucket"),
        ("s3://[::1/x", "malformed"),
        ("s3://models//x", "empty, '.' or '..'"),
        ("s3://models/a/../b", "empty, '.' or '..'"),
        ("s3://models/./b", "empty, '.' or '..'"),
        ("s3://models/a//", "empty, '.' or '..'"),
        ("s3://models/a#b", "has a '#'"),
        ("s3://models/a\nb", "control characters"),
        ("s3://models/a\ud800", "control characters"),
        ("s3://models/" + "a" * 2048, "longer than 2048 bytes"),
        ("s3://models/a?x=1", "has the query 'x'"),
        ("s3://models/a?include=", "has the query 'include'"),
        ("s3://models/a/?versionId=1", "versionId= goes with one object"),
        ("s3://models/a?versionId=1&versionId=2", "versionId= goes with one object"),
    ],
)
def test_a_bad_model_uri_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_model_uri(text)
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("uri", "relative", "wanted"),
    [
        ("s3://m/x/", "any", True),
        ("s3://m/x/?include=*.json", "config.json", True),
        ("s3://m/x/?include=*.json", "a.bin", False),
        ("s3://m/x/?exclude=original/*", "original/a/b.pth", False),
        ("s3://m/x/?include=*&exclude=*.md", "README.md", False),
        ("s3://m/x/?include=*.JSON", "config.json", False),
    ],
)
def test_filters_decide_by_the_key_below_the_prefix(uri: str, relative: str, wanted: bool) -> None:
    assert parse_model_uri(uri.replace("//m/", "//models/")).wants(relative) is wanted


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("s3://models/llama/8b/", "8b"),
        ("s3://models/llama/w.safetensors", "w.safetensors"),
        ("s3://models", "models"),
        ("my-llm=s3://models/llama/8b/", "my-llm"),
        (" llm=s3://models/x/ ", "llm"),
    ],
)
def test_a_model_has_a_given_name_or_the_last_path_part(text: str, name: str) -> None:
    assert parse_model_source(text).name == name


@pytest.mark.parametrize(
    "text",
    [
        "=s3://models/x/",
        "../x=s3://models/x/",
        "a/b=s3://models/x/",
        ".x=s3://models/x/",
        "s3://models/a b/",
        "a" * 64 + "=s3://models/x/",
    ],
)
def test_a_model_name_must_be_a_safe_directory_name(text: str) -> None:
    with pytest.raises(Invalid, match="model name"):
        parse_model_source(text)


def test_endpoint_keys_fit_a_label() -> None:
    assert str(endpoint_key("a", "x" * 61)) == "a." + "x" * 61
    with pytest.raises(Invalid, match="has 64 characters"):
        endpoint_key("a", "x" * 62)


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("", "x"),
        ("a.b", "x"),
        ("A", "x"),
        ("..", "x"),
        ("a", ""),
        ("a", ".."),
        ("a", "x/y"),
        ("a", "x\n"),
        ("a", "-x"),
        ("a\n", "x"),
    ],
)
def test_an_endpoint_key_never_leaves_a_label_or_directory(namespace: str, name: str) -> None:
    with pytest.raises(Invalid):
        endpoint_key(namespace, name)


@pytest.mark.parametrize("text", ["", "sha256:", SHA.upper(), SHA + "0", SHA + "\n", SHA.replace("256", "512")])
def test_only_sha256_digests_are_digests(text: str) -> None:
    with pytest.raises(Invalid):
        parse_digest(text)
    assert parse_digest(SHA) == SHA


def test_a_uri_that_could_not_be_read_back_is_invalid() -> None:
    with pytest.raises(Invalid, match="longer than 2048 bytes with its filters escaped"):
        parse_model_uri("s3://models/x/?include=*&include=" + "/" * 1000)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    for text in (
        "s3://AKIAKEY:s3cret@bucket/m/",
        "llm=s3://AKIAKEY:s3cret@bucket/m/",
        "s3://bucket/m/?x=1&X-Amz-Signature=s3cret",
    ):
        with pytest.raises(Invalid) as caught:
            parse_model_source(text)
        assert "s3cret" not in str(caught.value)
        assert "AKIA" not in str(caught.value)
