"""Resolving tags against a real registry, and against one that asks for tokens."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from agent.core.errors import Permanent
from agent.core.refs import parse_image_ref
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.registry import RegistryResolver
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.contract.images_worlds import real_registry, why_not_real

HOST = "registry.test"
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    if reason := why_not_real():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as directory, real_registry(Path(directory)) as running:
        yield running


@pytest.fixture
async def resolver(tmp_path: Path) -> AsyncIterator[RegistryResolver]:
    made = RegistryResolver(tmp_path, tmp_path / "config.json")
    yield made
    await made.close()


def mirror(tmp_path: Path, *urls: str, server: str = "") -> None:
    (tmp_path / HOST).mkdir()
    text = f'server = "{server or urls[-1]}"\n' + "".join(f'[host."{url}"]\n' for url in urls)
    (tmp_path / HOST / "hosts.toml").write_text(text)


@pytest.mark.parametrize("platforms", [(), ("linux/amd64", "linux/arm64")])
async def test_a_tag_has_the_digest_the_registry_gave_it(
    tmp_path: Path, resolver: RegistryResolver, registry: Registry, platforms: tuple[str, ...]
) -> None:
    made = registry.make_image("a/b", "1", [Layer(size_bytes=100, seed="a")], platforms=platforms)
    mirror(tmp_path, f"http://{registry.host}:{registry.port}")
    assert await resolver.resolve(parse_image_ref(f"{HOST}/a/b:1")) == made
    assert await resolver.resolve(parse_image_ref(f"{HOST}/a/b@{made}")) == made


async def test_a_tag_or_digest_that_is_not_there_is_permanent(
    tmp_path: Path, resolver: RegistryResolver, registry: Registry
) -> None:
    registry.make_image("a/c", "1", [])
    mirror(tmp_path, f"http://{registry.host}:{registry.port}")
    for name in ("a/c:2", "never:1", f"a/c@{DIGEST}"):
        with pytest.raises(PermanentFault, match="does not exist: check name and tag") as caught:
            await resolver.resolve(parse_image_ref(f"{HOST}/{name}"))
        assert caught.value.fault is Fault.NOT_FOUND


async def test_a_mirror_that_is_away_is_passed_over(
    tmp_path: Path, resolver: RegistryResolver, registry: Registry
) -> None:
    made = registry.make_image("a/d", "1", [])
    mirror(tmp_path, "http://127.0.0.1:1", f"http://{registry.host}:{registry.port}")
    assert await resolver.resolve(parse_image_ref(f"{HOST}/a/d:1")) == made


async def test_not_found_here_and_away_there_may_pass(
    tmp_path: Path, resolver: RegistryResolver, registry: Registry
) -> None:
    mirror(tmp_path, "http://127.0.0.1:1", f"http://{registry.host}:{registry.port}")
    with pytest.raises(TransientFault, match=r"cannot reach .*; cannot resolve"):
        await resolver.resolve(parse_image_ref(f"{HOST}/never:1"))


async def test_plain_http_is_never_a_fallback(tmp_path: Path, resolver: RegistryResolver, registry: Registry) -> None:
    registry.make_image("a/e", "1", [])
    with pytest.raises(TransientFault, match="cannot reach https://"):
        await resolver.resolve(parse_image_ref(f"{registry.host}:{registry.port}/a/e:1"))


async def test_a_malformed_hosts_file_is_told(tmp_path: Path, resolver: RegistryResolver) -> None:
    (tmp_path / HOST).mkdir()
    (tmp_path / HOST / "hosts.toml").write_text("server = ")
    with pytest.raises(Permanent, match=r"cannot read .*hosts\.toml"):
        await resolver.resolve(parse_image_ref(f"{HOST}/a:1"))


class Guarded:
    """A registry that asks for a bearer token; `private` needs a user, and its requests are kept."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.realm = ""
        self.status = 200
        self.digest_header = True
        self.body = b"{}"
        self.token_body = b""
        self.cookies: list[str] = []

    async def manifest(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, request.headers.get("Authorization", "")))
        self.cookies += request.cookies
        assert "application/vnd.oci.image.index.v1+json" in request.headers["Accept"]
        assert request.query["ns"] == HOST
        if not request.headers.get("Authorization", "").startswith("Bearer T-"):
            asked = f'Bearer realm="{self.realm}",service="s",scope="ignored"'
            return web.Response(status=401, headers={"WWW-Authenticate": asked, "Set-Cookie": "track=me"})
        headers = {"Docker-Content-Digest": DIGEST} if self.digest_header else {}
        return web.Response(status=self.status, headers=headers, body=self.body)

    async def token(self, request: web.Request) -> web.Response:
        assert (request.query["service"], request.query["scope"]) == ("s", "repository:m:pull")
        user = request.headers.get("Authorization", "")
        self.seen.append(("token", user))
        return web.Response(body=self.token_body or json.dumps({"token": f"T-{len(user)}"}).encode())


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    fake = Guarded()
    app = web.Application()
    app.router.add_route("*", "/v2/m/manifests/1", fake.manifest)
    app.router.add_get("/token", fake.token)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    fake.realm = f"http://127.0.0.1:{port}/token"
    mirror(tmp_path, f"http://127.0.0.1:{port}")
    yield fake
    await runner.cleanup()


async def test_a_registry_that_wants_a_token_gets_an_anonymous_one(
    guarded: Guarded, resolver: RegistryResolver
) -> None:
    assert await resolver.resolve(parse_image_ref(f"{HOST}/m:1")) == DIGEST
    assert guarded.seen == [("HEAD", ""), ("token", ""), ("HEAD", "Bearer T-0")]


async def test_credentials_go_to_the_token_service_only(
    guarded: Guarded, resolver: RegistryResolver, tmp_path: Path
) -> None:
    secret = base64.b64encode(b"user:word").decode()
    host = guarded.realm.split("/")[2]
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}, HOST: {"auth": "bm86bm8="}}}))
    assert await resolver.resolve(parse_image_ref(f"{HOST}/m:1")) == DIGEST
    assert guarded.seen[1] == ("token", f"Basic {secret}")
    assert guarded.seen[2][1].startswith("Bearer T-")


@pytest.mark.parametrize(
    ("status", "kind", "fault"),
    [
        (403, PermanentFault, Fault.AUTH),
        (404, PermanentFault, Fault.NOT_FOUND),
        (429, TransientFault, Fault.RATE_LIMIT),
        (503, TransientFault, Fault.REGISTRY),
    ],
)
async def test_each_refusal_has_its_class(
    guarded: Guarded, resolver: RegistryResolver, status: int, kind: type[Exception], fault: Fault
) -> None:
    guarded.status = status
    with pytest.raises(kind) as caught:
        await resolver.resolve(parse_image_ref(f"{HOST}/m:1"))
    assert getattr(caught.value, "fault", None) is fault
    assert "T-0" not in str(caught.value)


async def test_without_the_digest_header_the_manifest_is_hashed(guarded: Guarded, resolver: RegistryResolver) -> None:
    guarded.digest_header = False
    digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert await resolver.resolve(parse_image_ref(f"{HOST}/m:1")) == digest


async def test_a_manifest_without_end_is_refused(guarded: Guarded, resolver: RegistryResolver) -> None:
    guarded.digest_header = False
    guarded.body = b" " * (5 << 20)
    with pytest.raises(PermanentFault, match="more than 4194304 bytes"):
        await resolver.resolve(parse_image_ref(f"{HOST}/m:1"))


@pytest.mark.parametrize(
    "body",
    [b"[", b"[]", b"{}", b'{"token": 3}', b'{"token": "a\\nb"}', b"[" * 60_000, b'{"token": "T-"}' + b" " * (65 << 10)],
)
async def test_nonsense_instead_of_a_token_is_that_images_failure(
    guarded: Guarded, resolver: RegistryResolver, body: bytes
) -> None:
    guarded.token_body = body
    with pytest.raises(PermanentFault, match=r"without a token|more than 65536 bytes"):
        await resolver.resolve(parse_image_ref(f"{HOST}/m:1"))


async def test_a_registrys_cookies_are_not_kept(guarded: Guarded, resolver: RegistryResolver, tmp_path: Path) -> None:
    hosts = tmp_path / HOST / "hosts.toml"  # a jar takes no cookies of an address
    hosts.write_text(hosts.read_text().replace("127.0.0.1", "localhost"))
    assert await resolver.resolve(parse_image_ref(f"{HOST}/m:1")) == DIGEST
    assert guarded.cookies == []
