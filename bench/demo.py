"""`make demo`: the main job on one machine, no cluster and no root: a window, a node made ready, then cold against warm.

Everything is real but the size: an S3 server (`rclone serve s3`) whose rate is capped to a printed figure, because a
loopback would flatter everyone; `prewarm agent` with a plan; the bed's model server, which reads every byte of its
weights. Cold is what a pod does without prewarm: rclone, the fastest plain downloader we measured, then the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.core.assignment_json import format_time
from agent.core.units import format_duration, format_size
from tests.bed.modelserver.weights import write_model

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
KEY, SECRET, BUCKET = "demo-access-key", "demo-secret-key", "models"
PHASES = ("fetch", "load", "first answer", "total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of the model server; all in seconds from the decision to start it."""

    fetch: float
    load: float
    answer: float

    @property
    def total(self) -> float:
        """From the decision to start until the first answer."""
        return self.fetch + self.load + self.answer

    def row(self) -> tuple[float, ...]:
        """The phases in the order of PHASES."""
        return self.fetch, self.load, self.answer, self.total


def main() -> int:
    """Run the demo; 0 if the node was ready before its window and every start answered."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.2, help="size of the model (default 1.2)")
    parser.add_argument("--rate", type=int, default=100, help="cap of the S3 server in MB/s (default 100: 0.8 Gbit/s)")
    parser.add_argument("--window", type=int, default=45, help="seconds until the window opens (default 45)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (ROOT / ".cache").mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".cache"))
    try:
        return demo(work, options)
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit):
        show_logs(work)
        raise
    finally:
        make_writable(work)
        shutil.rmtree(work, ignore_errors=True)
        print(f"cleaned up {work.relative_to(ROOT)}")


def demo(work: Path, options: argparse.Namespace) -> int:
    """The story, top to bottom."""
    size = int(options.gigabytes * 1e9)
    print(f"model      synthetic safetensors, {format_size(size)} in 2 shards")
    write_model(work / "s3" / BUCKET / "llm", size, shards=2)
    with s3_server(work, options.rate) as endpoint:
        print(f"S3         {endpoint}, capped at {options.rate} MB/s")
        environment = os.environ | s3_environment(endpoint)
        opens = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=options.window)
        print(f"window     opens at {opens:%H:%M:%S} UTC, in {options.window} s")
        with agent(work, opens, environment) as process:
            ready = wait_until_ready(work, opens, process)
        early = (opens - ready).total_seconds()
        print(f"ready      {early:.0f} s before the window" if early >= 0 else f"ready      {-early:.0f} s LATE")
        view = next(path for path in (work / "node/views/demo/chat").iterdir() if path.is_dir())
        cold, warm = [], []
        for number in range(1, options.rounds + 1):
            cold.append(start_cold(work, endpoint))
            warm.append(start_server(work, view, drop_cache=True))
            print(f"round {number}    cold {cold[-1].total:6.2f} s   warm {warm[-1].total:6.2f} s", flush=True)
    print_table(cold, warm, options.rate)
    return 0 if early >= 0 else 1


def start_cold(work: Path, endpoint: str) -> Start:
    """What a pod does without prewarm: download everything, then load it."""
    target = work / "cold"
    shutil.rmtree(target, ignore_errors=True)
    began = time.monotonic()
    remote = f":s3,provider=Rclone,access_key_id={KEY},secret_access_key={SECRET},endpoint='{endpoint}':{BUCKET}/llm"
    flags = ["--multi-thread-streams=8", "--multi-thread-cutoff=64M", "--multi-thread-chunk-size=16M", "--transfers=8"]
    subprocess.run([BIN / "rclone", "copy", *flags, "--config=", "--quiet", remote, target], check=True)
    fetched = time.monotonic() - began
    started = start_server(
        work, target, drop_cache=False
    )  # a download leaves its bytes in the page cache: cold may keep them
    return Start(fetch=fetched, load=started.load, answer=started.answer)


def start_server(work: Path, model: Path, *, drop_cache: bool) -> Start:
    """Start the model server on `model` until its first answer."""
    if drop_cache:
        drop_page_cache(model)
    port = free_port()
    command = [sys.executable, "-m", "tests.bed.modelserver.server", "--model", str(model), "--port", str(port)]
    began = time.monotonic()
    with running(command, os.environ, work / "server.log"):
        wait_for(f"http://127.0.0.1:{port}/v2/health/ready", 120)
        loaded = time.monotonic()
        body = json.dumps({"prompt": "good morning", "max_tokens": 1}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", body, timeout=30) as answer:
            answer.read()
        return Start(fetch=0.0, load=loaded - began, answer=time.monotonic() - loaded)


def print_table(cold: Sequence[Start], warm: Sequence[Start], rate: int) -> None:
    """Medians with ranges, and what they say."""
    print(f"\nseconds, median of {len(cold)} (range); S3 at {rate} MB/s")
    print(f"{'phase':14}{'cold':>22}{'warm':>22}")
    for index, phase in enumerate(PHASES):
        cells = [told([start.row()[index] for start in starts]) for starts in (cold, warm)]
        print(f"{phase:14}{cells[0]:>22}{cells[1]:>22}")
    medians = [statistics.median(s.total for s in starts) for starts in (cold, warm)]
    print(f"\nfirst answer {medians[0] / medians[1]:.1f} x sooner on the warmed node\n")


def told(values: Sequence[float]) -> str:
    """`12.3 (12.1-12.9)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def wait_until_ready(work: Path, opens: datetime, process: subprocess.Popen[bytes]) -> datetime:
    """Show progress until the endpoint is ready; returns when that was.

    Raises:
        SystemExit: it is not ready two minutes after the window opened, or the agent has ended.
    """
    began = time.monotonic()
    while True:
        now = datetime.now(UTC)
        status = read_status(work)
        for endpoint in status.get("endpoints", []):
            model: dict[str, Any] = next((i for i in status["items"] if i["ref"].startswith("s3://")), {})
            done, total = model.get("bytes", 0), model.get("total", 0)
            share = f"{100 * done / total:3.0f} % of {format_size(total)}" if total else "resolving"
            line = f"{endpoint['stage']:10} {share:20} window in {format_duration(max(0, round((opens - now).total_seconds())))}"
            print(f"\r{line:70}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)
            if endpoint["stage"] == "ready":
                print(f"\nwarmed     in {time.monotonic() - began:.1f} s: {model.get('reason', '')}")
                return now
        if process.poll() is not None:
            raise SystemExit(f"the agent has ended with code {process.returncode}")
        if now > opens + timedelta(minutes=2):
            raise SystemExit(f"not ready: {json.dumps(status)}")
        time.sleep(1)  # a display, not a wait: once a second is what a person can read


def read_status(work: Path) -> dict[str, Any]:
    """Ask the agent as a person would: `prewarm status --json`."""
    command = [str(BIN / "prewarm"), "status", "--json", "--socket", str(work / "run" / "admin.sock")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    status: dict[str, Any] = json.loads(found.stdout) if found.returncode == 0 else {}
    return status


@contextlib.contextmanager
def agent(work: Path, opens: datetime, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prewarm agent` alone, with a plan of one endpoint whose window opens at `opens`."""
    window = {"readyBy": format_time(opens), "until": format_time(opens + timedelta(hours=1)), "source": "declared"}
    endpoint = {"namespace": "demo", "name": "chat", "models": [f"llm=s3://{BUCKET}/llm/"], "windows": [window]}
    plan = work / "plan.yaml"
    plan.write_text(json.dumps({"endpoints": [endpoint]}, indent=1))
    flags = {"plan": plan, "root": work / "node", "run-dir": work / "run", "containerd": "none", "gpus": "auto"}
    flags["high-watermark"] = "1.0"  # the disk of a person's machine may be as full as it likes
    command = [str(BIN / "prewarm"), "agent", "--http-address", f"127.0.0.1:{free_port()}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    with running(command, environment, work / "agent.log") as process:
        yield process


@contextlib.contextmanager
def s3_server(work: Path, rate: int) -> Iterator[str]:
    """Serve `work/s3` as S3 on a free port of the loopback, at `rate` MB/s in all."""
    port = free_port()
    command = [str(BIN / "rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}"]
    command += ["--vfs-cache-mode=off", f"--bwlimit={rate * 1_000_000}B", "--config=", str(work / "s3")]
    with running(command, os.environ, work / "s3.log"):
        wait_for(f"http://127.0.0.1:{port}/", 30)
        yield f"http://127.0.0.1:{port}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """What every AWS SDK reads."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a process running in the block; it is told to end, then made to."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, seconds: float) -> None:
    """Ask until the server answers (any answer below 500 counts).

    Raises:
        SystemExit: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.02)
    raise SystemExit(f"no answer from {url} in {seconds} s")


def drop_page_cache(directory: Path) -> None:
    """Let the kernel forget these files' pages (needs no rights: they are clean)."""
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def show_logs(work: Path) -> None:
    """Print the ends of the logs, which go with everything else."""
    for log in sorted(work.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-20:]
        print(f"\n-- the end of {log.name}", *lines, sep="\n", file=sys.stderr)


def make_writable(directory: Path) -> None:
    """The store's directories are read-only: allow removing them."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
