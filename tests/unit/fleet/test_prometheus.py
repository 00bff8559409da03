"""What cannot be asked is no answer: whoever reads histories goes on without."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Transient
from agent.fleet.prometheus import Prometheus


@pytest.mark.parametrize("url", ["http://prometheus..svc:9090", f"http://{'a' * 64}.svc:9090"])
async def test_a_name_that_cannot_be_looked_up_does_not_answer(url: str) -> None:
    prometheus = Prometheus(url)
    with pytest.raises(Transient, match="does not answer"):
        await prometheus.levels("up", 0, 1)
    await prometheus.close()


@pytest.mark.parametrize("content", [b"two\nlines", b"a\x00b", "schlüssel".encode(), b"\xff"])
async def test_a_token_that_fits_no_header_is_told_without_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    prometheus = Prometheus("http://127.0.0.1:9", file)
    with pytest.raises(Transient, match=r"cannot read the token for Prometheus: .* --token-file") as told:
        await prometheus.levels("up", 0, 1)
    assert "lines" not in str(told.value)
    await prometheus.close()
