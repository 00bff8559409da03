"""Why containerd or a registry did not do what was asked, told apart by what one does next.

containerd hands a registry's refusals on as text, mostly under code UNKNOWN, so the text decides before the code.
"""

from __future__ import annotations

import re
from enum import StrEnum

from agent.core.errors import Permanent, Transient, cut


class Fault(StrEnum):
    """Classes of failure; each has its own backoff."""

    AUTH = "auth"
    NOT_FOUND = "not found"
    RATE_LIMIT = "rate limit"
    NO_SPACE = "no space"
    AWAY = "away"  # containerd itself does not answer
    REFUSED = "refused"  # a request containerd will never accept: ours is wrong for this version
    PLATFORM = "wrong platform"  # there is no such image for this machine
    REGISTRY = "registry away"  # it does not answer, answers 5xx, or cuts its answers
    MOVED = "tag moved"  # the tag points elsewhere than when the planner resolved it
    OTHER = "other"


class TransientFault(Transient):
    """A failure that may pass, with its class; `retry_after_seconds` is how long the other side asked to wait, 0 if it did not."""

    def __init__(self, text: str, fault: Fault, retry_after_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.fault = fault
        self.retry_after_seconds = retry_after_seconds


class PermanentFault(Permanent):
    """A failure that stays until something else changes, with its class."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault = fault


# In this order: a registry says "denied" and "not found" in one breath when it hides what one may not see, and a name server
# says "host not found".
_TEXTS = (
    (Fault.NO_SPACE, re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)),
    (Fault.RATE_LIMIT, re.compile(r"429 too many requests|toomanyrequests|rate limit", re.IGNORECASE)),
    (
        Fault.AUTH,
        re.compile(
            r"no basic auth credentials|authorization failed|401 unauthorized|403 forbidden|unauthorized|"
            r"insufficient_scope|access denied|may require authorization|denied:",
            re.IGNORECASE,
        ),
    ),
    (Fault.PLATFORM, re.compile(r"no match for platform|no manifest for linux", re.IGNORECASE)),
    (
        Fault.REGISTRY,
        re.compile(
            r"dial tcp|lookup |connection refused|connection reset|no such host|i/o timeout|unexpected EOF|\bEOF$|"
            r"(?:unexpected status|status code)\b.*\b5\d\d |failed size validation|tls: |x509: |context deadline exceeded|"
            r"server closed|unexpected commit digest|no route to host|network is unreachable",
            re.IGNORECASE,
        ),
    ),
    (Fault.NOT_FOUND, re.compile(r"not found|\b404\b", re.IGNORECASE)),
)
_ADVICE = {
    Fault.AUTH: "the registry wants other credentials for it (settings registry_config, credential_provider_config)",
    Fault.NOT_FOUND: "the registry does not have it: check name and tag",
    Fault.RATE_LIMIT: "the registry limits the rate of requests",
    Fault.PLATFORM: "the image does not exist for this machine's platform",
    Fault.REGISTRY: "the registry does not answer as it should",
    Fault.NO_SPACE: "the disk under containerd is full",
    Fault.AWAY: "containerd does not answer",
}
_PERMANENT = frozenset({Fault.AUTH, Fault.NOT_FOUND, Fault.PLATFORM, Fault.REFUSED})
_CODES = {
    "UNAVAILABLE": Fault.AWAY,
    "NOT_FOUND": Fault.NOT_FOUND,
    "FAILED_PRECONDITION": Fault.REFUSED,
    "INVALID_ARGUMENT": Fault.REFUSED,
    "UNIMPLEMENTED": Fault.REFUSED,
    "RESOURCE_EXHAUSTED": Fault.OTHER,
}
_QUERY = re.compile(r"\?[^\s\"'<>]+")  # signed URLs of blob stores carry credentials there


def without_query(text: str) -> str:
    """Return a text without the queries of the URLs in it."""
    return _QUERY.sub("?…", text)


def classify(code: str, details: str) -> Fault:
    """Return the class of a failure from its gRPC code's name and its text."""
    if code != "UNAVAILABLE" or "unexpected status" in details:  # containerd 2 hands a registry's 503 on by that code
        for fault, pattern in _TEXTS:
            if pattern.search(details):
                return fault
    return _CODES.get(code, Fault.OTHER)


def failure(what: str, code: str, details: str) -> TransientFault | PermanentFault:
    """Return the error for a failed call; `what` completes the sentence "cannot …"."""
    fault = classify(code, details)
    advice = f"{_ADVICE[fault]}: " if fault in _ADVICE else ""
    text = f"cannot {what}: {advice}{cut(without_query(details)) or code}"
    return PermanentFault(text, fault) if fault in _PERMANENT else TransientFault(text, fault)
