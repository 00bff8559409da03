"""`prewarm doctor images [REF…]`: what about this node's containerd keeps images from being warmed well. Looks only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.advise.advice import Advice, Kind
from agent.config import Settings, load_settings
from agent.core.assignment import ImageWant
from agent.core.errors import Permanent, PrewarmError
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.checks import Check, check_daemon, check_disk, check_endpoint, check_image
from agent.images.client import ContainerdClient
from agent.images.daemon import Daemon
from agent.images.hosts import all_hosts
from agent.images.kubelet import image_endpoint
from agent.images.layout import LIMIT_BYTES, parse_document, pick_manifest, this_architecture
from agent.images.prove import Prover
from agent.images.registry import RegistryResolver


async def examine(kubeconfig: str, names: Sequence[str] = ()) -> tuple[Advice, ...]:
    """Look at the containerd of the agent's settings (PREWARM_CONTAINERD, PREWARM_SNAPSHOTTER), and what it will do with images.

    Raises:
        PrewarmError: containerd does not answer, or a name is none of an image.
    """
    del kubeconfig  # nothing of the cluster is asked
    settings, refs = load_settings(), [parse_image_ref(name) for name in names]
    client = ContainerdClient(settings.containerd, settings.snapshotter)
    try:
        daemon, disk = await client.daemon(), await client.disk()
        checks = [*check_daemon(daemon, settings.snapshotter), *check_disk(disk, settings.image_watermark)]
        endpoint = await asyncio.to_thread(image_endpoint)
        checks += [*check_endpoint(endpoint, settings.containerd, settings.snapshotter)]
        checks += await asyncio.to_thread(lambda: list(mirrors(daemon)))
        for ref in refs:
            checks += await _Look(client=client, daemon=daemon, settings=settings).at(ref)
    finally:
        await client.close()
    return tuple(map(_advice, checks))


def mirrors(daemon: Daemon) -> Iterator[Check]:
    """Yield where images of each registry come from that a hosts.toml speaks of. Reads files."""
    for root in daemon.roots:
        try:
            for registry, hosts in all_hosts(daemon.root / root.lstrip("/")):
                default = registry == "_default"
                places = [host.base.removesuffix("/v2") for host in (hosts[:-1] if default else hosts)]
                places += ["the registry itself"] if default else []
                about = f"images of {'any other registry' if default else registry}"
                yield Check(about=about, message=f"containerd asks {', then '.join(places)} ({root})")
        except Permanent as error:
            yield Check(about="registries", message=str(error), cure="mend it: pulls of that registry fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One node, to look at one image after another."""

    client: ContainerdClient
    daemon: Daemon
    settings: Settings

    async def at(self, ref: ImageRef) -> list[Check]:
        """Say what will become of an image here, and what it is now."""
        prover = Prover(self.client, self.settings.snapshotter, this_architecture())
        try:
            proof = (await prover.prove([ImageWant(ref=ref, digest=ref.digest)]))[ref]
            manifest = await self._manifest(ref, proof.digest)
        except PrewarmError as error:
            return [Check(about=str(ref), message=str(error), cure="mend that, and ask again", unseen=True)]
        found = list(check_image(str(ref), manifest, self.daemon, self.settings.snapshotter))
        return [*found, Check(about=str(ref), message=f"now it is {proof.level}: {proof.reason}")]

    async def _manifest(self, ref: ImageRef, digest: str) -> Mapping[str, object]:
        """Return this platform's manifest, from this node or else from where containerd would fetch it."""
        document = parse_document(await self._document(ref, digest), str(ref))
        picked = pick_manifest(document, str(ref), this_architecture())
        if picked is None:
            return document
        return parse_document(await self._document(replace(ref, digest=picked), picked), picked)

    async def _document(self, ref: ImageRef, digest: str) -> bytes:
        content = await self.client.read(digest, LIMIT_BYTES) if digest else None
        if content is not None:
            return content
        roots = await asyncio.to_thread(self.daemon.roots_for, ref.host)
        directory = self.daemon.root / (roots[0] if roots else "nowhere").lstrip("/")
        resolver = RegistryResolver(directory, self.settings.registry_config)
        try:
            return await resolver.document(ref)
        finally:
            await resolver.close()


def _advice(check: Check) -> Advice:
    kind = Kind.UNSEEN if check.unseen else Kind.MEND if check.cure else Kind.NOTE
    return Advice(about=check.about, message=check.message, cure=check.cure, kind=kind)
