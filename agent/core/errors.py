"""The error tree. A subclass exists only where a caller acts differently on it."""

from __future__ import annotations


class PrewarmError(Exception):
    """Base of every error prewarm raises on purpose; its text is one lower-case sentence fit for an Event."""


class Transient(PrewarmError):
    """The outside world is away or busy: retry with backoff, siblings go on."""


class Permanent(PrewarmError):
    """Retrying the same thing cannot help (not found, denied, corrupt source): report, wait for a change."""


class Invalid(PrewarmError):
    """What a person wrote is wrong: quote it, say what is accepted; never retried."""


def cut(text: object, limit: int = 300) -> str:
    """Return foreign text on one line and at most `limit` characters long, for use inside messages.

    Control characters become spaces, so nothing from outside can forge a log line or a terminal sequence.
    """
    line = str(text)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
