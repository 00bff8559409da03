"""The command `prewarm`: one module per subcommand, imported only when it is called (start-up budget)."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from agent.core.errors import PrewarmError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# JSON of an API server may be 10,000 levels deep (Go's encoding/json): one such object must not hide all others of its kind.
_DEEPEST = 11_000

COMMANDS = {
    "agent": "warm this node and publish its readiness (the DaemonSet; or alone with --plan FILE)",
    "planner": "decide what is needed where and when (the Deployment)",
    "wait": "wait in an init container until this pod's models are here",
    "status": "show what is warm, on this node or in the fleet, and why",
    "plan": "show what would happen when, and why, without doing it",
    "history": "show when an endpoint had requests, as the planner remembers it",
    "models": "list, verify, remove or pin the model versions on this machine",
    "image": "prove, warm or pin an image in this node's containerd",
    "hydrate": "download a model from S3, every byte checked",
    "doctor": "show what in this cluster keeps prewarm from its work, and how to mend it",
    "replay": "show what prewarm would have done with past traffic, and what to declare",
    "recommend": "show how many pods the next window is worth keeping",
    "gpu": "check the GPUs of this machine, or show what its agent says of them",
    "grant": "print the rights that let the pull secrets of a namespace count",
    "affinity": "print the affinity that steers pods to warm nodes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 failed, 2 usage, 130 interrupted)."""
    # Before numpy is imported: on matrices as small as the forecast's, more threads of its BLAS only spin (twice the CPU on two cores).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(next((w for w in words if not w.startswith("-")), ""))
    options = parser.parse_args(words)
    sys.setrecursionlimit(_DEEPEST)
    code = EXIT_FAILED
    try:
        code = options.run(options)
        sys.stdout.flush()
    except PrewarmError as error:
        print(f"prewarm {options.command}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        nobody_reads()  # `code` says whether the work was done before
    return int(code or 0)


def nobody_reads() -> None:
    """Let standard output go nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> NoReturn:
    """Be the process `prewarm`: run the command of its arguments and end with its exit code.

    It ends without taking the interpreter down: after a download that costs a quarter of a second of CPU, for nothing.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(code)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that costs 25 ms, and `prewarm wait` stands in every pod's way."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"prewarm {version('prewarm')}\n")


def _parser(command: str) -> argparse.ArgumentParser:
    """Return the parser; only the module of `command` is imported, the others show their one line of help."""
    parser = argparse.ArgumentParser(prog="prewarm", description="Makes Kubernetes nodes ready before the traffic.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, told in COMMANDS.items():
        if name == command:
            importlib.import_module(f"agent.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=told, add_help=False)
    return parser


if __name__ == "__main__":
    run()
