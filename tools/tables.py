"""Writes the tables of metrics and settings from their catalogues, all in docs/reference.md, the first ones in the README."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.config import FIRST_SETTINGS, SETTINGS

ROOT = Path(__file__).resolve().parents[1]
README, REFERENCE = ROOT / "README.md", ROOT / "docs" / "reference.md"


def settings_table(*, first: bool = False) -> str:
    """Return the table of all settings, or of those a person sets first."""
    rows = [
        (
            f"`{s.name}`",
            f"`{s.metadata['default']}`" if s.metadata["default"] else "",
            s.metadata["of"],
            s.metadata["help"],
        )
        for s in SETTINGS
        if not first or s.name in FIRST_SETTINGS
    ]
    return table(("setting", "default", "read by", "meaning"), rows)


def metrics_table(*, first: bool = False) -> str:
    """Return the table of all metrics, or of those a person looks at first."""
    from agent.observe.catalogue import CATALOGUE, FIRST

    return table(
        ("metric", "kind", "labels", "meaning"),
        [(f"`{m.name}`", m.kind, ", ".join(m.labels), m.help) for m in (FIRST if first else CATALOGUE)],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def with_tables(text: str, *, first: bool) -> str:
    """Return a page with both tables as they should be."""
    for heading, wanted in (("## Metrics", metrics_table(first=first)), ("## Settings", settings_table(first=first))):
        before, found, after = text.partition(heading + "\n")
        after = re.sub(r"(?:^\|.*\n?)+", lambda _, t=wanted: t + "\n", after, count=1, flags=re.M)
        text = before + found + after
    return text


def main() -> int:
    """Rewrite both pages; 1 if one was out of date."""
    stale = 0
    for page in (README, REFERENCE):
        before = page.read_text()
        after = with_tables(before, first=page == README)
        page.write_text(after)
        stale |= before != after
    return stale


if __name__ == "__main__":
    sys.exit(main())
