"""How to reach the API server: the pod's service account, a kubeconfig file, or the default kubeconfig.

In a pod only three files and two variables are read, by our own code: importing the kubernetes client for that would
cost every node 20 MB and a third of a second. Kubeconfig files (contexts, exec plugins, OIDC) are its job, imported when
one is used.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent.core.errors import Invalid, Transient, cut

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60.0  # the kubelet renews projected tokens long before they end; client-go reads them as often


class Credentials(Protocol):
    """Where the API server is and what to show it."""

    @property
    def server(self) -> str:
        """Base URL, without a trailing slash."""
        ...

    @property
    def tls(self) -> ssl.SSLContext | None:
        """TLS settings; None for plain HTTP."""
        ...

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """Return the authorization headers; `renew` after they were refused."""
        ...


class ServiceAccount:
    """The pod's own service account, its token read again every minute."""

    def __init__(self, directory: Path, server: str) -> None:
        self.server = server
        self.tls: ssl.SSLContext | None = ssl.create_default_context(cafile=str(directory / "ca.crt"))
        self._token_file = directory / "token"
        self._token = ""
        self._read_at = float("-inf")

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """See `Credentials.headers`.

        Raises:
            Transient: the token file cannot be read.
        """
        if renew or time.monotonic() - self._read_at > _TOKEN_SECONDS:
            try:
                self._token = (await asyncio.to_thread(self._token_file.read_text)).strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Transient(f"cannot read the service account token: {cut(error)}") from error
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"}


class FixedServer:
    """A server without authentication: `kubectl proxy`, tests."""

    def __init__(self, server: str) -> None:
        self.server = server.rstrip("/")
        self.tls: ssl.SSLContext | None = None

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """See `Credentials.headers`."""
        return {}


class KubeconfigCredentials:
    """One context of a kubeconfig, loaded by the kubernetes client; loaded again when the server refuses it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.server = ""
        self.tls: ssl.SSLContext | None = None
        self._authorization: str | None = None

    async def load(self) -> None:
        """Read the file and run what it asks for (exec plugins, token refresh).

        Raises:
            Invalid: the file is missing or malformed.
        """
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.config import ConfigException, load_kube_config
        from yaml import YAMLError

        found = Configuration()
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]  # the client has no types
                config_file=self._path, client_configuration=found, persist_config=False
            )
            self.server = found.host.rstrip("/")
            self.tls = await asyncio.to_thread(_tls, found) if self.server.startswith("https") else None
        except (
            ConfigException,
            YAMLError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:
            raise Invalid(f"cannot use kubeconfig {cut(self._path, 200)}: {cut(error, 200)}") from error
        self._authorization = await found.get_api_key_with_prefix("BearerToken")

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """See `Credentials.headers`.

        Raises:
            Transient: they cannot be loaded again; the file may be in the middle of a change.
        """
        if renew:
            try:
                await self.load()
            except Invalid as error:
                raise Transient(str(error)) from error
        return {"Authorization": self._authorization} if self._authorization else {}


def _tls(found: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=getattr(found, "ssl_ca_cert", None))
    if not getattr(found, "verify_ssl", True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert := getattr(found, "cert_file", None):
        context.load_cert_chain(cert, keyfile=getattr(found, "key_file", None))
    return context


async def find_credentials(
    kubeconfig: str = "", environ: Mapping[str, str] | None = None, account: Path = SERVICE_ACCOUNT
) -> Credentials:
    """Find the API server: the named kubeconfig, else the pod's service account, else `KUBECONFIG` or `~/.kube/config`.

    Raises:
        Invalid: none of them can be used.
    """
    env = os.environ if environ is None else environ
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "")
    if not kubeconfig and host and port and await asyncio.to_thread((account / "token").exists):
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        try:
            return await asyncio.to_thread(ServiceAccount, account, server)
        except OSError as error:
            raise Invalid(f"cannot use the service account in {account}: {error}") from error
    path = kubeconfig or env.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    loaded = KubeconfigCredentials(path)
    await loaded.load()
    return loaded
