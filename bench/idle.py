"""What the agent costs when nothing happens: CPU, memory and start-up of the real process under the design's idle load.

While it idles it is probed as the kubelet probes it, and answering counts. CPU and memory are those of the agent and all its
children, also of those it has waited for. Starts are of an agent that finds everything on disk, as after an update.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import idle_worlds
from bench.demo import free_port, make_writable
from bench.idle_worlds import World
from bench.usage import cpu_seconds, memory, threads_seconds
from tests.bed import needs, nvml

ROOT = Path(__file__).resolve().parents[1]
PREWARM = Path(sys.executable).with_name("prewarm")
GPUS = 8
STARTS = 5
SETTLE_SECONDS = 40  # a NodeWarmup's status may be written up to 30 s after the last change
SCRAPES = 20
PROBE = """
import http.client, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
def get(path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    connection.request("GET", path, headers={"Connection": "close"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status
began, bad, asked = time.monotonic(), 0, 0
while time.monotonic() - began < seconds - 1:
    for path in ["/readyz"] if asked % 2 else ["/readyz", "/livez"]:
        bad += get(path) != 200
    asked += 1
    time.sleep(max(0, began + 5 * asked - time.monotonic()))
print(bad)
"""
ONCE_A_SECOND = """
import asyncio
async def main():
    while True:
        await asyncio.sleep(1)
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """One phase. Shares are of one core, in per cent; sizes bytes; `writes` None where nothing is counted."""

    gpus: int
    seconds: float
    cpu_percent: float
    wakes_percent: float
    pss: int
    alone: int
    processes: int
    writes: int | None
    bad_probes: int
    scrape_cpu_ms: float
    threads_percent: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A row of the table."""

    what: str
    measured: float
    below: float
    form: str

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.measured < self.below


class Agent:
    """A running `prewarm agent`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, run_dir: Path) -> None:
        self.process, self.port, self.run_dir = process, port, run_dir

    def answers(self, path: str) -> bool:
        """Whether `path` is answered with 200 now."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def wait_for(self, path: str, seconds: float) -> float:
        """Ask until `path` is answered with 200; returns when that was (monotonic).

        Raises:
            SystemExit: not in time, or the agent ended.
        """
        deadline = time.monotonic() + seconds
        while not self.answers(path):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"no 200 from {path} in {seconds:g} s; see {self.run_dir.parent}/agent.log")
            time.sleep(0.01)
        return time.monotonic()

    def wait_until_all_ready(self, seconds: float) -> None:
        """Wait until every endpoint is ready, as `prewarm status` says.

        Raises:
            SystemExit: not in time.
        """
        command = [str(PREWARM), "status", "--json", "--socket", str(self.run_dir / "admin.sock")]
        deadline = time.monotonic() + seconds
        status: dict[str, list[dict[str, str]]] = {}
        while time.monotonic() < deadline:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            status = json.loads(done.stdout) if done.returncode == 0 else {}
            stages = [endpoint["stage"] for endpoint in status.get("endpoints", [])]
            if len(stages) == idle_worlds.MODELS and set(stages) == {"ready"}:
                return
            time.sleep(0.5)
        raise SystemExit(f"not warm in {seconds:g} s: {json.dumps(status)}; see {self.run_dir.parent}/agent.log")

    def metrics(self) -> str:
        """One scrape."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def writes(self) -> int:
        """Writes to the API server so far."""
        lines = [line for line in self.metrics().splitlines() if line.startswith("prewarm_api_writes_total")]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))


def main() -> int:
    """Measure and print; 0 if every target is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="length of each idle interval (default 300)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--alone", action="store_true", help="use a plan file even where a cluster can be had")
    options = parser.parse_args()
    environment = image_environment()
    (ROOT / ".cache").mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="idle-"))  # short: a socket's path has 107 bytes
    try:
        with world(work, alone=options.alone) as found:
            print(f"load       {idle_worlds.IMAGES} images of {idle_worlds.LAYERS} layers, ", end="")
            print(f"{idle_worlds.MODELS} models of {idle_worlds.FILES} files; {found.told}")
            print("".join(f"NOT REAL   {lack}\n" for lack in found.lacking), end="")
            print(f"flags      {' '.join(f'{k}={v}' for k, v in environment.items()) or 'none'} (as in the Dockerfile)")
            bench = Bench(found, environment, work)
            idles = [bench.idle(gpus, options.seconds) for gpus in (0, GPUS)]
            starts = [bench.start() for _ in range(STARTS)]
    finally:
        make_writable(work)
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps({"idle": [asdict(i) for i in idles], "starts": starts}, indent=1))
    return report(idles, starts, options.seconds)


def image_environment() -> dict[str, str]:
    """What the image sets for its process: the last ENV of the Dockerfile, less what only makes sense inside."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    last = [line for line in lines if line.startswith("ENV ")][-1]
    pairs = (word.partition("=") for word in shlex.split(last)[1:])
    return {key: value for key, _, value in pairs if key not in ("PATH", "PYTHONDONTWRITEBYTECODE")}


@contextlib.contextmanager
def world(work: Path, *, alone: bool) -> Iterator[World]:
    """The most real world that can be had here."""
    why = "--alone" if alone else needs.why_not("cluster")
    with idle_worlds.alone(work, why) if why else idle_worlds.cluster(work) as found:
        yield found


class Bench:
    """Runs the agent in a world, one at a time, always on the same store."""

    def __init__(self, found: World, environment: Mapping[str, str], work: Path) -> None:
        self._world, self._work = found, work
        self._environment = {**found.environment, **environment}

    def idle(self, gpus: int, seconds: float) -> Idle:
        """Let it become ready and settle, then watch it for `seconds`."""
        with self._agent(gpus) as agent:
            agent.wait_for("/readyz", 60)
            agent.wait_until_all_ready(180)
            print(f"idling     {gpus} GPUs: {SETTLE_SECONDS} s to settle, then {seconds:g} s", flush=True)
            time.sleep(SETTLE_SECONDS)
            return _watch(agent, gpus, seconds)

    def start(self) -> tuple[float, float]:
        """Seconds from the spawn to a green /livez, and to a green /readyz, on a store that holds everything."""
        began = time.monotonic()
        with self._agent(0) as agent:
            alive = agent.wait_for("/livez", 60)
            return alive - began, agent.wait_for("/readyz", 60) - began

    @contextlib.contextmanager
    def _agent(self, gpus: int) -> Iterator[Agent]:
        port, run_dir = free_port(), self._work / "run"
        flags = {"http-address": f"127.0.0.1:{port}", "root": self._work / "root", "run-dir": run_dir}
        flags["high-watermark"] = flags["image-watermark"] = "1.0"
        flags |= {"pci-devices": nvml.fake_pci(self._work / "pci", gpus)} | dict(self._world.flags)
        environment = dict(self._environment)
        if gpus:
            control = nvml.Control(self._work / "nvml", gpus=gpus)
            environment |= control.environment(nvml.build(ROOT / ".cache" / "nvml"))
        command = [*self._world.wrapper, str(PREWARM), "agent", *(f"--{name}={value}" for name, value in flags.items())]
        with (self._work / "agent.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, cwd=self._work, stdout=log, stderr=log)
        try:
            yield Agent(process, port, run_dir)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _watch(agent: Agent, gpus: int, seconds: float) -> Idle:
    pid = agent.process.pid
    wrote = agent.writes()
    with (
        _python(PROBE, str(agent.port), str(seconds)) as probes,
        _python(ONCE_A_SECOND) as wakes,
    ):
        time.sleep(2)  # what starting them costs is not counted
        began, used, woke = time.monotonic(), cpu_seconds(pid), cpu_seconds(wakes.pid)
        threads = threads_seconds(pid)
        bad = int(probes.communicate()[0])
        passed = time.monotonic() - began
        used, woke = cpu_seconds(pid) - used, cpu_seconds(wakes.pid) - woke
        threads = {name: t - threads.get(name, 0.0) for name, t in threads_seconds(pid).items()}
    found = memory(pid)
    wrote = agent.writes() - wrote
    before = cpu_seconds(pid)
    for _ in range(SCRAPES):
        agent.metrics()
    return Idle(
        gpus=gpus,
        seconds=passed,
        cpu_percent=100 * used / passed,
        wakes_percent=100 * woke / passed,
        pss=found.pss,
        alone=found.alone,
        processes=found.processes,
        writes=wrote,
        bad_probes=bad,
        scrape_cpu_ms=1000 * (cpu_seconds(pid) - before) / SCRAPES,
        threads_percent={name: 100 * t / passed for name, t in sorted(threads.items(), key=lambda p: -p[1])},
    )


@contextlib.contextmanager
def _python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def report(idles: list[Idle], starts: list[tuple[float, float]], seconds: float) -> int:
    """Print the table; 0 if every target is met."""
    rows = []
    for idle in idles:
        on = f"{idle.gpus} GPUs, {'restarted' if idle.gpus else 'after downloads'}"
        rows.append(
            Target(what=f"CPU, {on}", measured=idle.cpu_percent, below=0.5 if idle.gpus else 0.2, form="{:.3f} %")
        )
        rows.append(Target(what=f"PSS, {on}", measured=idle.pss / 1e6, below=100, form="{:.1f} MB"))
        rows.append(Target(what=f"probes not answered 200, {on}", measured=idle.bad_probes, below=1, form="{:.0f}"))
        rows.append(Target(what=f"writes to the API server, {on}", measured=idle.writes or 0, below=1, form="{:.0f}"))
    for index, (what, below) in enumerate((("exec -> /livez", 1.5), ("exec -> /readyz", 10.0))):
        median = statistics.median(start[index] for start in starts)
        rows.append(Target(what=f"{what}, median of {len(starts)}", measured=median, below=below, form="{:.2f} s"))
    print(f"\n{'over ' + format(seconds, 'g') + ' s':56}{'measured':>12}{'target':>14}")
    for row in rows:
        target = f"< {row.form.format(row.below)}" if row.below != 1 else "0"
        print(f"{row.what:56}{row.form.format(row.measured):>12}{target:>14}  {'met' if row.met else 'MISSED'}")
    print("\nbeside it (no target)")
    for idle in idles:
        print(
            f"  {idle.gpus} GPUs: {idle.processes} processes, {idle.alone / 1e6:.1f} MB if nothing else uses the same "
            f"libraries; a scrape of /metrics costs {idle.scrape_cpu_ms:.1f} ms of CPU"
        )
        print(f"    an asyncio process that wakes once a second: {idle.wakes_percent:.3f} % in the same interval")
        busy = {name: share for name, share in idle.threads_percent.items() if share >= 0.001}
        print(f"    the agent's threads: {', '.join(f'{n} {s:.3f} %' for n, s in busy.items())}")
    print(f"  load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
