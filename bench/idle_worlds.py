"""The idle load of the design: 10 images of 20 layers unpacked in a real containerd, 5 models of 30 files from a real S3.

On a cluster where there can be one (a real API server, kubelet and containerd; the agent runs beside them on the machine and
is told what to warm by a NodeWarmup), else with a plan file, in front of a containerd of our own where root allows that.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.core.assignment_json import format_time
from agent.kube.credentials import SERVICE_ACCOUNT
from bench.demo import running, s3_environment
from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.bed.s3 import S3Client, S3Server

IMAGES, LAYERS, MODELS, FILES = 10, 20, 5, 30
LAYER_BYTES, FILE_BYTES = 4096, 65536  # idle costs nothing per byte: only how many there are counts
NODE = "node-1"
_RESOLVE = """
import asyncio, json, sys
from agent.core.refs import parse_model_uri
from agent.models.resolve import resolve
async def main():
    found = [await resolve(parse_model_uri(uri)) for uri in sys.argv[1:]]
    print(json.dumps([{"digest": m.digest, "sizeBytes": m.size_bytes, "files": len(m.objects)} for m in found]))
asyncio.run(main())
"""
Spec = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How to start an agent that finds the idle load: the flags of `prewarm agent`, its environment, and in words."""

    told: str
    flags: Mapping[str, str]
    environment: Mapping[str, str]
    wrapper: Sequence[str] = ()  # what runs the command; becomes it by exec
    lacking: Sequence[str] = ()


@contextlib.contextmanager
def cluster(work: Path) -> Iterator[World]:
    """A bed with one node."""
    with Bed(PROJECT / ".cache" / f"bed-idle-{os.getpid()}", 1, fast_eviction=False) as bed:
        for manifest in ("namespace", "crd", "rbac"):
            bed.kubectl("apply", "-f", str(PROJECT / "deploy" / f"{manifest}.yaml"))
        bed.kubectl("wait", "--for=condition=Established", "crd/nodewarmups.prewarm.dev", "--timeout=30s")
        put_models(bed.s3)
        images = push_images(Registry(bed.registry_address), "registry.bed")
        environment = environment_for_s3(bed.s3)
        warmup = {
            "apiVersion": "prewarm.dev/v1alpha1",
            "kind": "NodeWarmup",
            "metadata": {"name": NODE},
            "spec": spec(images, resolve(environment)),
        }
        bed.apply(warmup)
        inside = bed.node_pids(NODE, "containerd")[0]  # its socket is in a mount namespace of the node
        yield World(
            told="Kubernetes API server, kubelet and containerd of the bed, the assignment from a NodeWarmup",
            flags={
                "node-name": NODE,
                "boot-id-file": str(bed.disk(NODE) / "boot_id"),
                "containerd": f"/proc/{inside}/root/run/containerd/containerd.sock",
                "sources": "*=s3://models/",
            },
            environment=environment
            | {"KUBERNETES_SERVICE_HOST": bed.control_address, "KUBERNETES_SERVICE_PORT": "443"},
            wrapper=with_service_account(bed, work / "account"),
        )


def with_service_account(bed: Bed, directory: Path) -> list[str]:
    """Lay the agent's account out as the kubelet does, and return the words that run a command which finds it.

    A kubeconfig would do, but reading one takes the kubernetes client: 17 MB that no agent in a pod has.
    """
    directory.mkdir()
    token = bed.kubectl("create", "token", "prewarm-agent", "-n", "prewarm", "--duration=24h")
    (directory / "token").write_text(token)
    (directory / "ca.crt").write_bytes((bed.work / "pki" / "ca.crt").read_bytes())
    # A /run of its own: no mount point is left behind on this machine.
    script = 'mount -t tmpfs run /run && mkdir -p "$0" && mount --bind "$1" "$0" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(SERVICE_ACCOUNT.resolve()), str(directory)]


@contextlib.contextmanager
def alone(work: Path, why: str) -> Iterator[World]:
    """A plan file; `why` there is no cluster."""
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(S3Server(work / "s3"))
        put_models(s3)
        images: list[Spec] = []
        containerd, lacking = "none", [f"no Kubernetes ({why}): a plan file, nothing is published"]
        if reason := needs.why_not("images"):
            lacking.append(f"no containerd ({reason}): no images")
        else:
            containerd, images = stack.enter_context(own_containerd(work))
        plan = work / "plan.yaml"
        plan.write_text(json.dumps(spec(images, [{}] * MODELS)))
        yield World(
            told="prewarm agent --plan",
            flags={"plan": str(plan), "containerd": containerd},
            environment=environment_for_s3(s3),
            lacking=lacking,
        )


@contextlib.contextmanager
def own_containerd(work: Path) -> Iterator[tuple[str, list[Spec]]]:
    """A registry and a containerd with all state below `work`; yields its socket and the images that were pushed."""
    from tests.contract.images_worlds import HOST, real_registry

    root, socket = work / "containerd", work / "c.sock"
    hosts = root / "certs.d" / HOST / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    (work / "containerd.toml").write_text(
        f'version = 2\nroot = "{root}/root"\nstate = "{root}/state"\n[grpc]\naddress = "{socket}"\n'
        f'[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{root}/certs.d"\n'
        f'[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{root}/cni"\nconf_dir = "{root}/cni"\n'
    )
    with real_registry(work) as registry:
        url = f"http://{registry.host}:{registry.port}"
        hosts.write_text(f'server = "{url}"\n[host."{url}"]\n')
        images = push_images(registry, HOST)
        with running(["containerd", "-c", f"{work}/containerd.toml"], os.environ, work / "containerd.log"):
            deadline = time.monotonic() + 30
            while not socket.exists():
                if time.monotonic() > deadline:
                    raise SystemExit(f"containerd did not start: {(work / 'containerd.log').read_text()[-2000:]}")
                time.sleep(0.02)
            yield str(socket), images


def push_images(registry: Registry, host: str) -> list[Spec]:
    """Push the images; returns them as a NodeWarmup names them, by the digest of their tag."""
    pushed: list[Spec] = []
    for number in range(IMAGES):
        layers = [Layer(size_bytes=LAYER_BYTES, seed=f"idle-{number}-{layer}") for layer in range(LAYERS)]
        digest = registry.make_image(f"idle-{number}", "1", layers)
        pushed.append({"ref": f"{host}/idle-{number}:1", "digest": digest})
    return pushed


def put_models(s3: S3Client) -> None:
    """Upload the models."""
    for model in range(MODELS):
        for file in range(FILES):
            s3.put("models", f"idle-{model}/part-{file:02}.safetensors", os.urandom(FILE_BYTES))


def resolve(environment: Mapping[str, str]) -> list[Spec]:
    """What the planner resolves of each model. In a process of its own: its libraries must not be shared with the agent."""
    uris = [f"s3://models/idle-{model}/" for model in range(MODELS)]
    command = [sys.executable, "-c", _RESOLVE, *uris]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True)
    found: list[Spec] = json.loads(done.stdout)
    return found


def spec(images: Sequence[Spec], models: Sequence[Spec]) -> dict[str, object]:
    """One endpoint for each model, with its share of the images, in a window that is open all the time."""
    now = datetime.now(UTC)
    window = {
        "readyBy": format_time(now - timedelta(hours=1)),
        "until": format_time(now + timedelta(hours=20)),
        "source": "declared",
    }
    return {
        "endpoints": [
            {
                "namespace": "bench",
                "name": f"idle-{number}",
                "images": list(images[number::MODELS]),
                "models": [{"name": "llm", "uri": f"s3://models/idle-{number}/", **model}],
                "windows": [window],
            }
            for number, model in enumerate(models)
        ]
    }


def environment_for_s3(s3: S3Client) -> dict[str, str]:
    """The environment of an agent that fetches from this server."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    return kept | s3_environment(s3.url) | keys
