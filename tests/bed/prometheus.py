"""A real Prometheus over samples of the past, for tests that need no cluster.

It scrapes nothing: what it answers from was written as OpenMetrics text and made into blocks by its own promtool.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bed import needs
from tests.bed.process import BedError, Process, end, run, start
from tests.bed.s3 import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: a series as PromQL writes it, its value, and when (seconds since 1970)."""

    series: str
    value: float
    at: int


class PrometheusServer:
    """A server of its own on a free port of the loopback: `with PrometheusServer(directory) as prometheus:`.

    The kernel ends it with the thread that started it, should nobody stop it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.address = f"127.0.0.1:{free_port()}"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """What `prometheus_url` is set to."""
        return f"http://{self.address}"

    def load(self, samples: Iterable[Sample]) -> None:
        """Make blocks of these; before `start`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        text = self.directory / "samples.om"
        ordered = sorted(samples, key=lambda s: (s.at, s.series))
        text.write_text("".join(f"{s.series} {s.value:g} {s.at}\n" for s in ordered) + "# EOF\n")
        run(
            [
                str(_program("promtool")),
                "tsdb",
                "create-blocks-from",
                "--max-block-duration=480h",
                "openmetrics",
                "-q",
                str(text),
                str(self._data),
            ]
        )

    def start(self) -> Self:
        """Start and wait until it is ready.

        Raises:
            BedError: it ended, or took too long.
        """
        config, log = self.directory / "prometheus.yml", self.directory / "server.log"
        config.write_text("scrape_configs: []\n")
        told = [
            str(_program("prometheus")),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._data}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        ]
        self._process = start(["setpriv", "--pdeathsig", "KILL", *told], log)
        deadline = time.monotonic() + 60
        while not self._ready():
            if not self._process.alive or time.monotonic() > deadline:
                raise BedError(f"Prometheus did not start: {log.read_text()[-500:]}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End it at once; its blocks stay."""
        if self._process is not None:
            end([self._process], at_once=True)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _ready(self) -> bool:
        connection = HTTPConnection(self.address, timeout=2)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def _program(name: str) -> Path:
    programs = needs.newer("bookworm", "prometheus")
    if programs is None:
        raise BedError(needs.why_not("prometheus") or "no Prometheus")
    return programs / name
