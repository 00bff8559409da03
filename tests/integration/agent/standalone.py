"""`prewarm agent --plan FILE` as a process of its own, and what a person can see of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from agent.cli import main
from agent.core.assignment_json import format_time
from agent.core.names import READY, endpoint_label
from tests.bed.s3 import free_port

T = TypeVar("T")
PREWARM = str(Path(sys.executable).parent / "prewarm")
NAMESPACE = "team"
_STDOUT = threading.Lock()


class Standalone:
    """An agent that can be started, killed and started again on the same root, run directory and port."""

    def __init__(self, directory: Path, environment: Mapping[str, str], settings: Mapping[str, object]) -> None:
        self.root = Path(str(settings.get("root", directory / "root")))
        self.run_dir, self.plan = directory / "run", directory / "plan.yaml"
        self.log_file = directory / "agent.log"
        self.port = free_port()
        self._environment = {**os.environ, **environment}
        (directory / "pci").mkdir(exist_ok=True)  # no GPU is expected
        self._settings = {
            "plan": self.plan,
            "root": self.root,
            "run-dir": self.run_dir,
            "containerd": "none",
            "pci-devices": directory / "pci",
            "http-address": f"127.0.0.1:{self.port}",
            "proof-interval-seconds": "1s",
            "connections": 4,
            "high-watermark": "1.0",
            "image-watermark": "1.0",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.run_dir / "admin.sock"

    def write_plan(self, models: Mapping[str, Sequence[str]], images: Sequence[str] = ()) -> None:
        """Ask for an endpoint for each name, with its models, in a window that is open."""
        now = datetime.now(UTC)
        window = {"readyBy": format_time(now + timedelta(minutes=1)), "until": format_time(now + timedelta(hours=2))}
        self.plan.write_text(
            json.dumps(
                {
                    "endpoints": [
                        {
                            "namespace": NAMESPACE,
                            "name": name,
                            "models": list(uris),
                            "images": list(images),
                            "windows": [window],
                        }
                        for name, uris in models.items()
                    ]
                }
            )
        )

    def start(self) -> Standalone:
        """Start; returns once /livez answers."""
        command = [PREWARM, "agent", *(f"--{name}={value}" for name, value in self._settings.items())]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(lambda: self.probe("/livez")[0] == 200 or self.process is None or self.ended, 20, "/livez answers")
        return self

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def end(self, number: signal.Signals = signal.SIGKILL, seconds: float = 20) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        self.process = None
        return code

    def probe(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP GET; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def log(self) -> str:
        return self.log_file.read_text()

    def status(self) -> Status | None:
        """What `prewarm status --json` prints; None if it fails, as it does while no agent runs."""
        out = io.StringIO()
        # in this process, as it is asked often; one at a time, as the whole process has one stdout
        with _STDOUT, contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = main(["status", "--json", "--socket", str(self.socket)])
        return Status(json.loads(out.getvalue())) if code == 0 else None

    def wait(self, condition: Callable[[Status], T | None], seconds: float, what: str) -> T:
        """Ask for the status until `condition` holds; the agent must not end meanwhile."""

        def ask() -> T | None:
            assert not self.ended, f"the agent has ended: {self.log()[-2000:]}"
            status = self.status()
            return condition(status) if status else None

        try:
            return eventually(ask, seconds, what)
        except AssertionError as error:
            shown = (status := self.status()) and json.dumps(status.told, indent=1)
            raise AssertionError(f"{error}\n{shown}\n{self.log()[-3000:]}") from None

    def wait_ready(self, name: str = "chat", seconds: float = 60) -> Status:
        def ready(status: Status) -> Status | None:
            return status if status.ready(name) else None

        return self.wait(ready, seconds, f"{name} ready")

    def committed(self) -> list[Path]:
        """The committed versions on disk."""
        return sorted(d for d in (self.root / "store").glob("sha256:*") if (d / "manifest.json").exists())


@dataclass(frozen=True, slots=True)
class Status:
    """One answer of `prewarm status --json`."""

    told: dict[str, Any]

    def endpoint(self, name: str = "chat") -> dict[str, Any]:
        return next(
            (e for e in self.told["endpoints"] if e["endpoint"] == f"{NAMESPACE}.{name}"), {"stage": "unassigned"}
        )

    def ready(self, name: str = "chat") -> bool:
        return bool(self.told["labels"].get(endpoint_label(NAMESPACE, name)) == READY)

    def claims(self) -> list[str]:
        """Everything that is said to be ready, by label, flag or stage."""
        labels = [k for k, v in self.told["labels"].items() if v == READY]
        return labels + [e["endpoint"] for e in self.told["endpoints"] if e["ready"] or e["stage"] == "ready"]

    def item(self, part: str = "s3://") -> dict[str, Any]:
        return next((i for i in self.told["items"] if part in i["ref"]), {"level": "unknown", "error": ""})


class Watcher:
    """Asks an agent's status again and again, and notes every claim that is not on disk as it must be."""

    def __init__(self, agent: Standalone, expected: Callable[[Path], bool]) -> None:
        self._agent, self._expected = agent, expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.asked = 0
        self.false_claims: list[dict[str, Any]] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            status = self._agent.status()
            if status is None:
                continue
            self.asked += 1
            versions = self._agent.committed()
            if status.claims() and not (versions and all(self._expected(v / "files") for v in versions)):
                self.false_claims.append(status.told)


def eventually(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Ask every 0.1 s until something true comes back.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


def range_bytes(ranges: Iterable[str]) -> int:
    """How many bytes these Range headers ask for."""
    pairs = (text.removeprefix("bytes=").split("-") for text in ranges)
    return sum(int(last) - int(first) + 1 for first, last in pairs)
