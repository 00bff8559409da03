"""What this node's kubelet says of images: the endpoint it pulls through. Read from its command line and configuration."""

from __future__ import annotations

from pathlib import Path

from agent.core.documents import load_document
from agent.core.errors import Invalid
from agent.images.rooted import inside

_FLAG, _CONFIG = "--image-service-endpoint", "--config"
_RUNTIME_FLAG = "--container-runtime-endpoint"


def image_endpoint(proc: Path = Path("/proc")) -> str:
    """Return the socket that the kubelet pulls images through, "" where no kubelet is to be seen. Reads files."""
    for process in proc.glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if Path(words[0]).name == "kubelet":
            return _endpoint(process, words)
    return ""


def _endpoint(process: Path, words: list[str]) -> str:
    config = _document(process, _value(words, _CONFIG))
    told = (
        _value(words, _FLAG)
        or config.get("imageServiceEndpoint")
        or _value(words, _RUNTIME_FLAG)
        or config.get("containerRuntimeEndpoint")
    )
    return str(told or "").removeprefix("unix://")


def _value(words: list[str], flag: str) -> str:
    for n, word in enumerate(words):
        if word == flag:
            return words[n + 1] if n + 1 < len(words) else ""
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _document(process: Path, name: str) -> dict[str, object]:
    try:
        found = load_document(inside(process / "root", name).read_text()) if name else {}
    except (OSError, ValueError, Invalid):
        return {}
    return dict(found) if isinstance(found, dict) else {}
