"""Whose name a pull goes under: a Docker config file first, then the kubelet's credential provider plugins. Never shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.refs import ImageRef
from agent.images.challenge import Credentials, credentials_for
from agent.images.providers import Providers


class Keyring:
    """Credentials by image, looked up anew for each pull: secrets rotate.

    Args:
        auths: a Docker config file; none there is fine.
        provider_config: the kubelet's CredentialProviderConfig, None for no plugins.
        provider_programs: the directory of the plugins.
        clock: says how long an answer of a plugin may be used.
    """

    def __init__(self, auths: Path | None, provider_config: Path | None, provider_programs: Path, clock: Clock) -> None:
        self._auths = auths
        self._providers = Providers(provider_config, provider_programs, clock) if provider_config else None

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> Keyring:
        """Return the one that the settings describe."""
        config, programs = settings.credential_provider_config, settings.credential_provider_bin
        return cls(settings.registry_config, config, programs, clock)

    async def credentials(self, ref: ImageRef) -> Credentials | None:
        """Return the credentials for an image, None to pull it as anybody.

        Raises:
            Permanent: a file with credentials, or the one that names plugins, is malformed.
        """
        found = await asyncio.to_thread(credentials_for, self._auths, ref.host)
        if found is None and self._providers:
            return await self._providers.credentials(ref)
        return found
