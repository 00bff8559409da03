"""The bed itself: up, down, and everything that a test asks of it in between.

Its state between commands is WORK/bed.json and WORK/run/*.pid. It must not touch anything outside WORK, its network
namespaces, its cgroups, its link `pwbed<slot>` and the empty mount points of `node.DIRECTORIES`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

from tests.bed import cgroup, config, control, needs, network, pki, s3, seed
from tests.bed.api import Api, Event, Object, condition
from tests.bed.process import ENVIRONMENT, BedError, Process, descendants, end, names, rss_bytes, run, start, wait_until
from tests.bed.settings import REGISTRY_PORT, S3_PORT, Settings

PROJECT = Path(__file__).resolve().parents[2]
_KUBENODE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")


class Bed:
    """A Kubernetes of N nodes on this machine.

    Made with the choices of `Settings`, or, where WORK holds a bed already, attached to that one as it is.
    """

    def __init__(
        self,
        work: Path,
        nodes: int = 2,
        *,
        containerd: Sequence[Path | str] = (),
        lazy: bool = False,
        taint: bool = False,
        proxy: bool = False,
        fast_eviction: bool = True,
        hungry: bool = False,
        registry: Path | None = None,
    ) -> None:
        self.work = work.resolve()
        # Unique on the machine, also between two checkouts of this project; short, for it names network namespaces.
        self.name = f"{self.work.name}-{hashlib.sha256(bytes(self.work)).hexdigest()[:4]}"
        self._wanted = Settings(
            nodes=nodes,
            containerd=tuple(str(directory) for directory in containerd),
            lazy=lazy,
            taint=taint,
            proxy=proxy,
            fast_eviction=fast_eviction,
            hungry=hungry,
            registry=str(registry.resolve()) if registry else "",
            name=self.name,
        )
        self.settings = Settings.load(self.work) or self._wanted

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- up and down --------------------------------------------------------------------------------------------------

    def up(self, *, keep: bool = False) -> None:
        """Start everything; returns when every node is Ready and a pod can be created.

        A leftover in the same directory is ended first.

        Args:
            keep: outlive the process that asks. Else the bed counts as a leftover once that process is gone.

        Raises:
            BedError: something is missing on this machine, the name is in use, or a part did not come up.
        """
        if reason := needs.why_not("lazy" if self._wanted.lazy else "cluster"):
            raise BedError(reason)
        self._make_room()
        owner = str(Process.of(os.getpid()))
        slot = network.claim_slot(self.name)
        self.settings = replace(self._wanted, owner=owner, slot=slot)
        self.__dict__.pop("api", None)
        self.work.mkdir(parents=True, exist_ok=True)
        self.settings.save(self.work)
        try:
            self._start_all()
        except BaseException:
            self._end_all()
            (self.work / "bed.json").unlink()  # there is no bed; the logs stay, for whoever wants to know why
            raise
        if keep:
            self.settings = replace(self.settings, owner="")
            self.settings.save(self.work)

    def _make_room(self) -> None:
        found = Settings.load(self.work)
        if found is not None:
            self.settings = found
            if not self.is_leftover():
                raise BedError(f"{self.work} is in use: `python -m tests.bed --work {self.work} down` first")
            self.down()
        network.remove(self.name, self._wanted)  # of an `up` that was killed before it could note down anything
        shutil.rmtree(self.work, ignore_errors=True)

    def _start_all(self) -> None:
        for directory in ("pki", "log", "bin", "run"):
            (self.work / directory).mkdir()
        self._link_programs()
        network.make(self.name, self.settings)
        pki.make(self.work / "pki", self.name, self.settings)
        self._fill_stores()
        for service in control.SERVICES:
            self.start_service(service)
        for node in self.nodes:
            self.start_node(node)  # kubelets start before the API server answers, and keep trying
        wait_until(self._registry_answers, 30, f"the registry answers; see {self.work}/log/registry.log")
        seed.push_program(self.registry_address, "pause", "1", needs.compiled("pause"))
        wait_until(self.api.answers, 120, f"the API server is ready; see {self.work}/log/apiserver.log")
        for node in self.nodes:
            self.wait_ready(node, 120)
        account = "/api/v1/namespaces/default/serviceaccounts"  # until it is there pods are refused
        self.api.until(account, lambda event: event.object["metadata"]["name"] == "default", 60)
        wait_until(self.s3.answers, 30, f"S3 answers; see {self.work}/log/s3.log")

    def _link_programs(self) -> None:
        kubenode, etcd = needs.find("kubenode"), needs.newer("trixie", "etcd-server")
        stargz = needs.find("containerd-stargz-grpc")
        links = dict.fromkeys(_KUBENODE, kubenode)  # it does what its name says
        links |= {"versitygw": needs.find("versitygw"), "etcd": etcd / "etcd" if etcd else None}
        links |= {"containerd-stargz-grpc": stargz}
        for name, program in links.items():
            if program is not None:
                (self.work / "bin" / name).symlink_to(program)

    def _fill_stores(self) -> None:
        store = self.work / "registry"
        if self.settings.registry:
            shutil.copytree(self.settings.registry, store)
        (self.work / "registry.yml").write_text(config.registry(store))
        s3.make_directories(self.work / "s3")

    def down(self) -> None:
        """End everything and delete WORK; nothing of the bed is left. No bed is no error."""
        self._end_all()
        shutil.rmtree(self.work, ignore_errors=True)

    def _end_all(self) -> None:
        for node in self.nodes:
            self.stop_node(node)
        pids = (Process.load(file) for file in (self.work / "run").glob("*.pid"))
        end([process for process in pids if process], at_once=True)  # a graceful API server takes 15 s to go
        network.remove(self.name, self.settings)
        cgroup.remove(self.name)

    def is_leftover(self) -> bool:
        """Whether whoever wanted this bed is gone; or, where it was to stay, its etcd or controller manager is."""
        if self.settings.owner:
            return not Process.parse(self.settings.owner).alive
        return not all(self._alive(service) for service in ("etcd", "kcm"))

    @staticmethod
    def sweep(parent: Path) -> list[Path]:
        """End the leftovers among the beds whose directories are in `parent`; returns those directories."""
        beds = [Bed(file.parent) for file in parent.glob("*/bed.json")]
        leftovers = [bed for bed in beds if bed.is_leftover()]
        for bed in leftovers:
            bed.down()
        return [bed.work for bed in leftovers]

    # -- where things are ---------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        """node-1, node-2, …"""
        return self.settings.names

    @property
    def control_address(self) -> str:
        """The control plane's IP address, the same from the machine, the nodes and the pods."""
        return self.settings.addresses.control

    @property
    def registry_address(self) -> str:
        """host:port to push to; what is pushed there as NAME:TAG is registry.bed/NAME:TAG on the nodes."""
        return f"{self.control_address}:{REGISTRY_PORT}"

    @property
    def s3(self) -> s3.S3Client:
        """The S3 server: its url, keys and log, the same from the machine, the nodes and the pods."""
        return s3.S3Client(f"{self.control_address}:{S3_PORT}", self.work / "log" / "s3-access.log")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.work / "pki" / "admin.conf"

    def disk(self, node: str) -> Path:
        """Where the directories that a node has for itself are on this machine: disk("node-1") / "var/lib/prewarm"."""
        return self.work / node

    def log(self, name: str) -> Path:
        """The log of a service, or of `node-1-kubelet`, `node-1-containerd`, `node-1` (its first process)."""
        return self.work / "log" / f"{name}.log"

    # -- asking -------------------------------------------------------------------------------------------------------

    @cached_property
    def api(self) -> Api:
        """The API server as administrator, quick enough to time things with."""
        return Api(self.control_address, self.work / "pki")

    def kubectl_command(self, *arguments: str) -> list[str]:
        """The command line of `kubectl` as administrator."""
        options = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.work}/kubectl-cache"]
        return [f"{self.work}/bin/kubectl", *options, *arguments]

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """What kubectl prints.

        Raises:
            BedError: it failed; the text carries its stderr.
        """
        return run(self.kubectl_command(*arguments), data=input)

    def apply(self, manifest: Object | Sequence[Object] | str, namespace: str | None = None) -> str:
        """`kubectl apply` of an object, several, or YAML or JSON text."""
        if not isinstance(manifest, str):
            several = {"apiVersion": "v1", "kind": "List", "items": list(manifest)}
            manifest = json.dumps(manifest if isinstance(manifest, dict) else several)
        return self.kubectl(*_within(namespace), "apply", "-f", "-", input=manifest)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """An object by kubectl's word for its kind; `api.get` is quicker where the path is known."""
        found: Object = json.loads(self.kubectl(*_within(namespace), "get", kind, name, "-o", "json"))
        return found

    def inside(self, place: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in the control plane's network (`cp`), or wholly inside a node."""
        if place == "cp":  # nsenter, not `ip netns exec`: that one mounts a new /sys, which hides the cgroups
            return ["nsenter", f"--net=/run/netns/{self.name}", *command]
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--net"]
        return ["nsenter", "-t", str(self._first_process(place)), *spaces, *command]

    def exec(self, place: str, command: Sequence[str]) -> str:
        """Run a command there and return what it printed.

        Raises:
            BedError: it failed; the text carries its stderr.
        """
        return run(self.inside(place, command))

    def node_pids(self, node: str, name: str) -> list[int]:
        """This machine's pids of the node's processes, pods included, called `name` (executable or script)."""
        return [pid for pid in descendants(self._first_process(node)) if name in names(pid)]

    def rss(self) -> list[tuple[int, str, str]]:
        """(bytes, which part, command) of every process of the bed."""
        roots = {file.stem: Process.load(file) for file in (self.work / "run").glob("*.pid")}
        alive = [(part, root.pid) for part, root in sorted(roots.items()) if root and root.alive]
        return [(rss_bytes(pid), part, " ".join(names(pid))) for part, root in alive for pid in descendants(root)]

    # -- nodes --------------------------------------------------------------------------------------------------------

    def start_node(self, node: str) -> None:
        """Power on; returns at once (`wait_ready`). Its disk is as it was, its boot id new."""
        cgroup.make(self.name, node)
        self.disk(node).mkdir(exist_ok=True)
        (self.disk(node) / "boot_id").write_text(f"{uuid.uuid4()}\n")
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--mount-proc", "--propagation=private"]
        unshare = ["unshare", *spaces, "--fork", "--kill-child"]
        first = [sys.executable, "-m", "tests.bed.node", str(self.work), node]
        command = ["nsenter", f"--net=/run/netns/{self.name}-{node}", *unshare, *first]
        process = start(command, self.log(node), ENVIRONMENT | {"PYTHONPATH": str(PROJECT)})
        process.save(self._pid_file(node))

    def stop_node(self, node: str) -> None:
        """As if its power were cut: every process and mount of the node is gone when this returns; its disk stays."""
        unshare = Process.load(self._pid_file(node))
        if unshare is None or not unshare.alive:
            return
        # The first process is gone only after all others of its PID namespace, and unshare after it.
        os.kill(self._first_process(node), signal.SIGKILL)
        end([unshare])
        self._pid_file(node).unlink()
        # A machine that was switched off has no cgroups left; kubelet would ask for each dead container for 3 s.
        cgroup.remove(f"{self.name}/{node}")

    def renew_node(self, node: str) -> None:
        """A node of the same name with an empty disk and a new Node object, Ready."""
        self.stop_node(node)
        shutil.rmtree(self.disk(node))
        self.api.delete(f"/api/v1/nodes/{node}")
        self.start_node(node)
        self.wait_ready(node)

    def wait_ready(self, node: str, seconds: int = 60, *, ready: bool = True) -> Event:
        """Wait until the Node is Ready in its latest boot; with ready=False until its condition is anything but True."""

        def reached(event: Event) -> bool:
            is_ready = event.kind != "DELETED" and condition(event.object, "Ready") == "True"
            # Right after a power cut the Node still says what it said before.
            return (
                not is_ready
                if not ready
                else is_ready and event.object["status"]["nodeInfo"]["bootID"] == self.boot_id(node)
            )

        return self.api.until(f"/api/v1/nodes?fieldSelector=metadata.name={node}", reached, seconds)

    def boot_id(self, node: str) -> str:
        """The boot id of the node's current, or last, start."""
        return (self.disk(node) / "boot_id").read_text().strip()

    def give_gpus(self, node: str, count: int) -> None:
        """Let the node have `nvidia.com/gpu: count`; returns when the scheduler may count on them (up to some 5 s).

        Only the resource: no device appears in pods. It outlives a power cut, not `renew_node`.
        """
        capacity = {"status": {"capacity": {"nvidia.com/gpu": str(count)}}}
        self.api.patch(f"/api/v1/nodes/{node}/status", capacity)
        self.api.until(
            f"/api/v1/nodes?fieldSelector=metadata.name={node}",
            lambda event: event.object["status"].get("allocatable", {}).get("nvidia.com/gpu") == str(count),
        )

    def shape(self, rate_mbit: int | None) -> None:
        """Limit registry, S3 and API traffic to each node to this many Mbit/s; None lifts it."""
        network.shape(self.name, self.settings, rate_mbit)

    # -- services -----------------------------------------------------------------------------------------------------

    def start_service(self, service: str) -> None:
        """Start one of `control.SERVICES`; returns at once."""
        environment = ENVIRONMENT | (s3.credentials() if service == "s3" else {})
        command = control.command(service, self.work, self.settings)
        start(self.inside("cp", command), self.log(service), environment).save(self._pid_file(service))

    def kill_service(self, service: str) -> None:
        """SIGKILL; returns when it is gone."""
        process = Process.load(self._pid_file(service))
        end([process] if process else [], at_once=True)

    def kill_api_server(self) -> None:
        """The API server is away: connections are refused."""
        self.kill_service("apiserver")

    def start_api_server(self) -> None:
        """It is back, and ready."""
        self.start_service("apiserver")
        wait_until(self.api.answers, 60, "the API server is ready again")

    def kill_s3(self) -> None:
        """S3 is away."""
        self.kill_service("s3")

    def start_s3(self) -> None:
        """It is back with what it had, and answers."""
        self.start_service("s3")
        wait_until(self.s3.answers, 30, "S3 answers again")

    def kill_registry(self) -> None:
        """The registry is away."""
        self.kill_service("registry")

    def start_registry(self) -> None:
        """It is back with what it had, and answers."""
        self.start_service("registry")
        wait_until(self._registry_answers, 30, "the registry answers again")

    def _registry_answers(self) -> bool:
        return s3.accepts(self.registry_address)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _pid_file(self, part: str) -> Path:
        return self.work / "run" / f"{part}.pid"

    def _alive(self, part: str) -> bool:
        process = Process.load(self._pid_file(part))
        return process is not None and process.alive

    def _first_process(self, node: str) -> int:
        unshare = Process.load(self._pid_file(node))
        if unshare is None or not unshare.alive:
            raise BedError(f"{node} is off")
        return next(iter(descendants(unshare.pid)[1:]), unshare.pid)


def _within(namespace: str | None) -> list[str]:
    return ["--namespace", namespace] if namespace else []
