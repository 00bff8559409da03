"""Generate the Python stubs of everything under proto/ into agent/pb/.

    python -m tools.proto            write them
    python -m tools.proto --check    exit 1 if the committed ones differ

Message classes and their types for all files; gRPC service code only for what prewarm serves (proto/prewarm): calls to
containerd name their path, which spares the agent the memory of unused stubs.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
PB = ROOT / "agent" / "pb"


def main(arguments: list[str]) -> int:
    """Write or check the stubs; return the exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = generate(Path(temporary))
    standing = {p.relative_to(PB): p.read_text() for p in PB.rglob("*.py*") if _generated(p)}
    if "--check" in arguments:
        stale = sorted(str(name) for name in fresh.keys() | standing.keys() if fresh.get(name) != standing.get(name))
        if stale:
            sys.stderr.write(f"not what proto/ says, run python -m tools.proto: {' '.join(stale)}\n")
        return 1 if stale else 0
    for name in standing.keys() - fresh.keys():
        (PB / name).unlink()
    for name, text in fresh.items():
        (PB / name).parent.mkdir(parents=True, exist_ok=True)
        (PB / name).write_text(text)
    return 0


def generate(directory: Path) -> dict[Path, str]:
    """Run protoc into `directory`; return each file's text by its path below agent/pb.

    Raises:
        SystemExit: protoc refused a file (it has said why).
    """
    sources = sorted(str(p.relative_to(PROTO)) for p in PROTO.rglob("*.proto"))
    served = [name for name in sources if name.startswith("prewarm/")]
    include = [f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    runs = [[f"--python_out={directory}", f"--pyi_out={directory}", *sources]]
    if served:
        runs.append([f"--grpc_python_out={directory}", *served])
    for run in runs:
        if protoc.main(["protoc", *include, *run]):
            raise SystemExit(1)
    found = {p.relative_to(directory): _rehome(p.read_text()) for p in directory.rglob("*.py*")}
    packages = {parent for path in found for parent in path.parents if parent.name}
    return found | {package / "__init__.py": "" for package in packages}


def _rehome(text: str) -> str:
    """Let generated modules import each other from agent.pb, where they live."""
    ours = "|".join(sorted(p.name for p in PROTO.iterdir() if p.is_dir()))
    return re.sub(rf"^from ({ours})\b(.*) import ", r"from agent.pb.\1\2 import ", text, flags=re.MULTILINE)


def _generated(path: Path) -> bool:
    return path.suffix in (".py", ".pyi") and path != PB / "__init__.py"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
