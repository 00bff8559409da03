"""`prewarm gpu`: check the GPUs of this machine without an agent, or show, once or at each change, what its agent says of them.

Exit codes: 0 healthy, 3 degraded, 4 unhealthy, 5 unknown, 6 no GPU; 1 if nobody could be asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.cli.status import found_socket, table
from agent.core.errors import PrewarmError
from agent.core.inventory import GpuReason, GpuReport, GpuState, GpuVerdict

WATCH_SECONDS = 1.0


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    form = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "gpu", help="check the GPUs of this machine", description=__doc__, formatter_class=form
    )
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    check = what.add_parser("check", help="ask the driver now, without an agent; settings as PREWARM_… or by --config")
    check.add_argument("--config", metavar="FILE", help="YAML file with settings (PREWARM_CONFIG)")
    check.add_argument("--test", action="store_true", help="also run the active test on every idle GPU (3 s each)")
    for name, told in (("status", "show what this machine's agent says"), ("watch", "show it again at each change")):
        asking = what.add_parser(name, help=told)
        asking.add_argument("--socket", type=Path, help="the agent's socket (default: /run/prewarm/admin.sock)")
    for each in what.choices.values():
        each.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the verdict and return its exit code."""
    from agent.gpu.check import exit_code

    if options.what == "check":
        report, tests = asyncio.run(_check(options))
        _print(report, tests, as_json=options.json)
        return exit_code(report.verdict)
    socket = options.socket or found_socket()
    if socket is None or not socket.exists():
        raise PrewarmError("no agent on this machine: `prewarm gpu check` asks the driver itself")
    return exit_code(asyncio.run(_ask(socket, again=options.what == "watch", as_json=options.json)).verdict)


async def _check(options: argparse.Namespace) -> tuple[GpuReport, dict[int, str]]:
    from agent.config import load_settings
    from agent.gpu.check import check_gpus

    settings = load_settings(argparse.Namespace(config=options.config))
    boot = settings.boot_id_file
    return await check_gpus(settings, boot.read_text().strip() if boot.exists() else "", test=options.test)


async def _ask(socket: Path, *, again: bool, as_json: bool) -> GpuReport:
    """Print what the agent says; `again`: at each change until interrupted."""
    from agent.node.local_client import LocalClient

    last: GpuReport | None = None
    async with LocalClient(socket) as client:
        while True:
            report = report_of((await client.status()).gpu)
            if report != last:
                _print(report, {}, as_json=as_json)
            if not again:
                return report
            last = report
            await asyncio.sleep(WATCH_SECONDS)  # the agent tells its status, not its changes


def report_of(gpu: Any) -> GpuReport:
    """Return the report in the agent's answer."""
    return GpuReport(
        verdict=GpuVerdict(gpu.verdict),
        reason=gpu.reason,
        count=gpu.count,
        gpus=tuple(
            GpuState(index=g.index, uuid=g.uuid, verdict=GpuVerdict(g.verdict), reasons=_reasons(g.reasons))
            for g in gpu.gpus
        ),
        reasons=_reasons(gpu.reasons),
    )


def _reasons(reasons: Any) -> tuple[GpuReason, ...]:
    return tuple(
        GpuReason(code=r.code, verdict=GpuVerdict(r.verdict) if r.verdict else None, text=r.text) for r in reasons
    )


def _print(report: GpuReport, tests: Mapping[int, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_values(report, tests)), flush=True)
    else:
        print("\n".join(as_text(report, tests)), flush=True)


def as_values(report: GpuReport, tests: Mapping[int, str]) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "count": report.count,
        "gpus": [
            {"index": g.index, "uuid": g.uuid, "verdict": g.verdict, "reasons": [_row(r) for r in g.reasons]}
            | ({"test": tests[g.index]} if g.index in tests else {})
            for g in report.gpus
        ],
        "reasons": [_row(r) for r in report.reasons],
    }


def as_text(report: GpuReport, tests: Mapping[int, str]) -> Iterator[str]:
    """Write the report for a person."""
    yield f"{report.verdict}: {report.reason}"
    rows = [("node", "", r.code, r.text, _cure(r.code)) for r in report.reasons]
    for gpu in report.gpus:
        told = [(r.code, r.text, _cure(r.code)) for r in gpu.reasons] or [("-", "", "")]
        rows += [(str(gpu.index), str(gpu.verdict), *words) for words in told]
    yield from table(("GPU", "VERDICT", "REASON", "WHAT", "WHAT TO DO"), rows)
    yield from table(("GPU", "ACTIVE TEST"), [(str(index), said) for index, said in tests.items()])


def _row(reason: GpuReason) -> dict[str, Any]:
    return {"code": reason.code, "verdict": reason.verdict, "text": reason.text, "do": _cure(reason.code)}


def _cure(code: str) -> str:
    from agent.gpu.reasons import CATALOGUE, Code

    return CATALOGUE[Code(code)].cure if code in set(Code) else ""
