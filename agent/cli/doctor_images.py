"""`prewarm doctor images`: what about this node's containerd keeps images from being warmed well. Looks only."""

from __future__ import annotations

from agent.advise.advice import Advice, Kind
from agent.config import load_settings
from agent.images.checks import Check, check_daemon, check_disk
from agent.images.client import ContainerdClient


async def examine(kubeconfig: str) -> tuple[Advice, ...]:
    """Look at the containerd of the agent's settings (PREWARM_CONTAINERD, PREWARM_SNAPSHOTTER).

    Raises:
        PrewarmError: containerd does not answer.
    """
    del kubeconfig  # nothing of the cluster is asked
    settings = load_settings()
    client = ContainerdClient(settings.containerd, settings.snapshotter)
    try:
        daemon, disk = await client.daemon(), await client.disk()
    finally:
        await client.close()
    checks = [*check_daemon(daemon, settings.snapshotter), *check_disk(disk, settings.image_watermark)]
    return tuple(map(_advice, checks))


def _advice(check: Check) -> Advice:
    kind = Kind.UNSEEN if check.unseen else Kind.MEND
    return Advice(about=check.about, message=check.message, cure=check.cure, kind=kind)
