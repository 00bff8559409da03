"""Three nodes warm one image through a mirror on one of them: nginx as a pull-through cache, as containerd's hosts.toml names it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cli import main
from agent.core.assignment_json import format_time
from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.bed.layers import Layer
from tests.bed.process import ENVIRONMENT, Process, descendants, start
from tests.bed.registry import Registry
from tests.bed.settings import REGISTRY
from tests.cluster.product import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PREWARM = str(Path(sys.executable).parent / "prewarm")
MIRROR_NODE, MIRROR_PORT = "node-1", 5001
LAYERS, LAYER_BYTES = 3, 20_000_000
IMAGE_BYTES = LAYERS * LAYER_BYTES
HEADERS = 0.03  # of the bytes of an image: what TCP counts and a registry's log does not
ACCESS = re.compile(r'^(\S+) - - \[[^]]*\] "GET (\S+) HTTP/1\.1" 20[06] (\d+)', re.MULTILINE)


@pytest.fixture
def mirrored() -> Iterator[Bed]:
    """Three nodes with containerd 2.1.9, which ask a mirror on node-1 first."""
    if (reason := needs.why_not("mirror")) or (containerd := needs.newer("sid", "containerd")) is None:
        pytest.skip(f"no cluster: {reason}")
    with Bed(PROJECT / ".cache" / f"bed-mirror-{os.getpid()}", nodes=3, containerd=[containerd]) as bed:
        start_mirror(bed)
        for node in bed.nodes:
            hosts = bed.disk(node) / "etc/containerd/certs.d" / REGISTRY / "hosts.toml"
            hosts.write_text(
                f'server = "http://{bed.registry_address}"\n'
                f'[host."http://{mirror(bed)}"]\ncapabilities = ["pull", "resolve"]\n'
            )
        yield bed


def mirror(bed: Bed) -> str:
    return f"{bed.settings.addresses.node(MIRROR_NODE)}:{MIRROR_PORT}"


def start_mirror(bed: Bed) -> None:
    """A cache that fetches each layer once, however many ask at the same moment; docker-registry as a proxy fetches it twice."""
    directory = bed.work / "mirror"
    directory.mkdir()
    (bed.work / "mirror.conf").write_text(f"""
daemon off; user root; worker_processes 1; pid {directory}/pid; error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  proxy_cache_path {directory}/cache keys_zone=layers:1m use_temp_path=off;
  server {{
    listen {MIRROR_PORT};
    location / {{
      proxy_pass http://{bed.registry_address};
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Accept $http_accept;
      proxy_cache layers; proxy_cache_key $uri; proxy_cache_valid 200 1h;
      proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;
    }}
  }}
}}
""")
    nginx = ["nginx", "-p", str(directory), "-c", str(bed.work / "mirror.conf"), "-e", "stderr"]
    start(bed.inside(MIRROR_NODE, nginx), bed.log("mirror"), ENVIRONMENT).save(bed.work / "run" / "mirror.pid")
    wait_until(lambda: answers(f"http://{mirror(bed)}/v2/"), 30, f"the mirror answers; see {bed.log('mirror')}")


def kill_mirror(bed: Bed) -> None:
    process = Process.load(bed.work / "run" / "mirror.pid")
    assert process is not None
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def answers(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except OSError:
        return ""


class NodeAgent:
    """`prewarm agent --plan` on a node."""

    def __init__(self, bed: Bed, node: str) -> None:
        self._bed, self._node = bed, node
        self._plan = bed.work / f"{node}-plan.json"
        (bed.work / "no-gpus").mkdir(exist_ok=True)

    def start(self, image: str) -> None:
        """Start it, and ask for this image in an open window."""
        self.ask_for(image)
        settings = {
            "plan": self._plan,
            "http-address": "0.0.0.0:9808",
            "proof-interval-seconds": "1s",
            "pci-devices": self._bed.work / "no-gpus",
            "high-watermark": "1.0",
            "image-watermark": "1.0",
        }
        command = [PREWARM, "agent", *(f"--{name}={value}" for name, value in settings.items())]
        start(self._bed.inside(self._node, command), self._bed.log(f"{self._node}-agent"), ENVIRONMENT)

    def ask_for(self, image: str) -> None:
        now = datetime.now(UTC)
        window = {"readyBy": format_time(now + timedelta(minutes=1)), "until": format_time(now + timedelta(hours=2))}
        endpoint = {"namespace": "team", "name": "chat", "images": [image], "windows": [window]}
        self._plan.write_text(json.dumps({"endpoints": [endpoint]}))

    def metric(self, series: str) -> float:
        """The value of a series; 0 where it is not there."""
        text = answers(f"http://{self._bed.settings.addresses.node(self._node)}:9808/metrics")
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def received(self, source: str) -> float:
        return self.metric(f'prewarm_image_source_bytes_total{{source="{source}"}}')

    def wait_warm(self, image: str) -> str:
        """Wait until the image is warm; returns what `prewarm status` says of it."""
        return str(wait_until(lambda: self._warm(image), 90, f"{image} is warm on {self._node}"))

    def _warm(self, image: str) -> str:
        socket = f"/proc/{self._bed.node_pids(self._node, 'containerd')[0]}/root/run/prewarm/admin.sock"
        if not Path(socket).exists():
            return ""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = main(["status", "--json", "--socket", socket])
        items = json.loads(out.getvalue())["items"] if code == 0 else []
        warm = (i["reason"] for i in items if (i["ref"], i["level"]) == (image, "unpacked"))
        return next((reason for reason in warm if "fetched" in reason), "")  # said when the pull has ended


def sent(bed: Bed, repository: str, to: str = "") -> int:
    """Bytes of a repository's blobs that the registry's log says it has sent, to one address or to all."""
    found = ACCESS.findall(bed.log("registry").read_text())
    return sum(int(n) for who, path, n in found if path.startswith(f"/v2/{repository}/blobs/") and to in ("", who))


def push(bed: Bed, name: str) -> str:
    layers = [Layer(size_bytes=LAYER_BYTES, seed=f"{name}-{n}") for n in range(LAYERS)]
    Registry(bed.registry_address).make_image(name, "1", layers)
    return f"{REGISTRY}/{name}:1"


def test_three_nodes_cost_the_registry_one_image_and_a_mirror_that_dies_costs_no_pull(mirrored: Bed) -> None:
    bed, agents = mirrored, {node: NodeAgent(mirrored, node) for node in mirrored.nodes}
    first, second = agents["node-1"], agents["node-2"]
    image = push(bed, "shared")
    bed.shape(200)

    first.start(image)  # one node is seeded, the others follow
    first.wait_warm(image)
    for node in ("node-2", "node-3"):
        agents[node].start(image)
    told = [agent.wait_warm(image) for agent in agents.values()]

    assert IMAGE_BYTES <= sent(bed, "shared") <= 1.2 * IMAGE_BYTES
    for agent, reason in zip(agents.values(), told, strict=True):
        assert agent.received("mirror") == pytest.approx(IMAGE_BYTES, rel=HEADERS)
        assert agent.received("registry") < HEADERS * IMAGE_BYTES
        assert f"from http://{mirror(bed)}" in reason

    image = push(bed, "broken")
    first.ask_for(image)
    first.wait_warm(image)
    bed.shape(100)
    before = second.received("mirror")
    second.ask_for(image)
    wait_until(lambda: second.received("mirror") > before + 0.2 * IMAGE_BYTES, 30, "a part has come from the mirror")
    kill_mirror(bed)
    reason = second.wait_warm(image)

    by_log = sent(bed, "broken", bed.settings.addresses.node("node-2"))
    assert by_log > 0.1 * IMAGE_BYTES
    assert second.received("registry") == pytest.approx(by_log, abs=HEADERS * IMAGE_BYTES)
    assert second.received("mirror") - before + by_log == pytest.approx(IMAGE_BYTES, rel=0.2)
    for place in (mirror(bed), bed.registry_address):
        assert f"from http://{place}" in reason
