"""Installs prewarm on the bed as its users do: `kubectl apply -k` of an overlay over deploy/, with the project's own image.

The overlay sets what an operator sets (image, settings, S3 keys, registries) and one thing more: the NVML stub in the
place of a driver's library, with a control file for each node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.core import names
from tests.bed import Bed, Event, Object, images, nvml
from tests.bed.bed import PROJECT
from tests.bed.layers import Layer
from tests.bed.modelserver.weights import write_model
from tests.bed.registry import Registry

NAMESPACE = "prewarm"
NVML_DIRECTORY = "/etc/containerd/nvml"  # a directory that each node of the bed has to itself
KERNEL_LOG = "kmsg"
PRIVATE_PORT = 5002  # where a test may run a registry that asks who one is: images of private.bed
SERVER = "registry.bed/llm-server:1"


class Product:
    """Prewarm, running on a bed."""

    def __init__(self, bed: Bed, *, gpus: int = 2) -> None:
        self.bed = bed
        self.overlay = bed.work / "overlay"
        self.gpus: dict[str, nvml.Control] = {}
        self._gpu_count = gpus
        self._settings: dict[str, str] = {}

    def install(self, settings: Mapping[str, str] | None = None) -> None:
        """Push the image, apply the overlay, wait until every agent and one planner is Ready."""
        image = images.product_image()
        image.push(Registry(self.bed.registry_address), tag=image.key)
        self._lay_out_gpus()
        self._settings = dict(settings or {})
        self._write_overlay(image.key)
        self.bed.kubectl("apply", "-k", str(self.overlay))
        self.bed.kubectl("wait", "--for=condition=Established", "crd/nodewarmups.prewarm.dev", "--timeout=30s")
        self.wait_until_running()

    def wait_until_running(self, seconds: int = 90) -> None:
        """Wait for the rollouts of agent and planner."""
        for what in ("daemonset/prewarm-agent", "deployment/prewarm-planner"):
            self.bed.kubectl("-n", NAMESPACE, "rollout", "status", what, f"--timeout={seconds}s")

    def patch_settings(self, **settings: str) -> None:
        """Change PREWARM_… settings and restart what reads them."""
        self._settings |= settings
        self.bed.kubectl(
            "-n",
            NAMESPACE,
            "patch",
            "configmap",
            "prewarm-settings",
            "--type=merge",
            "-p",
            json.dumps({"data": settings}),
        )

    def agent_pod(self, node: str) -> Object:
        """The agent's pod on a node; waits for one where it is being replaced."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=agent"

        def on_node() -> Object | None:
            pods = self.bed.api.get(path)["items"]
            mine = (p for p in pods if p["spec"].get("nodeName") == node and "deletionTimestamp" not in p["metadata"])
            return next(mine, None)

        found: Object = wait_until(on_node, 60, f"an agent's pod on {node}")
        return found

    def agent_log(self, node: str) -> str:
        """What the agent on a node has logged, read from the node's disk (works with the API server down)."""
        logs = sorted(
            self.bed.disk(node).glob("var/log/pods/prewarm_prewarm-agent-*/agent/*.log"),
            key=lambda p: p.stat().st_mtime,
        )
        return "\n".join(p.read_text() for p in logs)

    def _lay_out_gpus(self) -> None:
        for node in self.bed.nodes:
            directory = self.bed.disk(node) / NVML_DIRECTORY.lstrip("/")
            nvml.build(directory)
            self.gpus[node] = nvml.Control(directory / "control", gpus=self._gpu_count)
            (directory / KERNEL_LOG).touch()

    def kernel_says(self, node: str, text: str) -> None:
        """Append a line to the kernel log of a node."""
        with (self.bed.disk(node) / NVML_DIRECTORY.lstrip("/") / KERNEL_LOG).open("a") as log:
            log.write(f"{text}\n")

    def _write_overlay(self, tag: str) -> None:
        self.overlay.mkdir(exist_ok=True)
        hosts = f'server = "http://{self.bed.registry_address}"\n'
        private = f'server = "http://{self.bed.control_address}:{PRIVATE_PORT}"\n'
        s3 = self.bed.s3
        settings = {
            "PREWARM_SOURCES": "*=s3://models/",
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_REGION": s3.region,
            "PREWARM_WARM_AHEAD": "1h",
            "PREWARM_HIGH_WATERMARK": "1.0",  # this machine's disk may be as full as it likes
            "PREWARM_IMAGE_WATERMARK": "1.0",
        } | self._settings
        documents: dict[str, Sequence[Object]] = {
            "settings.yaml": [config_map("prewarm-settings", settings)],
            "registries.yaml": [
                config_map("prewarm-registries", {"registry.bed.toml": hosts, "private.bed.toml": private})
            ],
            "secret.yaml": [
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "prewarm-s3", "namespace": NAMESPACE},
                    "stringData": {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key},
                }
            ],
            "gpus.yaml": [gpu_patch(self._gpu_count)],
        }
        for name, objects in documents.items():
            (self.overlay / name).write_text("\n---\n".join(json.dumps(o) for o in objects))
        (self.overlay / "kustomization.yaml").write_text(
            json.dumps(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "resources": [os.path.relpath(PROJECT / "deploy", self.overlay), "registries.yaml", "secret.yaml"],
                    "patches": [{"path": "settings.yaml"}, {"path": "gpus.yaml"}],
                    "images": [{"name": "ghcr.io/prewarm/prewarm", "newName": "registry.bed/prewarm", "newTag": tag}],
                }
            )
        )


def config_map(name: str, data: Mapping[str, str]) -> Object:
    """A ConfigMap in prewarm's namespace."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": dict(data),
    }


def gpu_patch(gpus: int) -> Object:
    """Mounts the NVML stub into the agent and says how many GPUs a node must have."""
    environment = {
        "LD_LIBRARY_PATH": "/nvml",
        "PREWARM_NVML_STUB": "/nvml/control",
        "PREWARM_GPUS": str(gpus),
        "PREWARM_KERNEL_LOG": f"/nvml/{KERNEL_LOG}",  # all nodes of the bed have this machine's
    }
    container = {
        "name": "agent",
        "env": [{"name": k, "value": v} for k, v in environment.items()],
        "volumeMounts": [{"name": "nvml", "mountPath": "/nvml"}],
    }
    volume = {"name": "nvml", "hostPath": {"path": NVML_DIRECTORY}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "prewarm-agent", "namespace": NAMESPACE},
        "spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}},
    }


def push_server_image(bed: Bed, name: str = SERVER, *, padding_bytes: int = 200_000_000, parts: int = 4) -> str:
    """Push the model server, padded with incompressible layers to a size worth pulling ahead; returns its digest."""
    repository, _, tag = name.removeprefix("registry.bed/").partition(":")
    registry = Registry(bed.registry_address)
    images.modelserver_image().push(registry, tag="base")
    layers = [Layer(size_bytes=padding_bytes // parts, seed=str(n)) for n in range(parts)]
    return registry.make_image(repository, tag, layers, base="modelserver:base")


def put_model(bed: Bed, prefix: str, size_bytes: int, *, version: str, directory: Path) -> None:
    """Upload a synthetic model below s3://models/PREFIX/."""
    for path in [*write_model(directory, size_bytes, shards=2, version=version), *sorted(directory.glob("*.json"))]:
        bed.s3.put("models", f"{prefix}/{path.name}", path)


def deployment(name: str, annotations: Mapping[str, str], *, image: str = SERVER, gpus: int = 0) -> Object:
    """A Deployment of the model server at zero replicas."""
    container: Object = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "MODEL_DIR", "value": "/models/llm"}, {"name": "PORT", "value": "8000"}],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8000}, "periodSeconds": 1},
    }
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {
                    "labels": {"app": name, "prewarm.dev/endpoint": name},
                    "annotations": dict(annotations),
                },
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "dnsPolicy": "Default",
                    "containers": [container],
                },
            },
        },
    }


def cron_in(delay: timedelta) -> tuple[str, datetime]:
    """A cron expression for the first full minute that is at least `delay` ahead, and that minute (UTC)."""
    at = (datetime.now(UTC) + delay + timedelta(seconds=59)).replace(second=0, microsecond=0)
    return f"{at.minute} {at.hour} * * *", at


def prewarm(*arguments: str) -> str:
    """Output of the command as a person runs it."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "prewarm"), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"prewarm {' '.join(arguments)}: {done.returncode}: {done.stderr}")
    return done.stdout


def node_labels(bed: Bed, node: str) -> dict[str, str]:
    """A node's labels of ours."""
    labels = bed.api.get(f"/api/v1/nodes/{node}")["metadata"]["labels"]
    return {k: v for k, v in labels.items() if names.is_ours(k)}


def wait_label(bed: Bed, node: str, label: str, value: str | None, seconds: int = 60) -> Event:
    """Watch a node until `label` is `value` (None: absent); the Event carries the monotonic time it was seen at."""
    return bed.api.until(
        f"/api/v1/nodes?fieldSelector=metadata.name={node}",
        lambda event: event.object["metadata"]["labels"].get(label) == value,
        seconds,
    )


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask every 0.2 s until something true comes back.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found
