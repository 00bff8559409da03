"""What containerd and registries say on failure, taken from their own words, and what we make of it."""

from __future__ import annotations

import pytest

from agent.core.errors import Permanent, Transient
from agent.images.faults import Fault, classify, failure

PULL = 'failed to pull and unpack image "r/a:1": '


@pytest.mark.parametrize(
    ("code", "details", "fault"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", Fault.AWAY),
        ("UNAVAILABLE", "dial unix /run/x.sock: no such file, not found", Fault.AWAY),
        ("NOT_FOUND", f'{PULL}failed to resolve reference "r/a:1": r/a:1: not found', Fault.NOT_FOUND),
        ("UNKNOWN", f"{PULL}unexpected status code https://r/v2/a: 404 Not Found", Fault.NOT_FOUND),
        ("UNKNOWN", f"{PULL}pull access denied, repository does not exist or may require authorization", Fault.AUTH),
        ("NOT_FOUND", f"{PULL}pull access denied, repository does not exist or may require authorization", Fault.AUTH),
        ("UNKNOWN", f"{PULL}unexpected status: 401 Unauthorized", Fault.AUTH),
        ("UNKNOWN", f"{PULL}failed to fetch oauth token: no basic auth credentials", Fault.AUTH),
        (
            "UNKNOWN",
            f"{PULL}unexpected status: 429 Too Many Requests - Server message: toomanyrequests",
            Fault.RATE_LIMIT,
        ),
        ("UNKNOWN", f"{PULL}write /var/lib/x: no space left on device", Fault.NO_SPACE),
        ("UNKNOWN", f"{PULL}dial tcp 127.0.0.1:1: connect: connection refused", Fault.REGISTRY),
        ("UNKNOWN", f"{PULL}dial tcp: lookup r on 1.1.1.1:53: no such host", Fault.REGISTRY),
        ("UNKNOWN", f"{PULL}dial tcp: lookup r: host not found", Fault.REGISTRY),
        ("NOT_FOUND", f"{PULL}no match for platform in manifest sha256:1: not found", Fault.PLATFORM),
        (
            "UNKNOWN",
            f"{PULL}unexpected status from GET request to https://r/v2/a: 500 Internal Server Error",
            Fault.REGISTRY,
        ),
        ("UNAVAILABLE", f"{PULL}unexpected status code https://r/v2/: 503 Service Unavailable", Fault.REGISTRY),
        ("UNKNOWN", f"{PULL}failed to copy: httpReadSeeker: failed open: unexpected EOF", Fault.REGISTRY),
        ("UNKNOWN", f"{PULL}failed to extract layer sha256:1f404ab: unpigz: signal: killed", Fault.OTHER),
        ("UNKNOWN", f"{PULL}unexpected status code 404", Fault.NOT_FOUND),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Fault.OTHER),
        ("INVALID_ARGUMENT", "snapshotter not loaded: x: invalid argument", Fault.REFUSED),
        ("UNIMPLEMENTED", "unknown service", Fault.REFUSED),
    ],
)
def test_each_failure_has_its_class(code: str, details: str, fault: Fault) -> None:
    assert classify(code, details) is fault


def test_only_what_time_cannot_mend_is_permanent() -> None:
    assert isinstance(failure("pull x", "NOT_FOUND", "not found"), Permanent)
    assert isinstance(failure("pull x", "UNKNOWN", "403 Forbidden"), Permanent)
    assert isinstance(failure("pull x", "UNKNOWN", "no space left on device"), Transient)
    assert isinstance(failure("pull x", "UNAVAILABLE", "gone"), Transient)


def test_the_sentence_says_what_and_what_to_do_without_secrets_of_signed_urls() -> None:
    details = 'Get "https://b.s3/x?X-Amz-Signature=abc&k=v": dial tcp 10.0.0.1:443: i/o timeout'
    assert str(failure("pull r/a:1", "UNKNOWN", details)) == (
        'cannot pull r/a:1: the registry does not answer as it should: Get "https://b.s3/x?…": dial tcp 10.0.0.1:443: i/o timeout'
    )
    assert str(failure("pull r/a:1", "NOT_FOUND", "r/a:1: not found")) == (
        "cannot pull r/a:1: the registry does not have it: check name and tag: r/a:1: not found"
    )
