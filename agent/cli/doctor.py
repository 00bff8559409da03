"""`prewarm doctor`: what in this cluster keeps prewarm from doing its work, and how to mend it. Looks only, changes nothing.

Exit codes: 0 nothing to mend, 3 something to mend, 1 something could not be looked at, 2 usage.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from agent.advise.advice import Advice, Kind
from agent.core.errors import cut

EXIT_UNSEEN, EXIT_MEND = 1, 3
_LINE_LIMIT = 1000
TOPICS = {  # each with the module that has its `examine(kubeconfig)`
    "gpu": "start-up taint and the DaemonSets that must tolerate it, taints on warm nodes, admission policies",
    "images": "this node's containerd: resuming, pins, laziness, registries, disk (run it on the node: kubectl exec);\n"
    "           with REF: will that image be lazy here, and if not, which setting stops it",
}
_MODULES = {"gpu": "agent.advise.gpu", "images": "agent.cli.doctor_images"}
_DEFAULT = ("gpu",)  # what can be looked at from anywhere


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    topics = "\n".join(f"  {name:<8} {told}" for name, told in TOPICS.items())
    parser = subparsers.add_parser(
        "doctor",
        help="show what keeps prewarm from its work, and how to mend it",
        description=f"{__doc__}\ntopics:\n{topics}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "topics",
        nargs="*",
        metavar="TOPIC",
        help=f"{', '.join(TOPICS)} (default: gpu); after `images` also image names",
    )
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file (default: as kubectl finds it)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, fail=parser.error)


def run(options: argparse.Namespace) -> int:
    """Examine and print the advice."""
    topics = [word for word in options.topics if word in TOPICS]
    images = [word for word in options.topics if word not in TOPICS]
    if images and "images" not in topics:
        options.fail(f"{images[0]!r} is no topic: {', '.join(TOPICS)}")
    found = asyncio.run(_examine(topics or _DEFAULT, options.kubeconfig, images))
    if options.json:
        print(json.dumps([{"topic": topic, **asdict(a)} for topic, advice in found.items() for a in advice], indent=1))
    else:
        print("\n".join(text(found)))
    kinds = {advice.kind for several in found.values() for advice in several}
    return EXIT_UNSEEN if Kind.UNSEEN in kinds else EXIT_MEND if Kind.MEND in kinds else 0


async def _examine(topics: Sequence[str], kubeconfig: str, images: Sequence[str]) -> dict[str, tuple[Advice, ...]]:
    modules = {topic: importlib.import_module(_MODULES[topic]) for topic in topics}
    return {topic: await module.examine(kubeconfig, images) for topic, module in modules.items()}


def text(found: Mapping[str, Sequence[Advice]]) -> Iterator[str]:
    """Write the advice for a person; what objects of others say cannot command the terminal."""
    for topic, several in found.items():
        if all(advice.kind is Kind.NOTE for advice in several):
            yield f"{topic}: nothing to mend"
        for advice in several:
            unseen = "could not be looked at: " if advice.kind is Kind.UNSEEN else ""
            yield cut(f"{topic}: {advice.about}: {unseen}{advice.message}", _LINE_LIMIT)
            if advice.cure:
                yield "    " + cut(advice.cure, _LINE_LIMIT)
