"""`prewarm models ls|verify|rm|pin|unpin`: the model versions on this machine, with an agent or without one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cli.progress import Step, reporting, say_json
from agent.core.errors import Invalid, PrewarmError
from agent.core.units import format_size, parse_size

if TYPE_CHECKING:
    from agent.cli.shelf import Row, Shelf
    from agent.node.local_client import LocalClient

T = TypeVar("T")
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
_VERSION = "the start of a digest (4 digits at least), or a model's URI where it has one version here"
_EPILOG = """\
On a node the agent is asked where one runs (admin.sock, so as root): it withdraws the claim before it removes anything.
Where none runs, the store is changed under its lock.

examples:
  prewarm models ls
  prewarm models verify 4f1c                    read every byte back, past the page cache
  prewarm models verify --json | jq -r 'select(.event=="version" and .damage).digest'
  prewarm models pin s3://models/llama-3-8b/    keep it, whatever comes
  prewarm models rm 4f1c
  kubectl -n prewarm exec ds/prewarm-agent -- prewarm models ls

exit codes: 0 done; 1 refused, damaged, or not possible (one sentence says why); 2 bad usage; 130 interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command and its own subcommands."""
    form = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "models",
        help="list, verify, remove or pin the versions here",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=form,
    )
    acts = parser.add_subparsers(dest="act", metavar="ls|verify|rm|pin|unpin", required=True)
    for name, run_it, told, many in (
        ("ls", _ls, "what is here, how warm, and what keeps it", None),
        ("verify", _verify, "read every byte back (O_DIRECT) and compare it with its CRC64NVME", "*"),
        ("rm", _rm, "remove a version; refused while it is in use, pinned or due", "+"),
        ("pin", _pin, "keep a version, whatever comes, until it is unpinned", "+"),
        ("unpin", _unpin, "let a pinned version be evicted again", "+"),
    ):
        act = acts.add_parser(
            name, help=told, description=f"{told[0].upper()}{told[1:]}.", epilog=_EPILOG, formatter_class=form
        )
        if many:
            every = " (default: all)" if many == "*" else ""
            act.add_argument("versions", nargs=many, metavar="VERSION", help=_VERSION + every)
        if name == "verify":
            act.add_argument(
                "--bandwidth", default="0", metavar="SIZE", help="bytes per second at most (default: no cap)"
            )
            act.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
        act.add_argument("--root", help="the store (default: the agent's setting root)")
        act.add_argument("--run-dir", dest="run_dir", help="where admin.sock is (default: the agent's setting run_dir)")
        act.add_argument("--json", action="store_true", help="a JSON object a line")
        act.set_defaults(run=run, act_on=run_it)


def run(options: argparse.Namespace) -> int:
    """Run one of them."""
    from agent.cli.shelf import Shelf
    from agent.config import load_settings

    settings = load_settings(argparse.Namespace(root=options.root, run_dir=options.run_dir))
    socket = Path(settings.run_dir) / "admin.sock"
    try:
        rows = (shelf := Shelf(settings.root)).rows(told_by_agent(socket))
        code: int = options.act_on(options, shelf, rows, socket)
    except Invalid as error:
        print(f"prewarm models {options.act}: {error}", file=sys.stderr)
        return EXIT_USAGE
    return code


def _chosen(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    from agent.cli.shelf import choose

    return list({r.digest: r for r in (choose(rows, w) for w in words)}.values())


def told_by_agent(socket: Path) -> Mapping[str, Any]:
    """Return what the agent says of the versions it is assigned, by digest; nothing where none answers."""
    status = _asked(socket, lambda client: client.status())
    return {i.digest: i for i in status.items if i.digest and i.ref.startswith("s3://")} if status else {}


def _asked(socket: Path, ask: Callable[[LocalClient], Awaitable[T]]) -> T | None:
    """Ask the agent; None where none runs here, or this user may not ask."""
    from agent.node.local_client import Away, LocalClient

    async def call() -> T:
        async with LocalClient(socket) as client:
            return await ask(client)

    try:
        return asyncio.run(call()) if socket.exists() else None
    except (Away, PermissionError):
        return None


def _ls(options: argparse.Namespace, shelf: Shelf, rows: Sequence[Row], _: Path) -> int:
    from agent.cli.status import table

    if options.json:
        for row in rows:
            say_json("version", **as_json(row))
    elif not rows:
        print(f"no model version is in {shelf.root}")
    else:
        head = ("VERSION", "LEVEL", "SIZE", "FILES", "COMMITTED", "PROOF", "KEPT BY", "MODEL")
        print("\n".join(table(head, [_cells(r) for r in rows])).lstrip("\n"))
    return EXIT_OK


def _cells(row: Row) -> tuple[str, ...]:
    from agent.cli.shelf import short

    version = row.version
    files, committed, proof = (
        (str(len(version.files)), version.committed, version.proof) if version else ("-", "-", "-")
    )
    return (
        short(row.digest),
        row.level,
        format_size(row.size_bytes),
        files,
        committed,
        proof,
        row.kept or "-",
        row.uri or row.reason,
    )


def as_json(row: Row) -> dict[str, object]:
    """Return a version as JSON values."""
    version = row.version
    return {
        "digest": row.digest,
        "uri": row.uri,
        "level": row.level,
        "bytes": row.size_bytes,
        "residentBytes": row.resident_bytes,
        "files": len(version.files) if version else 0,
        "committed": version.committed if version else None,
        "proof": version.proof if version else "",
        "pinned": row.pinned,
        "pods": row.pods,
        "assigned": row.assigned,
        "reason": row.reason,
    }


def _verify(options: argparse.Namespace, shelf: Shelf, rows: Sequence[Row], _: Path) -> int:
    """Read versions back, one after the other; 1 if one is damaged."""
    from agent.cli.shelf import short
    from agent.cli.verifying import verify

    chosen = _chosen(rows, options.versions) if options.versions else [r for r in rows if r.level != "partial"]
    if partial := [r for r in chosen if r.level == "partial"]:
        raise Invalid(f"version {short(partial[0].digest)} is not complete: there is nothing to verify yet")
    cap, bad = parse_size(options.bandwidth), 0
    total = sum(r.size_bytes for r in chosen)
    with reporting("verify", as_json=options.json, quiet=options.quiet) as told:
        verdicts = [(row, why) for row, why in verify(shelf, chosen, cap, _stepping(told, total))]
    for row, why in verdicts:
        bad += bool(why)
        if options.json:
            say_json("version", digest=row.digest, uri=row.uri, bytes=row.size_bytes, damage=why)
        elif why:
            print(f"{short(row.digest)} damaged: {why} ({row.uri or 'origin unknown'})")
        else:
            print(f"{short(row.digest)} intact: {format_size(row.size_bytes)} read back ({row.uri})")
    if options.json:
        say_json("result", verified=len(verdicts) - bad, damaged=bad, bytes=total)
    elif bad:
        hint = "a running agent withdraws its claim and fetches it again once its own scrub sees it; prewarm models rm does it now"
        print(f"prewarm models verify: {bad} of {len(verdicts)} versions damaged: {hint}", file=sys.stderr)
    return EXIT_FAILED if bad else EXIT_OK


def _stepping(told: Callable[[Step], None], total: int) -> Callable[[int], None]:
    return lambda done: told(Step(done_bytes=done, total_bytes=total, moved_bytes=done))


def _each(
    options: argparse.Namespace, rows: Sequence[Row], did: str, act: Callable[[Row], bool], was_so: str = ""
) -> int:
    """Do something to each chosen version; the first refusal does not keep the others from it."""
    from agent.cli.shelf import short

    failed = 0
    for row in _chosen(rows, options.versions):
        try:
            changed = act(row)
        except PrewarmError as error:
            failed += 1
            if options.json:
                say_json("refused", digest=row.digest, uri=row.uri, reason=str(error))
            print(f"prewarm models {options.act}: {error}", file=sys.stderr)
            continue
        if options.json:
            say_json(did, digest=row.digest, uri=row.uri, bytes=row.size_bytes, changed=changed)
        else:
            print(f"{short(row.digest)} {did if changed else was_so}: {row.uri or format_size(row.size_bytes)}")
    return EXIT_FAILED if failed else EXIT_OK


def _rm(options: argparse.Namespace, shelf: Shelf, rows: Sequence[Row], socket: Path) -> int:
    def remove(row: Row) -> bool:
        if socket.exists() and not options.json:
            print("asking the agent, which withdraws the claim and looks who uses it: some 10 s", file=sys.stderr)
        if not _asked(socket, lambda client: _removed(client, row)):
            shelf.remove(row)
        return True

    return _each(options, rows, "removed", remove)


async def _removed(client: LocalClient, row: Row) -> bool:
    await client.remove(row.digest)
    return True


def _pin(options: argparse.Namespace, shelf: Shelf, rows: Sequence[Row], _: Path) -> int:
    """Pin beside a running agent, too: it asks for pins before it removes anything."""
    from datetime import UTC, datetime

    def pin(row: Row) -> bool:
        with shelf.changing():
            shelf.store.pin(row.digest, datetime.now(UTC))
        return not row.pinned

    return _each(options, rows, "pinned", pin, "was pinned already")


def _unpin(options: argparse.Namespace, shelf: Shelf, rows: Sequence[Row], _: Path) -> int:
    def unpin(row: Row) -> bool:
        with shelf.changing():
            return shelf.store.unpin(row.digest)

    return _each(options, rows, "unpinned", unpin, "was not pinned")
