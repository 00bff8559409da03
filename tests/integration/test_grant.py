"""`prewarm grant` as a person runs it, against an API server in memory over HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
import yaml

from tests.fakes.api_server import FakeApiServer
from tests.integration.test_doctor import write_kubeconfig


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    """A namespace with an endpoint that names a secret, one whose service account does, and a workload that is none of prewarm's."""
    async with FakeApiServer().serving() as serving:
        await put(serving, "own", {"imagePullSecrets": [{"name": "regcred"}]})
        await put(serving, "robots", {"serviceAccountName": "robot"})
        await put(serving, "nobodys", {"imagePullSecrets": [{"name": "other"}]}, annotations={})
        account = {"imagePullSecrets": [{"name": "robot-pull"}]}
        await serving.put("/api/v1/namespaces/team/serviceaccounts/robot", account)
        yield serving


async def put(
    server: FakeApiServer, name: str, spec: dict[str, Any], annotations: dict[str, str] | None = None
) -> None:
    written = {"prewarm.dev/schedule": "0 9 * * *"} if annotations is None else annotations
    template = {"spec": {"containers": [{"name": "c", "image": "registry.test/x:1"}], **spec}}
    body = {"metadata": {"annotations": written}, "spec": {"template": template}}
    await server.put(f"/apis/apps/v1/namespaces/team/deployments/{name}", body)


async def grant(*arguments: object) -> tuple[int | None, str, str]:
    program, pipe = Path(sys.executable).parent / "prewarm", asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        str(program), "grant", *map(str, arguments), stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_exactly_the_secrets_that_endpoints_use_are_granted_by_name(
    server: FakeApiServer, tmp_path: Path
) -> None:
    code, out, _ = await grant("team", "--to", "prewarm-system", "--kubeconfig", write_kubeconfig(tmp_path, server.url))
    assert code == 0
    role, binding = yaml.safe_load_all(out)
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["regcred", "robot-pull"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["robot"], "verbs": ["get"]},
    ]
    assert role["metadata"] == binding["metadata"] == {"name": "prewarm-pull-secrets", "namespace": "team"}
    assert binding["roleRef"]["name"] == "prewarm-pull-secrets"
    assert {(s["namespace"], s["name"]) for s in binding["subjects"]} == {
        ("prewarm-system", "prewarm-agent"),
        ("prewarm-system", "prewarm-planner"),
    }


async def test_endpoints_of_every_kind_count(server: FakeApiServer, tmp_path: Path) -> None:
    container = {"name": "kserve-container", "image": "registry.test/x:1"}
    predictor = {"containers": [container], "imagePullSecrets": [{"name": "kserve-pull"}]}
    body = {
        "metadata": {"annotations": {"prewarm.dev/schedule": "0 9 * * *"}},
        "spec": {"predictor": predictor},
    }
    await server.put("/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices/chat", body)
    server.forbidden = "/serving.knative.dev/"  # as for people with few rights, where the kind is not installed
    code, out, err = await grant("models", "--kubeconfig", write_kubeconfig(tmp_path, server.url))
    assert code == 0
    role, _ = yaml.safe_load_all(out)
    assert role["rules"][0]["resourceNames"] == ["kserve-pull"]
    assert err == "prewarm: not looked at, for you may not list them: services\n"


async def test_a_namespace_without_pull_secrets_has_nothing_to_grant(server: FakeApiServer, tmp_path: Path) -> None:
    code, out, err = await grant("elsewhere", "--kubeconfig", write_kubeconfig(tmp_path, server.url))
    assert (code, out) == (1, "")
    assert "no endpoint of elsewhere names imagePullSecrets" in err
