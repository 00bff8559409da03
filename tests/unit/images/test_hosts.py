"""Where images of a registry are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.images.hosts import all_hosts, registry_hosts

PLAIN = 'server = "http://10.0.0.1:5000"\n'


@pytest.mark.parametrize(
    ("host", "file"),
    [
        ("registry.bed", "registry.bed/hosts.toml"),
        ("registry.bed", "registry.bed.toml"),
        ("registry.bed:5000", "registry.bed:5000/hosts.toml"),
        ("registry.bed:5000", "registry.bed_5000_/hosts.toml"),
        ("registry.bed:5000", "registry.bed_5000_.toml"),
        ("registry.bed", "_default/hosts.toml"),
    ],
)
def test_a_file_for_the_host_says_where_it_is(tmp_path: Path, host: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(PLAIN)
    assert [h.base for h in registry_hosts(tmp_path, host)] == ["http://10.0.0.1:5000/v2"]


def test_without_a_file_the_host_itself_is_asked_over_https(tmp_path: Path) -> None:
    assert [h.base for h in registry_hosts(tmp_path, "ghcr.io")] == ["https://ghcr.io/v2"]
    assert [h.base for h in registry_hosts(tmp_path, "docker.io")] == ["https://registry-1.docker.io/v2"]


def test_mirrors_come_first_and_learn_whose_image_is_meant(tmp_path: Path) -> None:
    (tmp_path / "ghcr.io.toml").write_text('[host."http://mirror:8080"]\ncapabilities = ["pull", "resolve"]\n')
    mirror, own = registry_hosts(tmp_path, "ghcr.io")
    assert (mirror.base, mirror.query, own.base) == ("http://mirror:8080/v2", "?ns=ghcr.io", "https://ghcr.io/v2")


@pytest.mark.parametrize(
    "text",
    [
        "= =",
        "server = 1",
        'host = "x"',
        'server = "ftp://x"',
        'server = "https://[x"',
        'server = "https://x.test:99999"',
        '[host."https://user:secret@m.test"]',
        '[host."https://m"]\ncapabilities = 5',
    ],
)
def test_a_malformed_file_is_told_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "ghcr.io.toml").write_text(text)
    with pytest.raises(Permanent, match=r"ghcr\.io\.toml") as told:
        registry_hosts(tmp_path, "ghcr.io")
    assert "secret" not in str(told.value)


def test_every_registry_of_a_directory_is_told_with_its_mirrors(tmp_path: Path) -> None:
    for name in ("ghcr.io", "registry.bed_5000_", "_default"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text('[host."http://mirror:1"]\ncapabilities = ["pull"]\n')
    found = {registry: [host.base for host in hosts] for registry, hosts in all_hosts(tmp_path)}
    assert list(found) == ["_default", "ghcr.io", "registry.bed:5000"]
    assert found["ghcr.io"] == ["http://mirror:1/v2", "https://ghcr.io/v2"]
    assert found["registry.bed:5000"] == ["http://mirror:1/v2", "https://registry.bed:5000/v2"]


def test_a_mirror_that_only_pulls_is_asked_for_no_tag(tmp_path: Path) -> None:
    (tmp_path / "ghcr.io.toml").write_text('[host."http://mirror:1"]\ncapabilities = ["pull"]\n')
    assert [host.base for host in registry_hosts(tmp_path, "ghcr.io")] == ["https://ghcr.io/v2"]
