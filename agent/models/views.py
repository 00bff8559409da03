"""Views: what the pods of one endpoint may see, `views/<namespace>/<endpoint>/<digest>/…`, hard links to committed files.

A view appears whole, by one rename, and shares its inodes with the store. Beside it, `<digest>.json` says which model it
is, for pods that look when no agent answers; it is written after the view and goes before it. All methods block on the disk.

A pod should mount its view read-only, but its author says so: whatever stands in a view's way is moved out of it, no link
there is followed, and a view that cannot be made is its own endpoint's trouble.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from agent.core.errors import Invalid, cut
from agent.core.refs import Digest, EndpointKey, is_digest
from agent.models.paths import Tree, fsync_directory, remove_tree, write_durably
from agent.models.version import Version, broken_file


class Views:
    """The directories below `root/views`; new ones are built in `root/staging` and old ones leave through `root/trash`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, endpoint: EndpointKey, digest: Digest) -> Path:
        """Return where an endpoint's pods see a version.

        Raises:
            Invalid: a name that is no single path part.
        """
        for part in (endpoint.namespace, endpoint.name):
            if part in ("", ".", "..") or "/" in part or "\0" in part:
                raise Invalid(f"{cut(part, 80)!r} is not the name of a namespace or endpoint")
        return self._root / "views" / endpoint.namespace / endpoint.name / digest

    def make(self, endpoint: EndpointKey, name: str, version: Version, store: Path) -> bool:
        """Make an endpoint's view of a committed version, or make it anew where it is damaged; True if anything was done.

        `name` is what the endpoint calls the model, `store` the version's directory in the store.
        """
        target = self.directory(endpoint, version.digest)
        made = self._make(target, version, store)
        told = {
            "name": name,
            "uri": str(version.manifest.uri),
            "digest": version.digest,
            "committed": version.committed,
        }
        text = json.dumps(told).encode()
        marker = _marker(target)
        if not _says(marker, text):
            if marker.is_dir():
                self._away(marker)
            write_durably(marker, text)
            made = True
        return made

    def _make(self, target: Path, version: Version, store: Path) -> bool:
        if os.path.lexists(target):
            if target.is_dir() and not target.is_symlink() and not broken_file(version, target):
                return False
            self._drop(target)
        new = self._root / "staging" / f"view-{secrets.token_hex(8)}"
        new.mkdir()
        try:
            source, tree = Tree(store / "files"), Tree(new)
            for record in version.files:
                source.link_into(record.path, tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            new.rename(target)
        except OSError:
            remove_tree(new)
            raise
        fsync_directory(target.parent)
        return True

    def existing(self) -> Iterator[tuple[EndpointKey, Digest, Path]]:
        """Yield every view on disk; what else a pod may have made there is none."""
        for endpoint, path in self._entries():
            if is_digest(path.name):
                yield endpoint, Digest(path.name), path

    def _entries(self) -> Iterator[tuple[EndpointKey, Path]]:
        for path in sorted((self._root / "views").glob("*/*/*")):
            if path.suffix != ".json" and not path.name.startswith("."):
                yield EndpointKey(namespace=path.parts[-3], name=path.parts[-2]), path

    def sweep(self, wanted: Collection[tuple[EndpointKey, Digest]], in_use: Callable[[Digest], bool]) -> None:
        """Remove the views that are not wanted and whose version no pod uses, and directories left empty."""
        for endpoint, digest, path in list(self.existing()):
            if (endpoint, digest) not in wanted and not in_use(digest):
                self._drop(path)
        self._sweep_junk()
        for path in sorted((self._root / "views").glob("*/*")):
            if not any(endpoint.namespace == path.parts[-2] and endpoint.name == path.name for endpoint, _ in wanted):
                _remove_empty(path)
                _remove_empty(path.parent)

    def sweep_orphans(self, committed: Collection[Digest]) -> None:
        """Remove the views of versions that are not committed: a removal was interrupted."""
        for _, digest, path in list(self.existing()):
            if digest not in committed:
                self._drop(path)
        self._sweep_junk()

    def _sweep_junk(self) -> None:
        """Remove what pods made beside their views once their endpoint has no view left: until then one may need it."""
        shown = {endpoint for endpoint, _, _ in self.existing()}
        for endpoint, path in list(self._entries()):
            if endpoint not in shown:
                self._drop(path)

    def drop_version(self, digest: Digest) -> None:
        """Remove every view of one version."""
        for _, found, path in list(self.existing()):
            if found == digest:
                self._drop(path)

    def _drop(self, path: Path) -> None:
        if os.path.lexists(_marker(path)):
            self._away(_marker(path))
        self._away(path)

    def _away(self, path: Path) -> None:
        trash = self._root / "trash" / f"view-{secrets.token_hex(8)}"
        path.rename(trash)
        remove_tree(trash)


def _marker(view: Path) -> Path:
    return view.with_name(f"{view.name}.json")


def _says(marker: Path, text: bytes) -> bool:
    """Say whether a marker is a plain file with this text, and nothing else that would have to be read."""
    try:
        fd = os.open(marker, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, len(text) + 1) == text
    finally:
        os.close(fd)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return
