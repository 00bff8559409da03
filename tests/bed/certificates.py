"""A private certificate authority, and the identities it vouches for: for servers that speak TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.bed.process import run

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a server proves itself with: PEM files."""

    certificate: Path
    key: Path


class Authority:
    """An authority that keeps its files in a directory; `certificate` is what clients are told to trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        self.certificate = self._directory / "ca.crt"
        files = ["-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=a private authority"]
        run(["openssl", "req", "-x509", *NEW_KEY, *files], directory=self._directory)

    def issue(self, name: str, *subjects: str, days: int = 30) -> Identity:
        """An identity for subjects written `DNS:localhost` or `IP:127.0.0.1`; one of no days has expired at once."""
        (self._directory / f"{name}.ext").write_text(f"subjectAltName={','.join(subjects)}\n")
        request = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"]
        run(["openssl", "req", *NEW_KEY, *request], directory=self._directory)
        signed = ["-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", f"{name}.ext", "-days", str(days)]
        signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        run(["openssl", "x509", "-req", *signer, *signed], directory=self._directory)
        return Identity(certificate=self._directory / f"{name}.crt", key=self._directory / f"{name}.key")
