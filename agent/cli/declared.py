"""The endpoints that a command is about: those declared in a file, or in the cluster. Reads only."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import Settings
from agent.core.documents import load_documents
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.refs import EndpointKey, endpoint_key, parse_model_source
from agent.core.sources import SourceRule
from agent.demand.annotations import read_endpoint, refuse_duplicates
from agent.demand.endpoint import DemandDefaults, Endpoint, ProblemKind
from agent.kube.objects import WorkloadView
from agent.kube.workloads import is_workload, parse_workload

if TYPE_CHECKING:
    from agent.kube.api import KubeApi


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which endpoints."""
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="annotated workloads (YAML, - for standard input), not those in the cluster",
    )
    parser.add_argument("-n", "--namespace", default="", help="only endpoints of this namespace")
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file (default: as kubectl finds it)")
    parser.add_argument("--config", help="settings file, for timezone, prometheus_url and history_queries")


def keys_of(words: Iterable[str]) -> frozenset[EndpointKey]:
    """Return the endpoints named as NAMESPACE/NAME.

    Raises:
        Invalid: a name that cannot be one.
    """
    found = set()
    for word in words:
        namespace, slash, name = word.partition("/")
        if not slash:
            raise Invalid(f"{cut(word, 60)!r}: write NAMESPACE/NAME")
        found.add(endpoint_key(namespace, name))
    return frozenset(found)


def declared(
    options: argparse.Namespace, settings: Settings, wanted: frozenset[EndpointKey] = frozenset()
) -> tuple[Endpoint, ...]:
    """Return the valid endpoints, those `wanted` if any are; what is wrong with others goes to stderr.

    Raises:
        PrewarmError: there is none, or not one of those wanted; or the cluster cannot be asked.
    """
    where = options.file or "the cluster"
    if options.file:
        found = [parse_workload(d) for d in documents(options.file) if is_workload(d)]
        workloads = [replace(w, namespace=w.namespace or options.namespace or "default") for w in found]
    else:
        workloads = list(asyncio.run(_in_cluster(options.kubeconfig, options.namespace)))
    readings = refuse_duplicates([read_endpoint(w, defaults(w, settings)) for w in workloads])
    for reading in readings:
        for problem in reading.problems:
            if problem.kind is ProblemKind.INVALID and (not wanted or reading.key in wanted):
                name = f"{reading.workload.namespace}/{reading.workload.name}"
                print(f"prewarm {options.command}: {name} is left out: {problem.message}", file=sys.stderr)
    endpoints = [r.endpoint for r in readings if r.endpoint and options.namespace in ("", r.endpoint.key.namespace)]
    if missing := sorted(wanted - {e.key for e in endpoints}):
        raise PrewarmError(
            f"no endpoint {missing[0].namespace}/{missing[0].name} in {where}: it needs a valid annotation prewarm.dev/… "
            f"({_names(endpoints)})"
        )
    if not endpoints:
        of = f" of namespace {options.namespace}" if options.namespace else ""
        raise PrewarmError(
            f"no endpoint{of} in {where}: annotate a Deployment with prewarm.dev/models and prewarm.dev/schedule"
        )
    return tuple(e for e in endpoints if not wanted or e.key in wanted)


def documents(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the YAML documents of a file, or of standard input for `-`, Lists taken apart.

    Raises:
        Invalid: it cannot be read.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        found = load_documents(text)
    except (OSError, UnicodeDecodeError, Invalid) as error:
        raise Invalid(f"cannot read {path}: {cut(error)}") from error
    for document in found:
        is_list = isinstance(document, Mapping) and document.get("kind") == "List"
        items = document.get("items") if isinstance(document, Mapping) and is_list else [document]
        if not isinstance(items, list):
            raise Invalid(f"{path}: the items of a List must be a list, found {cut(items, 60)!r}")
        for item in items:
            if isinstance(item, Mapping):
                yield item
            elif item is not None:
                raise Invalid(f"{path}: expected a mapping, found {cut(item, 60)!r}")


def defaults(workload: WorkloadView, settings: Settings) -> DemandDefaults:
    """Without a `sources` setting here, sources are not judged: the planner will."""
    sources = settings.sources
    if not sources:
        texts = (a.get("prewarm.dev/models", "") for a in (workload.annotations, workload.template_annotations))
        sources = tuple(_named_sources(",".join([*texts, workload.storage_uri])))
    return DemandDefaults(timezone=settings.timezone, sources=sources)


def _named_sources(text: str) -> Iterator[SourceRule]:
    for item in text.replace("\n", ",").split(","):
        try:
            yield SourceRule(namespace="*", bucket=parse_model_source(item).uri.bucket, prefix="")
        except Invalid:
            continue  # read_endpoint will say so


async def _in_cluster(kubeconfig: str, namespace: str) -> tuple[WorkloadView, ...]:
    from agent.kube.api import KubeApi

    async with await KubeApi.connect(kubeconfig) as api:
        return await annotated_workloads(api, namespace)


async def annotated_workloads(api: KubeApi, namespace: str) -> tuple[WorkloadView, ...]:
    """Return the annotated workloads of a namespace ("": all) of every kind that is there and may be seen.

    For people with few rights a kind that is not installed is forbidden, too: on standard error it is told which were not looked at.
    """
    from agent.fleet.families import whole
    from agent.fleet.sources import ADDED_KINDS, BUILT_IN_KINDS, annotated
    from agent.kube.errors import Forbidden, NotFound

    found: list[WorkloadView] = []
    unseen: list[str] = []
    for kind in (*BUILT_IN_KINDS, *ADDED_KINDS):
        try:
            found += (await api.list(kind, namespace=namespace)).items
        except (NotFound, Forbidden) as error:
            if kind in BUILT_IN_KINDS:
                raise
            unseen += [kind.plural] if isinstance(error, Forbidden) else []
    if unseen:
        print(f"prewarm: not looked at, for you may not list them: {', '.join(unseen)}", file=sys.stderr)
    return whole(w for w in found if annotated(w))


def _names(endpoints: Iterable[Endpoint]) -> str:
    names = sorted(f"{e.key.namespace}/{e.key.name}" for e in endpoints)
    return cut(f"there are: {', '.join(names)}" if names else "there is no other", 200)
