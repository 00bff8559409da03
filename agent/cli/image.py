"""`prewarm image status|proof|warm|pin|unpin`: images in this node's containerd, with an agent or without one.

Settings are the agent's (PREWARM_CONTAINERD, PREWARM_SNAPSHOTTER, PREWARM_REGISTRY_CONFIG, …), so in its pod nothing is to be
said: kubectl -n prewarm exec ds/prewarm-agent -- prewarm image proof REF

exit codes: 0 done, and warm; 1 failed (one sentence says why); 2 bad usage; 3 not warm; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.core.errors import PrewarmError
from agent.core.refs import ImageRef, parse_image_ref
from agent.core.units import format_size

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.images.client import ContainerdClient
    from agent.images.prove import Proof, Prover

EXIT_NOT_WARM = 3
_ACTS = {
    "status": "which of these images are warm here, pinned, and how they would be pulled",
    "proof": "what proves that an image is warm here, or what is lacking",
    "warm": "pull an image if it is not warm, and prove it; goes on where an earlier pull broke off",
    "pin": "keep an image from the kubelet's garbage collection until it is unpinned",
    "unpin": "let the kubelet collect an image again, whoever pinned it; an agent pins again what it needs",
}


def add_parser(subparsers: Any) -> None:
    """Add the command and its own subcommands."""
    form = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "image", help="prove, warm or pin images of this node", description=__doc__, formatter_class=form
    )
    acts = parser.add_subparsers(dest="act", metavar="|".join(_ACTS), required=True)
    for name, told in _ACTS.items():
        act = acts.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.")
        act.add_argument("refs", nargs="+", metavar="REF", help="an image as a pod names it")
        act.add_argument("--json", action="store_true", help="print JSON, a line for each image")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """What every act needs."""

    client: ContainerdClient
    prover: Prover


def run(options: argparse.Namespace) -> int:
    """Do one act on each image."""
    from agent.config import load_settings

    refs = [parse_image_ref(text) for text in options.refs]
    return asyncio.run(_run(options.act, refs, load_settings(), as_json=options.json))


async def _run(act: str, refs: list[ImageRef], settings: Settings, *, as_json: bool) -> int:
    from agent.core.clock import SystemClock
    from agent.images.client import ContainerdClient
    from agent.images.keyring import Keyring
    from agent.images.layout import this_architecture
    from agent.images.prove import Prover

    client = ContainerdClient(settings.containerd, settings.snapshotter, Keyring.of(settings, SystemClock()))
    node = _Node(client=client, prover=Prover(client, settings.snapshotter, this_architecture()))
    code = 0
    try:
        for ref in refs:
            try:
                proof = await _act(act, node, ref)
            except PrewarmError as error:
                print(f"prewarm image {act}: {error}", file=sys.stderr)
                code = 1
                continue
            told = await _told(node, ref, proof)
            print(json.dumps(told) if as_json else _line(told))
            code = code or (0 if proof.level.warm else EXIT_NOT_WARM)
    finally:
        await client.close()
    return code


async def _act(act: str, node: _Node, ref: ImageRef) -> Proof:
    """Do it; returns the proof afterwards."""
    from agent.images.sources import told

    proof = await _prove(node, ref)
    if act == "warm" and not proof.level.warm:
        print(f"{ref}: pulling, {(await node.client.way(str(ref), '')).reason}", file=sys.stderr)
        await node.client.pull(str(ref), "")
        if source := told(node.client.sources(str(ref))):
            print(f"{ref}: {source}", file=sys.stderr)
        return await _prove(node, ref)
    if act in ("pin", "unpin"):
        await node.client.keep(proof.image_id, pinned=act == "pin")
    return proof


async def _prove(node: _Node, ref: ImageRef) -> Proof:
    from agent.core.assignment import ImageWant

    return (await node.prover.prove([ImageWant(ref=ref, digest=ref.digest)]))[ref]


async def _told(node: _Node, ref: ImageRef, proof: Proof) -> dict[str, object]:
    return {
        "ref": str(ref),
        "level": str(proof.level),
        "digest": proof.digest,
        "bytes": proof.size_bytes,
        "pinned": bool(proof.digest) and await node.client.shielded(str(ref)),
        "reason": proof.reason,
        "way": (await node.client.way(str(ref), "")).reason,
    }


def _line(told: dict[str, object]) -> str:
    size = f" {format_size(float(str(told['bytes'])))}" if told["bytes"] else ""
    pinned = ", pinned" if told["pinned"] else ""
    return f"{told['ref']}: {told['level']}{size}{pinned}: {told['reason']} (pulls: {told['way']})"
