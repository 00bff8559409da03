"""Finds the version that a model's URI names now: what is listed, what each object states of itself, whether all is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from agent.core.errors import PrewarmError
from agent.core.refs import ModelUri
from agent.models.completeness import check_complete, named_files, names_files, refuse_large
from agent.models.heads import Head, head_objects
from agent.models.manifest import Listed, Manifest, ObjectEntry, choose
from agent.models.source import HEADS_AT_ONCE, S3Source, agrees, open_source
from agent.models.threads import in_thread


async def resolve(uri: ModelUri, source: S3Source | None = None) -> Manifest:
    """Find the version that `uri` names now: list, HEAD each object, and refuse what cannot be a model on disk.

    Raises:
        Permanent: denied, absent, empty, incomplete by its own account, or an object that cannot be a file.
        Transient: S3 is away or busy, or the objects changed meanwhile.
    """
    if source is None:
        async with open_source() as opened:
            return await resolve(uri, opened)
    chosen = choose(uri, await source.list_objects(uri))
    digests = await _stated_digests(uri, source, chosen)
    heads = await head_objects(source, uri.bucket, [listed for listed, _ in chosen], uri.version_id)
    gate = asyncio.Semaphore(HEADS_AT_ONCE)

    async def entry(listed: Listed, path: str, head: Head | None) -> ObjectEntry:
        async with gate:
            if head is not None and agrees(head, listed):
                return await source.entry(uri.bucket, listed, path, uri.version_id, head)
            return await source.head(uri.bucket, listed, path, uri.version_id)

    try:
        async with asyncio.TaskGroup() as asking:
            tasks = [
                asking.create_task(entry(*each, head), name=f"head {n}")
                for n, (each, head) in enumerate(zip(chosen, heads, strict=True))
            ]
    except* PrewarmError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    entries = (task.result() for task in tasks)
    return Manifest(
        uri=uri, objects=tuple(replace(e, sha256=digests[e.path]) if e.path in digests else e for e in entries)
    )


async def _stated_digests(uri: ModelUri, source: S3Source, chosen: Sequence[tuple[Listed, str]]) -> dict[str, str]:
    """Return the SHA-256 that the model's own files state for others, by path; one GET for each such file.

    Raises:
        Permanent: a file that one of them names is absent.
    """
    naming = [(listed, path) for listed, path in chosen if uri.is_prefix and names_files(path)]
    refuse_large({path: listed.size for listed, path in naming})
    named = {}
    for listed, path in naming:
        content = await source.read(uri.bucket, listed, uri.version_id)
        named[path] = await in_thread(named_files, path, content)
    return check_complete(uri, {path for _, path in chosen}, named)
