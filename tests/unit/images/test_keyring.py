"""Whose credentials are offered for an image, and in which order."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.core.clock import SystemClock
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.keyring import Keyring


class Granted:
    """One pull secret, of a team that has a part of the registry."""

    async def auths(self, ref: ImageRef) -> Sequence[Mapping[str, object]]:
        return [{"ghcr.io/team-b": {"username": "team", "password": "y"}}]


async def test_the_agents_own_credentials_come_first_and_hide_no_pull_secret(tmp_path: Path) -> None:
    own = tmp_path / "config.json"
    own.write_text(json.dumps({"auths": {"ghcr.io": {"auth": base64.b64encode(b"org:x").decode()}}}))
    keyring = Keyring(own, None, tmp_path, SystemClock(), Granted())
    found = await keyring.credentials(parse_image_ref("ghcr.io/team-b/app:1"))
    assert [each.username for each in found] == ["org", "team"]
    found = await keyring.credentials(parse_image_ref("ghcr.io/other/app:1"))
    assert [each.username for each in found] == ["org"]
