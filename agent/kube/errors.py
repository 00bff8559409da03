"""What the API server can answer, as errors: a class only where a caller acts differently on it."""

from __future__ import annotations

from agent.core.errors import Permanent, PrewarmError, Transient, cut


class Away(Transient):
    """No usable answer: unreachable, timed out, overloaded or restarting."""


class Unauthorized(Transient):
    """The credentials were refused; tokens rotate, so the next request may pass."""


class Conflict(Transient):
    """Somebody else wrote first: read again, decide again."""


class AlreadyExists(Conflict):
    """An object of that name is there."""


class Gone(Transient):
    """The resource version is too old to go on from: list again."""


class NotFound(Permanent):
    """No such object, or the kind is not installed."""


class Forbidden(Permanent):
    """RBAC or an admission policy says no."""


class Rejected(Permanent):
    """The request is malformed or fails validation (also: the `test` of a JSON patch did not hold)."""


def refusal(what: str, status: int, reason: str, message: str) -> PrewarmError:
    """Return the error for an HTTP answer of 300 or more.

    Args:
        what: the request, as `PATCH /api/v1/nodes/a/status`.
        status: HTTP status.
        reason: `reason` of the Status object, "" if the body was none.
        message: `message` of the Status object or the start of the body; cut here.
    """
    text = f"{what}: {status} {cut(message or reason or 'without a message')}"
    match status:
        case 401:
            return Unauthorized(text)
        case 403:
            return Forbidden(text)
        case 404:
            return NotFound(text)
        case 409 if reason == "AlreadyExists":
            return AlreadyExists(text)
        case 409:
            return Conflict(text)
        case 410:
            return Gone(text)
        case 408 | 429:
            return Away(text)
        case _ if status >= 500:
            return Away(text)
        case _:
            return Rejected(text)
