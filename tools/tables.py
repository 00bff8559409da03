"""Writes tables from their catalogues: metrics and settings in docs/reference.md and README, GPU reasons in docs/gpu.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.config import FIRST_SETTINGS, SETTINGS

ROOT = Path(__file__).resolve().parents[1]
README, REFERENCE, GPU = ROOT / "README.md", ROOT / "docs" / "reference.md", ROOT / "docs" / "gpu.md"


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


def reasons_table() -> str:
    """Return the table of every reason of a GPU verdict."""
    from agent.gpu.reasons import CATALOGUE, Proof

    rows = []
    for code, reason in CATALOGUE.items():
        verdict = str(reason.verdict) if reason.verdict else "information"
        marks = [verdict + (" for several GPUs" if reason.links else ""), *(["at once"] if reason.at_once else [])]
        marks += ["test"] if reason.proof is not Proof.NONE else []
        rows.append((f"`{code}`", ", ".join(marks), reason.cause, reason.cure))
    return table(("reason", "verdict", "cause", "what to do"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def with_tables(text: str, *, first: bool) -> str:
    """Return a page with its tables of metrics and settings as they should be."""
    text = with_table(text, "## Metrics", metrics_table(first=first))
    return with_table(text, "## Settings", settings_table(first=first))


def with_table(text: str, heading: str, wanted: str) -> str:
    """Return a page whose first table under a heading is the wanted one."""
    before, found, after = text.partition(heading + "\n")
    after = re.sub(r"(?:^\|.*\n?)+", lambda _: wanted + "\n", after, count=1, flags=re.M)
    return before + found + after


def pages() -> dict[Path, str]:
    """Return every page with tables as it should be."""
    found = {page: with_tables(page.read_text(), first=page == README) for page in (README, REFERENCE)}
    return found | {GPU: with_table(GPU.read_text(), "## Reasons", reasons_table())}


def main() -> int:
    """Rewrite the pages; 1 if one was out of date."""
    stale = 0
    for page, text in pages().items():
        stale |= page.read_text() != text
        page.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
