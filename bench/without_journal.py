"""`prewarm …` with or without its journal: `python -m bench.without_journal on|off ARGUMENTS…`.

No product setting turns the journal off. Both ways run through here, so that they differ in it alone.
"""

from __future__ import annotations

import sys

from agent.cli import main
from agent.models.checksum import RangeSums
from agent.models.journal import Journal
from agent.models.ranges import Part


def _note_nothing(_journal: Journal, _part: Part, _sums: RangeSums) -> None:
    return


if __name__ == "__main__":
    way, *arguments = sys.argv[1:]
    if way == "off":
        Journal.append = _note_nothing  # type: ignore[method-assign,assignment]
    sys.exit(main(arguments))
