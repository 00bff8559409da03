"""Private images: by a Docker config file and by the kubelet's credential plugins, on every way a pull can go."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.client import ContainerdClient
from agent.images.faults import Fault, PermanentFault
from agent.images.keyring import Keyring
from agent.images.registry import RegistryResolver
from tests.contract.images_worlds import HOST, SNAPSHOTTER, RealWorld
from tests.integration.images.hostile import Front

SECRET = "hunter2-hunter2"
BASIC = base64.b64encode(f"robot:{SECRET}".encode()).decode()

PLUGIN = """#!/usr/bin/env python3
import json, os, sys
request = json.load(sys.stdin)
assert request["apiVersion"] == "credentialprovider.kubelet.k8s.io/v1", request
with open(os.environ["ASKED"], "a") as asked:
    asked.write(request["image"] + " " + " ".join(sys.argv[1:]) + "\\n")
print(json.dumps({"kind": "CredentialProviderResponse", "apiVersion": request["apiVersion"], "cacheKeyType": "Registry",
                  "cacheDuration": "1h", "auth": {"registry.test": {"username": "robot", "password": "%s"}}}))
"""


def config_file(directory: Path, secret: str) -> Path:
    file = directory / "config.json"
    auth = base64.b64encode(f"robot:{secret}".encode()).decode()
    file.write_text(json.dumps({"auths": {HOST: {"auth": auth}}}))
    return file


def plugin(directory: Path) -> tuple[Path, Path]:
    """A plugin and the kubelet's configuration of it."""
    program = directory / "bin" / "helper"
    program.parent.mkdir()
    program.write_text(PLUGIN % SECRET)
    program.chmod(0o755)
    config = directory / "providers.yaml"
    config.write_text(
        f"""apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: absent
  matchImages: ["*.test"]
  defaultCacheDuration: "12h"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
- name: helper
  matchImages: ["*.test"]
  defaultCacheDuration: "0s"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get-credentials]
  env: [{{name: ASKED, value: {directory}/asked}}]
"""
    )
    return config, program.parent


async def test_a_private_image_is_pulled_with_the_credentials_of_a_file(
    worlds: tuple[RealWorld, Front], tmp_path: Path
) -> None:
    world, front = worlds
    await world.push("private:1", layers=1)
    front.wants = f"Basic {BASIC}"
    keyring = Keyring(config_file(tmp_path, SECRET), None, tmp_path, SystemClock())
    client = ContainerdClient(world.node.socket, SNAPSHOTTER, keyring)
    try:
        with pytest.raises(PermanentFault) as caught:
            await world.node.pull(f"{HOST}/private:1", "")
        assert caught.value.fault is Fault.AUTH
        await client.pull(f"{HOST}/private:1", "")
        assert await client.present(f"{HOST}/private:1")
    finally:
        await client.close()


async def test_wrong_credentials_are_an_error_that_shows_none_of_them(
    worlds: tuple[RealWorld, Front], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, front = worlds
    await world.push("private:2", layers=1)
    front.wants = f"Basic {BASIC}"
    keyring = Keyring(config_file(tmp_path, "not-the-secret"), None, tmp_path, SystemClock())
    client = ContainerdClient(world.node.socket, SNAPSHOTTER, keyring)
    try:
        with pytest.raises(PermanentFault) as caught:
            await client.pull(f"{HOST}/private:2", "")
    finally:
        await client.close()
    assert caught.value.fault is Fault.AUTH
    log = (world.directory / "containerd.log").read_text()
    shown = str(caught.value) + repr(keyring.__dict__) + "".join(capsys.readouterr())
    assert "not-the-secret" not in shown
    assert "not-the-secret" not in log


async def test_a_private_image_is_pulled_with_what_a_plugin_says_which_is_asked_once(
    worlds: tuple[RealWorld, Front], tmp_path: Path
) -> None:
    world, front = worlds
    for name in ("private:3", "private:4"):
        await world.push(name, layers=1)
    front.wants = f"Basic {BASIC}"
    config, programs = plugin(tmp_path)
    keyring = Keyring(tmp_path / "none.json", config, programs, SystemClock())
    client = ContainerdClient(world.node.socket, SNAPSHOTTER, keyring)
    try:
        for name in ("private:3", "private:4"):
            await client.pull(f"{HOST}/{name}", "")
            assert await client.present(f"{HOST}/{name}")
    finally:
        await client.close()
    assert (tmp_path / "asked").read_text() == f"{HOST}/private get-credentials\n"


class Granted:
    """Pull secrets of two namespaces, of which the first has an old password."""

    async def auths(self, ref: ImageRef) -> Sequence[Mapping[str, object]]:
        good, old = {"username": "robot", "password": SECRET}, {"username": "robot", "password": "not-the-secret"}
        return [{HOST: old}, {"other.test": good}, {HOST: good}]


async def test_a_private_image_is_pulled_with_the_first_pull_secret_that_the_registry_takes(
    worlds: tuple[RealWorld, Front], tmp_path: Path
) -> None:
    world, front = worlds
    await world.push("private:5", layers=1)
    front.wants = f"Basic {BASIC}"
    keyring = Keyring(tmp_path / "none.json", None, tmp_path, SystemClock(), Granted())
    client = ContainerdClient(world.node.socket, SNAPSHOTTER, keyring)
    try:
        await client.pull(f"{HOST}/private:5", "")
        assert await client.present(f"{HOST}/private:5")
    finally:
        await client.close()


@pytest.mark.parametrize("worlds", ["2.2"], indirect=True)
async def test_a_private_tag_is_resolved_with_a_pull_secret(worlds: tuple[RealWorld, Front]) -> None:
    world, front = worlds
    digest = await world.push("private:6", layers=1)
    front.wants = f"Basic {BASIC}"
    resolver, ref = RegistryResolver(world.directory / "certs.d"), parse_image_ref(f"{HOST}/private:6")
    try:
        assert await resolver.resolve(ref, lambda: Granted().auths(ref)) == digest
        with pytest.raises(PermanentFault, match="prewarm grant"):
            await resolver.resolve(ref)
    finally:
        await resolver.close()
