"""Which images a credential plugin is asked for, and what becomes of answers that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.errors import Permanent
from agent.core.refs import parse_image_ref
from agent.images.challenge import image_matches
from agent.images.providers import Providers, read_providers

IMAGE = parse_image_ref("1.dkr.ecr.eu-west-1.amazonaws.com/team/app:1")


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com/a:1", True),
        ("*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com/a:1", False),  # a glob is one part
        ("registry.io:8080/path", "registry.io:8080/path/a:1", True),
        ("registry.io:8080/path", "registry.io:8080/other:1", False),
        ("registry.io", "registry.io:8080/a:1", False),
        ("https://registry.io", "registry.io/a:1", True),
        ("re*.io", "registry.io/a:1", True),
        ("docker.io", "nginx", True),
        ("evil.io", "registry.evil.io/a:1", False),
    ],
)
def test_patterns_match_as_the_kubelets(pattern: str, image: str, matches: bool) -> None:
    assert image_matches(pattern, parse_image_ref(image)) is matches


def test_no_configuration_is_no_plugin_and_a_bad_one_says_which_file(tmp_path: Path) -> None:
    assert read_providers(tmp_path / "none.yaml", tmp_path) == ()
    (tmp_path / "c.yaml").write_text("providers: [{name: ../evil, matchImages: ['*']}]")
    with pytest.raises(Permanent, match=r"c\.yaml: '\.\./evil' is no name of a program"):
        read_providers(tmp_path / "c.yaml", tmp_path)
    (tmp_path / "c.yaml").write_text("providers: 7")
    with pytest.raises(Permanent, match=r"cannot read the credential providers in .*c\.yaml"):
        read_providers(tmp_path / "c.yaml", tmp_path)


@pytest.mark.parametrize(
    "answer", ["not json", "[]", '{"kind": "Other"}', '{"kind": "CredentialProviderResponse", "auth": 1}']
)
async def test_a_plugin_that_answers_nonsense_gives_nobodys_credentials(answer: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(f"#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")
    (tmp_path / "p").chmod(0o755)
    (tmp_path / "c.yaml").write_text("providers: [{name: p, matchImages: ['*.dkr.ecr.*.amazonaws.com']}]")
    providers = Providers(tmp_path / "c.yaml", tmp_path, SystemClock())
    assert await providers.credentials(IMAGE) is None


async def test_a_plugin_that_fails_gives_nobodys_credentials(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "p").chmod(0o755)
    (tmp_path / "c.yaml").write_text("providers: [{name: p, matchImages: ['*.dkr.ecr.*.amazonaws.com']}]")
    assert await Providers(tmp_path / "c.yaml", tmp_path, SystemClock()).credentials(IMAGE) is None
