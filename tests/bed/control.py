"""The command lines of the control plane: etcd, registry, S3, API server, controller manager, scheduler."""

from __future__ import annotations

from pathlib import Path

from tests.bed import s3
from tests.bed.settings import S3_PORT, Settings

_ETCD = "http://127.0.0.1:2379"
# In the order they are started; each keeps trying until what it needs is there.
SERVICES = ("etcd", "registry", "s3", "apiserver", "kcm", "scheduler")


def command(service: str, work: Path, settings: Settings) -> list[str]:
    """How one of SERVICES is started, to be run in the control plane's network namespace."""
    pki, programs = work / "pki", work / "bin"
    match service:
        case "etcd":
            listen = [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"]
            # A throwaway: nothing is synced to disk.
            quick = ["--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380"]
            return [f"{programs}/etcd", f"--data-dir={work}/etcd", *listen, *quick]
        case "registry":
            return ["docker-registry", "serve", f"{work}/registry.yml"]
        case "s3":
            address = f"{settings.addresses.control}:{S3_PORT}"
            return s3.command(programs / "versitygw", address, work / "s3", work / "log" / "s3-access.log")
        case "apiserver":
            return [f"{programs}/kube-apiserver", *_api_server(pki, settings)]
        case "kcm":
            return [f"{programs}/kube-controller-manager", *_controllers(pki, settings)]
        case "scheduler":
            return [f"{programs}/kube-scheduler", f"--kubeconfig={pki}/scheduler.conf", "--leader-elect=false"]
        case _:
            raise ValueError(f"{service!r} is none of {', '.join(SERVICES)}")


def _api_server(pki: Path, settings: Settings) -> list[str]:
    return [
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={settings.addresses.control}",
        "--secure-port=443",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.key",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",  # else logs and exec look the node's name up in DNS
        "--service-cluster-ip-range=10.96.0.0/16",
    ]


def _controllers(pki: Path, settings: Settings) -> list[str]:
    return [
        f"--kubeconfig={pki}/kcm.conf",
        "--leader-elect=false",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        "--use-service-account-credentials=false",  # true costs 4 s: a token for each controller
        *(["--node-monitor-period=2s", "--node-monitor-grace-period=8s"] if settings.fast_eviction else []),
    ]
