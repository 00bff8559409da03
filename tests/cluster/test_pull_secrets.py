"""The pull secrets of a namespace count once they are granted, and are seen nowhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from agent.core.names import READY, endpoint_label
from tests.bed import Bed
from tests.bed.layers import Layer
from tests.bed.process import ENVIRONMENT, start
from tests.bed.registry import Registry
from tests.cluster import product as installed
from tests.cluster.product import PRIVATE_PORT, Product, deployment, prewarm, wait_label, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

HOST, USER, PASSWORD = "private.bed", "robot", "hunter2-hunter2"
HASH = "$2b$04$45r7IUBVNQQw1b2lm3a5We3NCOIZKd/Bg.9MuDsyLSsTwMBiR/mu2"  # bcrypt of PASSWORD
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
CONFIG = json.dumps({"auths": {HOST: {"auth": AUTH}}})
SECRETS = (PASSWORD, AUTH, base64.b64encode(CONFIG.encode()).decode())


@pytest.fixture
def private(bed: Bed) -> Iterator[Bed]:
    """The bed's images from a second registry, which asks who one is."""
    users, config = bed.work / "htpasswd", bed.work / "private.yml"
    users.write_text(f"{USER}:{HASH}\n")
    config.write_text(f"""version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {bed.work}/registry}}}}
http: {{addr: ":{PRIVATE_PORT}"}}
auth: {{htpasswd: {{realm: bed, path: {users}}}}}
""")
    server = start(bed.inside("cp", ["docker-registry", "serve", str(config)]), bed.log("private"), ENVIRONMENT)
    server.save(bed.work / "run" / "private.pid")
    for node in bed.nodes:
        hosts = bed.disk(node) / "etc/containerd/certs.d" / HOST / "hosts.toml"
        hosts.parent.mkdir(exist_ok=True)
        url = f"http://{bed.control_address}:{PRIVATE_PORT}"
        hosts.write_text(f'server = "{url}"\n[host."{url}"]\n')  # containerd 1.6 wants both
    yield bed
    bed.kill_service("private")


def test_granted_pull_secrets_pull_a_private_image_and_are_seen_nowhere(
    private: Bed, product: Product, namespace: str
) -> None:
    bed = private
    Registry(bed.registry_address).make_image("secret", "1", [Layer(size_bytes=100_000, seed=namespace)])
    put_secret(bed, namespace)
    workload = deployment("hidden", {"prewarm.dev/schedule": "* * * * *"}, image=f"{HOST}/secret:1")
    workload["spec"]["template"]["spec"]["serviceAccountName"] = "puller"
    bed.apply(workload, namespace)
    wait_until(lambda: "prewarm grant" in events(bed, namespace), 60, "an Event names the cure")

    bed.apply(prewarm("grant", namespace, "--kubeconfig", str(bed.kubeconfig)))
    node = wait_until(lambda: ready_node(bed, endpoint_label(namespace, "hidden")), 90, "a node is ready")

    for account in ("prewarm-agent", "prewarm-planner"):
        assert may(bed, account, namespace, "secret/regcred")
        assert not may(bed, account, namespace, "secret/other")
        assert not may(bed, account, "default", "secret/regcred")
    logs = "".join(product.agent_log(each) for each in bed.nodes)
    logs += bed.kubectl("-n", installed.NAMESPACE, "logs", "deployment/prewarm-planner", "--all-pods", "--tail=-1")
    shown = bed.kubectl("get", "nodewarmups,nodes", "-o", "yaml") + events(bed, namespace)
    assert "private.bed/secret:1" in shown
    for secret in SECRETS:
        assert secret not in logs + shown
    bed.api.delete(f"/apis/apps/v1/namespaces/{namespace}/deployments/hidden")
    wait_label(bed, node, endpoint_label(namespace, "hidden"), None)


def put_secret(bed: Bed, namespace: str) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "regcred"},
        "stringData": {".dockerconfigjson": CONFIG},
    }
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "puller"},
        "imagePullSecrets": [{"name": "regcred"}],
    }
    bed.apply([secret, account], namespace)


def events(bed: Bed, namespace: str) -> str:
    return json.dumps(bed.api.get(f"/api/v1/namespaces/{namespace}/events")["items"])


def ready_node(bed: Bed, label: str) -> str:
    return next((node for node in bed.nodes if installed.node_labels(bed, node).get(label) == READY), "")


def may(bed: Bed, account: str, namespace: str, what: str) -> bool:
    who = f"system:serviceaccount:{installed.NAMESPACE}:{account}"
    resource, _, name = what.partition("/")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": who,
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{installed.NAMESPACE}"],
            "resourceAttributes": {"namespace": namespace, "verb": "get", "resource": f"{resource}s", "name": name},
        },
    }
    return bool(bed.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])
