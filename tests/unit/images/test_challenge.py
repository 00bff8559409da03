"""Which credentials of a pull secret are an image's."""

from __future__ import annotations

import base64

import pytest

from agent.core.refs import parse_image_ref
from agent.images.challenge import credentials_among


def entry(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:secret".encode()).decode()}


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("registry.test", True),
        ("https://registry.test", True),
        ("https://registry.test/v2/", True),
        ("https://registry.test/v1/", True),
        ("registry.test/team", True),
        ("*.test", True),
        ("registry.test/other", False),
        ("registry.test:5000", False),
        ("evil.test", False),
        ("", False),
    ],
)
def test_names_fit_as_they_do_for_the_kubelet(name: str, fits: bool) -> None:
    found = credentials_among({name: entry("robot")}, parse_image_ref("registry.test/team/app:1"))
    assert (found is not None) == fits
    assert found is None or (found.username, found.password) == ("robot", "secret")


def test_the_longest_name_wins() -> None:
    auths = {"registry.test": entry("all"), "registry.test/team": entry("team"), "registry.test/te": entry("te")}
    found = credentials_among(auths, parse_image_ref("registry.test/team/app:1"))
    assert found is not None
    assert found.username == "team"


def test_docker_hub_has_its_old_name() -> None:
    assert credentials_among({"https://index.docker.io/v1/": entry("hub")}, parse_image_ref("nginx:1"))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        {},
        {"auth": 5},
        {"auth": "%%"},
        {"username": "x"},
        {"username": "", "password": ""},
        {"username": "\ud800", "password": "y"},
    ],
)
def test_what_cannot_be_read_is_none_and_keeps_no_other_from_being_found(bad: object) -> None:
    auths = {"registry.test/team": bad, "registry.test": {"username": "x", "password": "y"}}
    found = credentials_among(auths, parse_image_ref("registry.test/team/app:1"))
    assert found is not None
    assert (found.username, found.password) == ("x", "y")
