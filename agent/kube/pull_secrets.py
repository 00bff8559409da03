"""The pull secrets of workloads, read only where `prewarm grant` gave leave, each time anew, and never shown or kept."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from agent.core.errors import Permanent, Transient
from agent.core.names import OBJECT_NAME
from agent.core.refs import ImageRef
from agent.kube.api import KubeApi, Resource
from agent.kube.errors import Forbidden

log = structlog.get_logger(__name__)

Json = Mapping[str, Any]
Auths = Mapping[str, object]  # `auths` of a Docker config file: by registry, with or without a path

_MOST = 8  # users of one image, and secrets of one user, that are asked about


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PullFor:
    """Who pulls an image: a service account, with the secrets that the pod template names by itself, if any."""

    namespace: str
    service_account: str = "default"
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PullSecretView:
    """The credentials of one Secret; none where it is of another type or malformed."""

    auths: Auths


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountView:
    """What a service account adds to its pods that name no secrets of their own."""

    pull_secrets: tuple[str, ...] = ()


def parse_service_account(item: Json) -> ServiceAccountView:
    """Parse a ServiceAccount."""
    return ServiceAccountView(pull_secrets=secret_names(item))


def secret_names(holder: Json) -> tuple[str, ...]:
    """Return the names in `imagePullSecrets` of a service account or a pod spec, those that can be names."""
    found = holder.get("imagePullSecrets")
    names = [each.get("name") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return tuple(n for n in names if isinstance(n, str) and OBJECT_NAME.fullmatch(n))[:_MOST]


def parse_pull_secret(item: Json) -> PullSecretView:
    """Parse a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg."""
    data = item.get("data")
    try:
        whole = json.loads(base64.b64decode(data[".dockerconfigjson"])) if ".dockerconfigjson" in data else None  # type: ignore[index,operator]
        found = whole["auths"] if whole is not None else json.loads(base64.b64decode(data[".dockercfg"]))  # type: ignore[index]
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        found = None
    return PullSecretView(auths=found if isinstance(found, dict) else {})


SECRETS: Resource[PullSecretView] = Resource(group="api/v1", plural="secrets", parse=parse_pull_secret)
SERVICE_ACCOUNTS: Resource[ServiceAccountView] = Resource(
    group="api/v1", plural="serviceaccounts", parse=parse_service_account
)


class PullSecrets:
    """Reads what the users of an image may show to its registry.

    Args:
        api: the API server, as whoever is to be granted.
        users: who pulls an image.
    """

    def __init__(self, api: KubeApi, users: Callable[[ImageRef], Iterable[PullFor]]) -> None:
        self._api = api
        self._users = users
        self._told: set[str] = set()

    async def auths(self, ref: ImageRef) -> Sequence[Auths]:
        """Return the credentials of each of its users' secrets; nothing where nothing is granted, or the API server is away."""
        found: list[Auths] = []
        for user in islice(sorted(set(self._users(ref))), _MOST):
            try:
                found += await self._of(user)
            except Forbidden:
                self._tell(user)
            except (Permanent, Transient) as error:
                log.debug("pull secrets cannot be read", namespace=user.namespace, error=str(error))
        return found

    async def _of(self, user: PullFor) -> list[Auths]:
        names = user.secrets
        if not names and OBJECT_NAME.fullmatch(user.service_account):
            account = await self._api.get(SERVICE_ACCOUNTS, user.service_account, namespace=user.namespace)
            names = account.pull_secrets
        wanted = [name for name in names if OBJECT_NAME.fullmatch(name)]
        return [(await self._api.get(SECRETS, name, namespace=user.namespace)).auths for name in wanted]

    def _tell(self, user: PullFor) -> None:
        """Say once for each namespace that secrets which a pod template names are not granted."""
        if user.secrets and user.namespace not in self._told:
            self._told.add(user.namespace)
            log.warning(
                "pull secrets are not granted", namespace=user.namespace, cure=f"prewarm grant {user.namespace}"
            )
