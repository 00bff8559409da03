"""The value that every examination gives: one thing to mend, or one that could not be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a piece of advice is."""

    NOTE = "note"  # nothing to mend: told for information
    MEND = "mend"
    UNSEEN = "unseen"  # it could not be looked at, so nothing is known of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One sentence about one object, and what to do: a command, or lines to add."""

    about: str
    message: str
    cure: str = ""
    kind: Kind = Kind.MEND
