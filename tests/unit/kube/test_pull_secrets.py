"""Pull secrets as the API server gives them, and as nobody should."""

from __future__ import annotations

import base64
import json

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_image_ref
from agent.kube.errors import Away, Forbidden
from agent.kube.pull_secrets import (
    PullFor,
    PullSecrets,
    PullSecretView,
    ServiceAccountView,
    parse_pull_secret,
    parse_service_account,
    secret_names,
)

AUTHS = {"registry.test": {"auth": "eDp5"}}
REF = parse_image_ref("registry.test/a:1")


def packed(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


@pytest.mark.parametrize(
    ("data", "auths"),
    [
        ({".dockerconfigjson": packed({"auths": AUTHS})}, AUTHS),
        ({".dockercfg": packed(AUTHS)}, AUTHS),
        ({".dockerconfigjson": packed({"auths": []})}, {}),
        ({".dockerconfigjson": packed([])}, {}),
        ({".dockerconfigjson": "%%"}, {}),
        ({".dockerconfigjson": 5}, {}),
        ({"password": "x"}, {}),
        (None, {}),
    ],
)
def test_a_secret_of_another_kind_is_as_good_as_none(data: object, auths: object) -> None:
    view = parse_pull_secret({"data": data})
    assert view.auths == auths
    assert "registry.test" not in repr(view)


def test_only_what_can_be_a_name_is_asked_for() -> None:
    names = [{"name": "good.one"}, {"name": "../../../nodes"}, {"name": ""}, {"name": 5}, {}, "x"]
    assert secret_names({"imagePullSecrets": names}) == ("good.one",)
    assert secret_names({"imagePullSecrets": "x"}) == ()


class Granted:
    """An API server that gives what is in `there` and knows of no other rights."""

    def __init__(self, there: dict[str, object]) -> None:
        self._there = there
        self.asked: list[str] = []

    async def get(self, resource: object, name: str, *, namespace: str) -> object:
        path = f"{namespace}/{resource.plural}/{name}"  # type: ignore[attr-defined]
        self.asked.append(path)
        found = self._there.get(path, Forbidden(path))
        if isinstance(found, Exception):
            raise found
        return found


def secrets_of(api: Granted, *users: PullFor) -> PullSecrets:
    return PullSecrets(api, lambda ref: users)  # type: ignore[arg-type]


async def test_the_secrets_of_the_template_go_before_those_of_its_service_account() -> None:
    secret = PullSecretView(auths=AUTHS)
    account = parse_service_account({"imagePullSecrets": [{"name": "b"}]})
    api = Granted({"team/secrets/a": secret, "team/secrets/b": secret, "team/serviceaccounts/robot": account})
    own = PullFor(namespace="team", service_account="robot", secrets=("a",))
    assert await secrets_of(api, own).auths(REF) == [AUTHS]
    assert await secrets_of(api, PullFor(namespace="team", service_account="robot")).auths(REF) == [AUTHS]
    assert api.asked == ["team/secrets/a", "team/serviceaccounts/robot", "team/secrets/b"]


@pytest.mark.parametrize("error", [Forbidden("no"), Permanent("gone"), Away("away")])
async def test_what_cannot_be_read_of_one_user_keeps_nothing_from_another(error: Exception) -> None:
    api = Granted({"a/secrets/x": error, "b/secrets/x": PullSecretView(auths=AUTHS)})
    users = [PullFor(namespace=namespace, secrets=("x",)) for namespace in ("a", "b")]
    assert await secrets_of(api, *users).auths(REF) == [AUTHS]


async def test_a_service_account_without_secrets_has_none() -> None:
    api = Granted({"team/serviceaccounts/default": ServiceAccountView()})
    assert await secrets_of(api, PullFor(namespace="team")).auths(REF) == []
    assert await secrets_of(api, PullFor(namespace="team", service_account="../x")).auths(REF) == []
