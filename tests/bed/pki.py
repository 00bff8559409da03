"""One certificate authority a bed, and a certificate and kubeconfig for each identity."""

from __future__ import annotations

from pathlib import Path

from tests.bed import config
from tests.bed.process import run
from tests.bed.settings import SERVICE_IP, Settings

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
_IDENTITIES = {
    "apiserver": "/CN=kube-apiserver",
    "admin": "/O=system:masters/CN=admin",
    "kcm": "/O=system:masters/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}


def make(pki: Path, name: str, settings: Settings) -> None:
    """Fill the directory: NAME.crt, NAME.key and NAME.conf for every component and node, valid for 30 days."""
    authority = ["-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", f"/CN={name}"]
    run(["openssl", "req", "-x509", *_NEW_KEY, *authority], directory=pki)
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"], directory=pki)
    nodes = {node: f"/O=system:nodes/CN=system:node:{node}" for node in settings.names}
    for identity, subject in (_IDENTITIES | nodes).items():
        _issue(pki, identity, subject, settings)
        (pki / f"{identity}.conf").write_text(config.kubeconfig(pki, identity, settings.addresses))


def _issue(pki: Path, identity: str, subject: str, settings: Settings) -> None:
    addresses = settings.addresses
    own = [addresses.node(identity)] if identity in settings.names else [addresses.control, SERVICE_IP, "127.0.0.1"]
    names = [f"IP:{address}" for address in own]
    names += [f"DNS:{host}" for host in ("localhost", "kubernetes.default.svc", identity)]
    (pki / f"{identity}.ext").write_text(f"subjectAltName={','.join(names)}\n")
    request = ["-keyout", f"{identity}.key", "-out", f"{identity}.csr", "-subj", subject]
    run(["openssl", "req", *_NEW_KEY, *request], directory=pki)
    signed = ["-in", f"{identity}.csr", "-out", f"{identity}.crt", "-extfile", f"{identity}.ext", "-days", "30"]
    run(["openssl", "x509", "-req", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", *signed], directory=pki)
