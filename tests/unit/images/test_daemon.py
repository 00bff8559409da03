"""Which way a pull goes, by what containerd is and how it is configured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.inventory import Inventory
from agent.images.daemon import Daemon, DaemonConfig, config_file, elsewhere, parse_config, pull_way, read_config
from agent.images.disk import read_disk

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


@pytest.mark.parametrize(
    ("default", "handlers", "unproved"),
    [
        ("overlayfs", {}, {}),
        ("overlayfs", KATA, {"kata": "runtime handler kata unpacks into devmapper"}),
        ("stargz", {"plain": "overlayfs"}, {"": "set snapshotter (PREWARM_SNAPSHOTTER) to stargz", "nvidia": "unpacks into stargz"}),
        ("stargz", KATA, {"": "unpacks into stargz", "nvidia": "unpacks into stargz", "kata": "unpacks into devmapper"}),
    ],
)  # fmt: skip
def test_nothing_is_proved_for_handlers_that_unpack_elsewhere_the_default_one_among_them(
    default: str, handlers: dict[str, str], unproved: dict[str, str]
) -> None:
    there = elsewhere(DaemonConfig(snapshotter=default, handlers=handlers), "overlayfs")
    inventory = Inventory(elsewhere=there)
    for handler in ("", "nvidia", "kata", "plain"):
        if handler in ("kata", "plain") and handler not in handlers:
            continue
        told = inventory.unproved(handler)
        assert bool(told) == (handler in unproved)
        assert unproved.get(handler, "") in told


LEGACY = '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."x.io"]\nendpoint = ["http://m"]\n'


def test_links_in_the_daemons_file_system_are_followed_inside_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for directory in ("etc/containerd", "opt/conf.d", "srv"):
        (root / directory).mkdir(parents=True)
    (root / "opt/c.toml").write_text('imports = ["conf.d/*.toml"]\n')
    (root / "etc/containerd/config.toml").symlink_to("/opt/c.toml")
    (root / "etc/containerd/conf.d").symlink_to("/opt/conf.d")
    (root / "opt/conf.d/x.toml").symlink_to("../../../../srv/x.toml")  # which ends at the root, as for containerd
    (root / "srv/x.toml").write_text(LEGACY)
    assert read_config(root, "/etc/containerd/config.toml") == DaemonConfig(legacy_registries=True)


@pytest.mark.parametrize(
    "target", ["/outside.toml", "../../../outside.toml", "/etc/containerd/config.toml", "/nowhere/x"]
)
def test_a_configuration_that_is_there_and_cannot_be_read_is_not_taken_for_the_defaults(
    tmp_path: Path, target: str
) -> None:
    root = tmp_path / "root"
    (root / "etc/containerd").mkdir(parents=True)
    (tmp_path / "outside.toml").write_text("")
    (root / "etc/containerd/config.toml").symlink_to(target)
    assert read_config(root, "/etc/containerd/config.toml") is None


def test_what_is_imported_and_gone_and_the_files_of_a_process_that_is_gone_are_not_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/c.toml").write_text('imports = ["/etc/x.toml"]\n')
    (tmp_path / "etc/x.toml").symlink_to("/etc/none.toml")
    assert read_config(tmp_path, "/etc/c.toml") is None
    (tmp_path / "etc/c.toml").write_text('imports = ["/etc/x*.toml"]\n')
    assert read_config(tmp_path, "/etc/c.toml") is None
    (tmp_path / "etc/c.toml").write_text('imports = ["/*/y*.toml"]\n')
    assert read_config(tmp_path, "/etc/c.toml") == DaemonConfig()
    (tmp_path / "etc/y.toml").write_text(LEGACY)
    assert read_config(tmp_path, "/etc/c.toml") == DaemonConfig(legacy_registries=True)
    assert read_config(tmp_path / "gone", "/etc/c.toml") is None
    assert read_config(tmp_path, "/etc/none.toml") == DaemonConfig()


def test_hosts_of_a_registry_behind_links_are_found_inside_the_daemons_file_system(tmp_path: Path) -> None:
    (tmp_path / "opt/certs/r.io").mkdir(parents=True)
    (tmp_path / "opt/real.toml").write_text('server = "http://10.0.0.1:5000"\n')
    (tmp_path / "opt/certs/r.io/hosts.toml").symlink_to("/opt/real.toml")
    (tmp_path / "certs.d").symlink_to("/opt/certs")
    daemon = replace(NEW, root=tmp_path, config=DaemonConfig(roots=("/certs.d",)))
    assert daemon.roots_for("r.io") == ("/certs.d",)
    assert [host.base for host in daemon.hosts("r.io")] == ["http://10.0.0.1:5000/v2"]
    assert [host.base for host in daemon.hosts("other.io")] == ["https://other.io/v2"]


def test_the_disk_behind_a_link_is_the_daemons(tmp_path: Path) -> None:
    (tmp_path / "data/containerd").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("/data")
    assert read_disk(tmp_path, "/lib/containerd") is not None
    assert read_disk(tmp_path, "/lib/none") is None
