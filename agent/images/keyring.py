"""Whose name a pull goes under: a Docker config file first, then pull secrets, then the kubelet's credential provider plugins.

Never shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.refs import ImageRef
from agent.images.challenge import Credentials, credentials_among, credentials_for
from agent.images.providers import Providers


class PullSecrets(Protocol):
    """Where the pull secrets of workloads come from."""

    async def auths(self, ref: ImageRef) -> Sequence[Mapping[str, object]]:
        """Return the `auths` tables of those that may be shown for an image, the first to be tried first."""
        ...


class Keyring:
    """Credentials by image, looked up anew for each pull: secrets rotate.

    Args:
        auths: a Docker config file; none there is fine.
        provider_config: the kubelet's CredentialProviderConfig, None for no plugins.
        provider_programs: the directory of the plugins.
        clock: says how long an answer of a plugin may be used.
        secrets: the pull secrets of the endpoints that want an image, None where there are none to be read.
    """

    def __init__(
        self,
        auths: Path | None,
        provider_config: Path | None,
        provider_programs: Path,
        clock: Clock,
        secrets: PullSecrets | None = None,
    ) -> None:
        self._auths = auths
        self._secrets = secrets
        self._providers = Providers(provider_config, provider_programs, clock) if provider_config else None

    @classmethod
    def of(cls, settings: Settings, clock: Clock, secrets: PullSecrets | None = None) -> Keyring:
        """Return the one that the settings describe."""
        config, programs = settings.credential_provider_config, settings.credential_provider_bin
        return cls(settings.registry_config, config, programs, clock, secrets)

    async def credentials(self, ref: ImageRef) -> Sequence[Credentials]:
        """Return the credentials to try for an image, in order; none to pull it as anybody.

        Raises:
            Permanent: a file with credentials, or the one that names plugins, is malformed.
        """
        own = await asyncio.to_thread(credentials_for, self._auths, ref.host)
        found = [own] if own else []
        granted = await self._secrets.auths(ref) if self._secrets else ()
        found += [credentials for auths in granted if (credentials := credentials_among(auths, ref))]
        if self._providers and (told := await self._providers.credentials(ref)):
            found.append(told)
        return found
