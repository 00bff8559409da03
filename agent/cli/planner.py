"""`prewarm planner`: decide what is needed where and when, and withdraw what dead agents claimed; one of its replicas leads."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agent.config import add_flags, load_settings


def add_parser(subparsers: Any) -> None:
    """Add the command's flags: one for each setting."""
    parser = subparsers.add_parser("planner", help="decide what is needed where and when", description=__doc__)
    add_flags(parser, "planner")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop; 0 after SIGTERM or Ctrl-C, 1 when it cannot go on."""
    settings = load_settings(options)
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # structlog would import it for tracebacks: 4 MB for nobody
    from agent.app import run_planner

    return run_planner(settings)
