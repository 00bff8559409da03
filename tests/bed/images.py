"""Images of the product and of the bed's model server, built without a daemon and cached by content.

    python -m tests.bed.images base|modelserver|product [--push HOST:PORT] [--tag TAG]
    python -m tests.bed.images context DIR

Each image is kept as an OCI layout under `.cache/images/`, named by the hash of all that went into it: a second call
looks at the disk only, and pushing it uploads what the registry lacks. Needs root, buildah and mmdebstrap; the base
image stands in for `python:3.11-slim` where no registry can be reached.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.bed.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "images"
UV_VERSION = "0.13.9"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates,libstdc++6"
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
)
# After the packages' own scripts have run: perl, lists and caches, and parts of Python that nobody runs.
REMOVED = (
    "usr/bin/perl*",
    "usr/lib/x86_64-linux-gnu/*perl*",
    "usr/share/perl*",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/python3.11/test",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/info/*.symbols",
    "var/cache/apt/*",
    "var/cache/debconf/*",
    "var/log/*",
)
BASE_DOCKERFILE = """\
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
"""
KEPT = 4  # layouts of one name
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on disk."""

    name: str
    key: str  # hash of everything it was built from
    layout: Path  # OCI layout with this one image

    @property
    def local(self) -> str:
        """Its name in buildah's storage."""
        return f"localhost/{self.name}:{self.key}"

    def compressed_bytes(self) -> int:
        """What a node that has no layer of it pulls."""
        return sum(self.layer_bytes())

    def layer_bytes(self) -> list[int]:
        """Compressed sizes of its layers, from the base up."""
        index = json.loads((self.layout / "index.json").read_bytes())
        manifest = (self.layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_bytes()
        return [layer["size"] for layer in json.loads(manifest)["layers"]]

    def push(self, registry: Registry, *, tag: str) -> str:
        """Uploads what the registry lacks; returns the manifest's digest."""
        return registry.push_layout(self.layout, self.name, tag)


def base_image() -> Image:
    """Debian with Python and nothing else worth naming: 20 to 100 s the first time."""
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in EXCLUDED]
    command += ["--customize-hook=rm -rf " + " ".join(f'"$1"/{path}' for path in REMOVED), SUITE]

    def fill(context: Path) -> None:
        _run(*command, str(context / "base.tar"))
        (context / "Dockerfile").write_text(BASE_DOCKERFILE)

    return _cached(_image("python-base", [*command, BASE_DOCKERFILE]), fill)


def modelserver_image() -> Image:
    """The bed's model server on the base image."""
    base, source = base_image(), ROOT / "tests" / "bed" / "modelserver"
    files = [source / "Dockerfile", source / "server.py"]

    def fill(context: Path) -> None:
        for file in files:
            shutil.copy(file, context)

    return _cached(_image("modelserver", [base.key, *_contents(files)]), fill, base=base)


def product_image() -> Image:
    """The project's own image, from its Dockerfile, lock and working tree."""
    base = base_image()
    own = [ROOT / name for name in ("Dockerfile", "uv.lock", "pyproject.toml", "README.md", "LICENSE")]
    code = [path for path in (ROOT / "agent").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    image = _image("prewarm", [base.key, *_contents([*own, *code])])
    return _cached(image, write_context, *_pip(), base=base)


def run(image: Image, *command: str) -> str:
    """What a command prints in a fresh container of the image, its entrypoint left out."""
    _ensure_stored(image)
    container = _buildah("from", image.local).strip()
    try:
        return _buildah("run", "--isolation", "chroot", container, "--", *command)
    finally:
        _buildah("rm", container)


def write_context(directory: Path) -> None:
    """Fills the product's build context: Dockerfile, hashed requirements and the wheel."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "Dockerfile", directory)
    uv = _uv()
    lock = directory / "requirements.lock"
    export = ["export", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header", "--quiet"]
    _run(uv, *export, "--format", "requirements-txt", "-o", str(lock), "--project", str(ROOT))
    _run(uv, "build", "--quiet", "--wheel", "--out-dir", str(directory), str(ROOT))


def _uv() -> str:
    """The uv that runs us, or on PATH, or one installed for this."""
    found = os.environ.get("UV") or shutil.which("uv")
    own = ROOT / ".cache" / "uv" / "bin" / "uv"
    if not found and not own.exists():
        _run(sys.executable, "-m", "venv", str(own.parents[1]))
        _run(str(own.with_name("pip")), "install", "--quiet", f"uv=={UV_VERSION}")
    return found or str(own)


def _image(name: str, ingredients: Iterable[str]) -> Image:
    digest = hashlib.sha256()
    for ingredient in ingredients:
        digest.update(f"{len(ingredient)}:{ingredient}".encode())
    key = digest.hexdigest()[:16]
    return Image(name=name, key=key, layout=_cache() / f"{name}-{key}")


def _contents(paths: Iterable[Path]) -> list[str]:
    """Path and hash of each file, in order of path."""
    return [f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(paths)]


def _cache() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def _cached(image: Image, fill: Callable[[Path], None], *options: str, base: Image | None = None) -> Image:
    """Builds the image from the context that `fill` makes, unless it is there; one build at a time."""
    if not image.layout.exists():
        with (CACHE / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=CACHE) as context:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not image.layout.exists():
                fill(Path(context))
                _build(image, Path(context), *options, base=base)
    return image


def _build(image: Image, context: Path, *options: str, base: Image | None) -> None:
    """Builds `context` and leaves the layout in its place by one rename."""
    if base:
        _ensure_stored(base)
        options += ("--build-arg", f"BASE={base.local}")
    _buildah("bud", "--quiet", "--layers", "--isolation", "chroot", *options, "-t", image.local, str(context))
    with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
        _buildah("push", "--quiet", image.local, f"oci:{fresh}/layout:latest")
        Path(fresh, "layout").rename(image.layout)
    _forget_old(image)


def _forget_old(image: Image) -> None:
    """Keeps the newest few of a name; each change of the code makes one."""
    layouts = (path for path in CACHE.glob(f"{image.name}-*") if path.is_dir())
    for old in sorted(layouts, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old)
        name = f"localhost/{image.name}:{old.name.removeprefix(f'{image.name}-')}"
        if _stored(name):
            _buildah("rmi", name)


def _stored(name: str) -> bool:
    return bool(_buildah("images", "--quiet", "--filter", f"reference={name}").strip())


def _ensure_stored(image: Image) -> None:
    """Puts a cached image back into buildah's storage where that has been emptied."""
    if not _stored(image.local):
        identity = _buildah("pull", "--quiet", f"oci:{image.layout}:latest").strip()
        _buildah("tag", identity, image.local)


def _pip() -> list[str]:
    """Lets pip inside the build trust what this machine trusts, and use its index; pip ignores empty settings."""
    bundle = Path(os.environ.get("PIP_CERT") or "/etc/ssl/certs/ca-certificates.crt")
    trusted = bundle if bundle.is_file() else ""
    options = [
        "--build-arg",
        f"PIP_CERT={trusted}",
        "--build-arg",
        f"PIP_INDEX_URL={os.environ.get('PIP_INDEX_URL', '')}",
    ]
    return [*options, "--volume", f"{bundle.parent}:{bundle.parent}:ro"] if trusted else options


def _buildah(verb: str, *arguments: str) -> str:
    """Runs buildah on a storage of our own, so that the machine's is left alone."""
    storage, policy = _cache() / "storage.conf", _cache() / "policy.json"
    _keep(storage, f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE}/graph"\nrunroot = "{CACHE}/run"\n')
    _keep(policy, POLICY)
    trusting = ["--signature-policy", str(policy)] if verb in {"bud", "from", "push", "pull"} else []
    env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "TMPDIR": str(_cache())}
    return _run("buildah", verb, *trusting, *arguments, env=env)


def _keep(path: Path, text: str) -> None:
    """Have this text there, by one rename: another buildah may be reading it."""
    if not path.exists() or path.read_text() != text:
        with tempfile.TemporaryDirectory(dir=path.parent) as fresh:
            Path(fresh, path.name).write_text(text)
            Path(fresh, path.name).rename(path)


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    """Output of a command; its errors go to our own."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "modelserver", "product", "context"])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--push", metavar="HOST:PORT")
    parser.add_argument("--tag", default="dev")
    args = parser.parse_args()
    if args.what == "context":
        write_context(args.directory or parser.error("context needs a directory"))
        return
    started = time.monotonic()
    build = {"base": base_image, "modelserver": modelserver_image, "product": product_image}[args.what]
    image = build()
    layers = " + ".join(f"{size / 1e6:.1f}" for size in image.layer_bytes())
    print(f"{image.local}: {image.compressed_bytes() / 1e6:.1f} MB compressed ({layers})", end="")
    print(f", {time.monotonic() - started:.1f} s")
    if args.push:
        print(f"pushed {image.name}:{args.tag}", image.push(Registry(args.push), tag=args.tag))


if __name__ == "__main__":
    main()
