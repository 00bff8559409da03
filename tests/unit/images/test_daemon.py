"""Which way a pull goes, by what containerd is and how it is configured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.images.daemon import Daemon, DaemonConfig, config_file, parse_config, pull_way, read_config

NEW = Daemon(version="v2.2.2", transfer=True, config=DaemonConfig(roots=("/etc/certs.d",)))


def way(daemon: Daemon, *, snapshotter: str = "overlayfs", handler: str = "", roots: tuple[str, ...] = ()) -> str:
    return pull_way(daemon, snapshotter=snapshotter, handler=handler, roots=roots).reason


def test_the_transfer_service_is_given_the_one_directory_that_knows_the_registry() -> None:
    found = pull_way(NEW, snapshotter="overlayfs", handler="", roots=("/etc/certs.d",))
    assert (found.resumable, found.hosts) == (True, "/etc/certs.d")
    assert pull_way(NEW, snapshotter="overlayfs", handler="", roots=()).hosts == ""


@pytest.mark.parametrize(
    ("daemon", "options", "why"),
    [
        (replace(NEW, version="1.6.20~ds1", transfer=False), {}, "containerd 1.6.20 has no transfer service"),
        (NEW, {"handler": "kata"}, "runtime handler kata chooses the snapshotter"),
        (NEW, {"snapshotter": "stargz"}, "snapshotter stargz fetches by itself"),
        (replace(NEW, config=None), {}, "containerd's configuration of registries cannot be read from here"),
        (replace(NEW, config=DaemonConfig(legacy_registries=True)), {}, "mirrors, configs or auths"),
        (replace(NEW, version="1.7.24"), {"roots": ("/a",)}, "the transfer service of containerd 1.7.24 reads no hosts.toml"),
        (NEW, {"roots": ("/a", "/b")}, "reads one hosts.toml directory, not /a and /b"),
    ],
)  # fmt: skip
def test_what_the_transfer_service_cannot_do_goes_by_the_cri_and_says_why(
    daemon: Daemon, options: dict[str, str], why: str
) -> None:
    told = way(daemon, **options)  # type: ignore[arg-type]
    assert told.startswith("not resumable, by the CRI: ")
    assert why in told


def test_versions_are_read_as_they_are_written() -> None:
    written = ("1.6.20~ds1", "v2.2.7", "2.1.9+unknown", "dev")
    assert [Daemon(version=v).number for v in written] == [(1, 6, 20), (2, 2, 7), (2, 1, 9), (0, 0, 0)]


def test_without_a_setting_containerd_2_2_reads_two_directories_and_older_ones_none() -> None:
    unset = replace(NEW, config=DaemonConfig())
    assert unset.roots == ("/etc/containerd/certs.d", "/etc/docker/certs.d")
    assert replace(unset, version="2.1.9").roots == ()


def test_only_directories_that_know_the_registry_count(tmp_path: Path) -> None:
    (tmp_path / "b" / "r.io").mkdir(parents=True)
    (tmp_path / "b" / "r.io" / "hosts.toml").touch()
    daemon = replace(NEW, root=tmp_path, config=DaemonConfig(roots=("/a", "/b")))
    assert daemon.roots_for("r.io") == ("/b",)
    assert daemon.roots_for("other.io") == ()


V3 = {
    "plugins": {
        "io.containerd.cri.v1.images": {
            "snapshotter": "stargz",
            "disable_snapshot_annotations": False,
            "discard_unpacked_layers": True,
            "runtime_platforms": {"kata": {"snapshotter": "devmapper"}, "runc": {}},
            "registry": {"config_path": "/a:/b"},
        }
    }
}
V2 = {
    "plugins": {
        "io.containerd.grpc.v1.cri": {
            "containerd": {
                "snapshotter": "stargz",
                "disable_snapshot_annotations": False,
                "runtimes": {"nvidia": {"runtime_type": "io.containerd.runc.v2"}, "kata": {"snapshotter": "devmapper"}},
            },
            "registry": {"mirrors": {"docker.io": {}}},
        }
    }
}


KATA = {"kata": "devmapper"}


def test_configurations_of_every_version_are_read() -> None:
    assert parse_config(V3) == DaemonConfig(
        snapshotter="stargz", roots=("/a", "/b"), annotates_snapshots=True, discards_layers=True, handlers=KATA
    )
    assert parse_config(V2) == DaemonConfig(
        snapshotter="stargz", annotates_snapshots=True, legacy_registries=True, handlers=KATA
    )
    assert parse_config({}) == DaemonConfig()


def test_imports_are_joined_and_what_cannot_be_read_is_not_guessed(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "containerd"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "config.toml").write_text(
        'imports = ["conf.d/*.toml"]\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n'
    )
    (directory / "conf.d" / "x.toml").write_text(
        '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/c"\n'
    )
    file = "/etc/containerd/config.toml"
    assert read_config(tmp_path, file) == DaemonConfig(snapshotter="native", roots=("/c",))
    (directory / "conf.d" / "x.toml").write_text("= nonsense")
    assert read_config(tmp_path, file) is None
    assert read_config(tmp_path, "/nowhere.toml") == DaemonConfig()


def test_the_configuration_is_the_one_that_the_command_line_names() -> None:
    assert config_file(["containerd", "-c", "/x.toml", "-l", "info"]) == "/x.toml"
    assert config_file(["containerd", "--config=/y.toml"]) == "/y.toml"
    assert config_file(["containerd"]) == "/etc/containerd/config.toml"
