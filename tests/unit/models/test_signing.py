"""Our signatures are botocore's, for whatever keys, version ids and credentials there are."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from agent.models.bucket import Bucket
from agent.models.signing import Signer

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
TEXT = st.text(st.sampled_from("abcXYZ019+/="), min_size=1, max_size=40)


def as_botocore_signs(
    bucket: Bucket, path: str, headers: dict[str, str], keys: tuple[str, str, str | None]
) -> dict[str, str]:
    request = AWSRequest("GET", f"{bucket.scheme}://{bucket.netloc}{path}", headers=dict(headers))
    request.context.update(payload_signing_enabled=False, client_config=None)
    S3SigV4Auth(Credentials(*keys), "s3", bucket.region).add_auth(request)
    return dict(request.headers.items())


@given(key=NAMES, version=st.none() | TEXT, etag=TEXT, access=TEXT, secret=TEXT, token=st.none() | TEXT)
def test_a_request_is_signed_as_botocore_signs_it(
    key: str, version: str | None, etag: str, access: str, secret: str, token: str | None
) -> None:
    bucket = Bucket(scheme="http", host="127.0.0.1", port=7070, base_path="/models/", region="eu-central-1")
    path = bucket.path(key, version or "")
    headers = {"Range": "bytes=0-65535", "If-Match": f'  "{etag}  {etag}"', "x-amz-checksum-mode": "ENABLED"}
    theirs = as_botocore_signs(bucket, path, headers, (access, secret, token))
    now = datetime.strptime(theirs["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = Signer(access, secret, token, bucket.region).sign("GET", bucket.netloc, path, headers, now)
    assert ours == theirs


def test_a_new_day_has_a_key_of_its_own() -> None:
    signer = Signer("AKIAEXAMPLE", "secret", None, "us-east-1")
    days = [datetime(2026, 11, day, tzinfo=UTC) for day in (25, 26)]
    one, other, again = (signer.sign("GET", "h", "/k", {}, day)["Authorization"] for day in (*days, days[0]))
    assert one != other
    assert one == again


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print(Signer("AKIAEXAMPLE", "topsecret", "alsosecret", "us-east-1"))
    assert "secret" not in capsys.readouterr().out.replace("Signer", "")
