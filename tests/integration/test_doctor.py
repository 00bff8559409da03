"""`prewarm doctor` as a person runs it, against an API server in memory over HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.fakes.api_server import FakeApiServer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
COLLECTIONS = {
    "ValidatingAdmissionPolicy": f"{ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{ADMISSION}/validatingadmissionpolicybindings",
}
DAEMONSET = "/apis/apps/v1/namespaces/gpu/daemonsets/plugin"
SOFT = {"key": "spot", "effect": "PreferNoSchedule"}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    """A cluster with nothing to mend: policies as shipped, an agent's and a planner's pod, a tolerant device plugin."""
    async with FakeApiServer().serving() as serving:
        for file in ("agent", "planner"):
            for found in yaml.safe_load_all((DEPLOY / f"policies/{file}.yaml").read_text()):
                await serving.put(f"{COLLECTIONS[found['kind']]}/{found['metadata']['name']}", found)
            labels = {"app.kubernetes.io/name": "prewarm", "app.kubernetes.io/component": file}
            pod = {"metadata": {"labels": labels}, "spec": {"serviceAccountName": f"prewarm-{file}"}}
            await serving.put(f"/api/v1/namespaces/prewarm/pods/{file}", pod)
        await serving.put(DAEMONSET, plugin([{"operator": "Exists"}]))
        await serving.put("/api/v1/nodes/cold", {"spec": {"taints": [SOFT]}})
        yield serving


def plugin(tolerations: list[dict[str, str]]) -> dict[str, Any]:
    path = "/var/lib/kubelet/device-plugins"
    volumes = [{"name": "v", "hostPath": {"path": path}}]
    return {"spec": {"template": {"spec": {"containers": [], "volumes": volumes, "tolerations": tolerations}}}}


@pytest.fixture
def kubeconfig(server: FakeApiServer, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path, server.url)


def write_kubeconfig(directory: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = directory / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


async def doctor(*arguments: object) -> tuple[int | None, str, str]:
    """Exit code, output and errors of the command."""
    program = Path(sys.executable).parent / "prewarm"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        str(program), "doctor", *map(str, arguments), stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_sound_cluster_has_nothing_to_mend(kubeconfig: Path) -> None:
    assert await doctor("--kubeconfig", kubeconfig) == (0, "gpu: nothing to mend\n", "")


async def test_every_finding_has_its_cure(server: FakeApiServer, kubeconfig: Path) -> None:
    await server.put(DAEMONSET, plugin([{"key": "nvidia.com/gpu", "operator": "Exists"}]))
    labels = {"endpoint.prewarm.dev/shop.chat": "ready"}
    await server.put("/api/v1/nodes/warm", {"metadata": {"labels": labels}, "spec": {"taints": [SOFT]}})
    await server.remove(f"{ADMISSION}/validatingadmissionpolicies/prewarm-agent-nodes")
    code, out, _ = await doctor("gpu", "--kubeconfig", kubeconfig, "--json")
    assert code == 3
    found = {a["about"]: a for a in json.loads(out)}
    assert set(found) == {"daemonset gpu/plugin", "node warm", "policy prewarm-agent-nodes"}
    assert "{key: prewarm.dev/not-ready, operator: Exists, effect: NoSchedule}" in found["daemonset gpu/plugin"]["cure"]
    assert found["node warm"]["cure"].startswith("kubectl taint node warm spot:PreferNoSchedule-")
    assert {a["topic"] for a in found.values()} == {"gpu"}
    assert {a["kind"] for a in found.values()} == {"mend"}
    code, out, _ = await doctor("gpu", "--kubeconfig", kubeconfig)
    assert code == 3
    assert "gpu: node warm: it is warm, but pods avoid it: spot:PreferNoSchedule outweighs" in out


async def test_what_may_not_be_seen_is_said_and_the_rest_is_told(server: FakeApiServer, kubeconfig: Path) -> None:
    server.failures = [403]  # the first question: which DaemonSets
    await server.remove(f"{ADMISSION}/validatingadmissionpolicies/prewarm-agent-nodes")
    code, out, _ = await doctor("--kubeconfig", kubeconfig)
    assert code == 1
    assert "gpu: daemonsets: could not be looked at: " in out
    assert "ask as somebody who may list daemonsets" in out
    assert "gpu: policy prewarm-agent-nodes: missing" in out


async def test_words_of_others_cannot_command_the_terminal(server: FakeApiServer, kubeconfig: Path) -> None:
    owner = {"controller": True, "kind": "\x1b[2J", "name": "x"}
    await server.put(DAEMONSET, plugin([]) | {"metadata": {"ownerReferences": [owner]}})
    code, out, _ = await doctor("--kubeconfig", kubeconfig)
    assert code == 3
    assert "daemonset gpu/plugin" in out
    assert all(c.isprintable() for c in out.replace("\n", ""))


async def test_it_changes_nothing(server: FakeApiServer, kubeconfig: Path) -> None:
    await doctor("--kubeconfig", kubeconfig)
    assert sum(server.count(method) for method in ("POST", "PUT", "PATCH", "DELETE")) == 0


async def test_an_api_server_that_is_away_is_one_error(tmp_path: Path) -> None:
    code, out, err = await doctor("--kubeconfig", write_kubeconfig(tmp_path, "http://127.0.0.1:9"))
    assert (code, out) == (1, "")
    assert err.startswith("prewarm doctor: GET /apis/apps/v1/daemonsets: ")
    assert err.count("\n") == 1


async def test_a_topic_that_there_is_not_is_a_usage_error(kubeconfig: Path) -> None:
    code, _, err = await doctor("gups", "--kubeconfig", kubeconfig)
    assert code == 2
    assert "'gups' is no topic: gpu" in err
