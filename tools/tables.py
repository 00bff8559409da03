"""Writes the README's tables of metrics and settings from their catalogues: `python -m tools.tables`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.config import SETTINGS

README = Path(__file__).resolve().parents[1] / "README.md"


def settings_table() -> str:
    """Return the table of all settings."""
    rows = [
        (
            f"`{s.name}`",
            f"`{s.metadata['default']}`" if s.metadata["default"] else "",
            s.metadata["of"],
            s.metadata["help"],
        )
        for s in SETTINGS
    ]
    return table(("setting", "default", "read by", "meaning"), rows)


def metrics_table() -> str:
    """Return the table of all metrics."""
    from agent.observe.catalogue import CATALOGUE

    return table(
        ("metric", "kind", "labels", "meaning"),
        [(f"`{m.name}`", m.kind, ", ".join(m.labels), m.help) for m in CATALOGUE],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def with_tables(text: str) -> str:
    """Return the README with both tables as they should be."""
    for heading, wanted in (("## Metrics", metrics_table()), ("## Settings", settings_table())):
        before, found, after = text.partition(heading + "\n")
        after = re.sub(r"(?:^\|.*\n?)+|^[A-Z]+-TABLE\n", lambda _, t=wanted: t + "\n", after, count=1, flags=re.M)
        text = before + found + after
    return text


def main() -> int:
    """Rewrite the README; 1 if it was out of date."""
    before = README.read_text()
    after = with_tables(before)
    README.write_text(after)
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
