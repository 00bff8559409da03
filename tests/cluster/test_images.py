"""The images and the GPU stub do on real nodes what the other cluster tests take for granted."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest

from tests.bed import Bed, Event, Object, nvml
from tests.bed.images import modelserver_image, product_image
from tests.bed.layers import Compression, Layer
from tests.bed.modelserver.weights import write_model
from tests.bed.registry import Family, Registry

pytestmark = pytest.mark.cluster


def pod(name: str, container: Object, host_path: Path) -> Object:
    """One container with a directory of this machine at /given."""
    mounts = {"volumeMounts": [{"name": "given", "mountPath": "/given"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": "node-1"},
            "volumes": [{"name": "given", "hostPath": {"path": str(host_path)}}],
            "containers": [{"name": "main", **mounts, **container}],
        },
    }


@pytest.mark.parametrize(("compression", "family"), [("gzip", "oci"), ("zstd", "oci"), ("none", "docker")])
def test_padded_model_server_is_pulled_and_serves(
    bed: Bed, namespace: str, tmp_path: Path, compression: Compression, family: Family
) -> None:
    registry = Registry(bed.registry_address)
    modelserver_image().push(registry, tag="1")
    padding = [
        Layer(size_bytes=5_000_000, seed=f"{compression}-{number}", compression=compression) for number in (1, 2)
    ]
    registry.make_image("padded", compression, padding, base="modelserver:1", family=family)
    write_model(tmp_path, 10_000_000, version="v3")
    probe = {"httpGet": {"path": "/v2/health/ready", "port": 8000}, "periodSeconds": 1}
    environment = [{"name": "MODEL_DIR", "value": "/given"}]
    container = {"image": f"registry.bed/padded:{compression}", "env": environment, "readinessProbe": probe}

    def is_ready(event: Event) -> bool:
        conditions = event.object["status"].get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    pods = f"/api/v1/namespaces/{namespace}/pods"
    bed.api.post(pods, pod("server", container, tmp_path))
    address = bed.api.until(pods, is_ready, 60).object["status"]["podIP"]

    connection = http.client.HTTPConnection(address, 8000, timeout=10)
    connection.request("POST", "/v1/completions", '{"prompt": "ab"}')
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["metadata"]["version"] == "v3"
    assert answer["choices"][0]["text"] == "ba"


def test_product_image_finds_stub_gpus_in_a_pod(bed: Bed, namespace: str, tmp_path: Path) -> None:
    product_image().push(Registry(bed.registry_address), tag="images-test")
    nvml.build(tmp_path)
    nvml.Control(tmp_path / "control", gpus=8)
    code = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount(), 'GPUs')"
    environment = {"LD_LIBRARY_PATH": "/given", "PREWARM_NVML_STUB": "/given/control"}
    container = {
        "image": "registry.bed/prewarm:images-test",
        "command": ["python3", "-c", code],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }
    pods = f"/api/v1/namespaces/{namespace}/pods"

    bed.api.post(pods, pod("gpus", container, tmp_path))
    bed.api.until(pods, lambda event: event.object["status"]["phase"] in ("Succeeded", "Failed"), 60)

    assert "8 GPUs" in bed.kubectl("logs", "-n", namespace, "gpus")
