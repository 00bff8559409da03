"""Which socket a kubelet pulls images through."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.images.kubelet import image_endpoint

CONFIG = "imageServiceEndpoint: unix:///run/lazy.sock\ncontainerRuntimeEndpoint: unix:///run/c.sock\n"


@pytest.mark.parametrize(
    ("words", "config", "found"),
    [
        (["--config=/k.yaml"], CONFIG, "/run/lazy.sock"),
        (["--config", "/k.yaml"], "containerRuntimeEndpoint: unix:///run/c.sock\n", "/run/c.sock"),
        (["--image-service-endpoint=unix:///run/flag.sock", "--config=/k.yaml"], CONFIG, "/run/flag.sock"),
        (["--config=/k.yaml"], "{", ""),
        (["--config"], CONFIG, ""),
    ],
)
def test_flags_go_before_the_configuration(tmp_path: Path, words: list[str], config: str, found: str) -> None:
    process = tmp_path / "17"
    (process / "root").mkdir(parents=True)
    (process / "root" / "k.yaml").write_text(config)
    (process / "cmdline").write_bytes("\0".join(["/usr/bin/kubelet", *words, ""]).encode())
    assert image_endpoint(tmp_path) == found


def test_without_a_kubelet_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "cmdline").write_bytes(b"/sbin/init\0")
    assert image_endpoint(tmp_path) == ""


def test_a_configuration_behind_a_link_is_looked_for_in_the_kubelets_own_file_system(tmp_path: Path) -> None:
    process = tmp_path / "17"
    (process / "root" / "data").mkdir(parents=True)
    (process / "root" / "data" / "k.yaml").write_text(CONFIG)
    (process / "root" / "k.yaml").symlink_to("/data/k.yaml")
    (process / "cmdline").write_bytes(b"/usr/bin/kubelet\0--config=/k.yaml\0")
    assert image_endpoint(tmp_path) == "/run/lazy.sock"
