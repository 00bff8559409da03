"""Credentials that change under a running process."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Transient
from agent.kube.credentials import KubeconfigCredentials

CONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: first}}]
contexts: [{name: here, context: {cluster: c, user: u}}]
"""


async def test_a_kubeconfig_that_is_being_changed_is_tried_again_later(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(CONFIG)
    credentials = KubeconfigCredentials(str(file))
    await credentials.load()
    assert await credentials.headers() == {"Authorization": "Bearer first"}
    file.write_text("{")
    with pytest.raises(Transient, match="cannot use kubeconfig"):
        await credentials.headers(renew=True)
    file.write_text(CONFIG.replace("first", "second"))
    assert await credentials.headers(renew=True) == {"Authorization": "Bearer second"}
