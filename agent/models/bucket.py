"""Where the objects of one bucket are read over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from agent.models.dial import Proxy


@dataclass(frozen=True, kw_only=True)  # no slots: each request says `netloc`, which is made once and kept
class Bucket:
    """Where the bodies of one bucket's objects are read: `scheme://host:port` and the path before each key."""

    scheme: str
    host: str
    port: int
    base_path: str
    region: str
    proxy: Proxy | None = None

    def path(self, key: str, version_id: str = "") -> str:
        """Return path and query of an object, escaped as S3 signs it."""
        query = f"?versionId={quote(version_id, safe='', errors='surrogateescape')}" if version_id else ""
        return self.base_path + quote(key, safe="/-_.~") + query

    @cached_property
    def netloc(self) -> str:
        """Return the host as the `Host` header has it: the port only where it is not the scheme's own."""
        usual = {"http": 80, "https": 443}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == usual else f"{host}:{self.port}"
