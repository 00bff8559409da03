"""`prewarm grant NAMESPACE`: print the rights that let prewarm pull a namespace's private images with its own pull secrets.

The Role names single Secrets and service accounts, those that the namespace's endpoints use; nothing is granted until it is
applied: prewarm grant team-a | kubectl apply -f -
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from agent.cli.declared import annotated_workloads
from agent.core.errors import Invalid
from agent.demand.annotations import read_endpoint
from agent.demand.endpoint import DemandDefaults
from agent.kube.api import KubeApi
from agent.kube.errors import NotFound
from agent.kube.pull_secrets import SERVICE_ACCOUNTS, PullFor

_NAME = "prewarm-pull-secrets"


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "grant",
        help="print the rights that let the pull secrets of a namespace count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("namespace", metavar="NAMESPACE")
    parser.add_argument(
        "--to", default="prewarm", metavar="NAMESPACE", help="where prewarm is installed (default: prewarm)"
    )
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file (default: as kubectl finds it)")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What may be read, by name."""

    accounts: tuple[str, ...]
    secrets: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Print a Role and its binding.

    Raises:
        Invalid: no endpoint of the namespace has a pull secret.
    """
    found = asyncio.run(_look(options.kubeconfig, options.namespace))
    if not found.secrets:
        raise Invalid(
            f"no endpoint of {options.namespace} names imagePullSecrets, nor does its service account: nothing to grant"
        )
    print(yaml.safe_dump_all(rights(options.namespace, options.to, found), sort_keys=False), end="")
    return 0


async def _look(kubeconfig: str, namespace: str) -> Grant:
    """Return what the endpoints of a namespace use, looked up as the person that `kubeconfig` is."""
    async with await KubeApi.connect(kubeconfig) as api:
        users: set[PullFor] = set()
        for workload in await annotated_workloads(api, namespace):
            if read_endpoint(workload, DemandDefaults()).key:
                spec = workload.spec
                users.add(PullFor(namespace=namespace, service_account=spec.service_account, secrets=spec.pull_secrets))
        accounts = {user.service_account: () for user in users if not user.secrets}
        secrets = {name for user in users for name in user.secrets}
        for account in accounts:
            try:
                found = await api.get(SERVICE_ACCOUNTS, account, namespace=namespace)
            except NotFound:
                continue
            secrets.update(found.pull_secrets)
    return Grant(accounts=tuple(sorted(accounts)), secrets=tuple(sorted(secrets)))


def rights(namespace: str, prewarm: str, grant: Grant) -> Iterable[Mapping[str, object]]:
    """Return a Role for exactly these names, and its binding to prewarm's two accounts."""
    meta = {"name": _NAME, "namespace": namespace}
    rules = [_rule("secrets", grant.secrets), *([_rule("serviceaccounts", grant.accounts)] if grant.accounts else [])]
    yield {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules}
    subjects = [
        {"kind": "ServiceAccount", "name": name, "namespace": prewarm} for name in ("prewarm-agent", "prewarm-planner")
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _NAME}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": dict(meta),
        "roleRef": role,
        "subjects": subjects,
    }


def _rule(resource: str, names: tuple[str, ...]) -> dict[str, object]:
    return {"apiGroups": [""], "resources": [resource], "resourceNames": list(names), "verbs": ["get"]}
