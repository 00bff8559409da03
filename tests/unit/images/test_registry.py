"""Names of registries that no resolver takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.faults import TransientFault
from agent.images.hosts import registry_hosts
from agent.images.registry import RegistryResolver


@pytest.mark.parametrize("host", ["a..b.test", "a" * 64 + ".test"])
async def test_a_mirror_that_is_no_host_is_told(tmp_path: Path, host: str) -> None:
    (tmp_path / "registry.test.toml").write_text(f'server = "https://{host}"\n')
    resolver = RegistryResolver(tmp_path)
    with pytest.raises(TransientFault, match="cannot reach"):
        await resolver.resolve(parse_image_ref("registry.test/a:1"))
    await resolver.close()


async def test_a_host_too_long_for_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="File name too long"):
        registry_hosts(tmp_path, "a" * 300)
    resolver = RegistryResolver(tmp_path)
    with pytest.raises(Permanent, match="File name too long"):
        await resolver.resolve(ImageRef(host="a" * 300, repository="x", tag="1"))
    await resolver.close()
