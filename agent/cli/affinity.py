"""`prewarm affinity`: the stanza that steers an endpoint's pods to nodes that are ready for it. Needs no cluster."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator

import yaml

from agent.core.errors import Invalid
from agent.core.names import LABEL_ENDPOINT_NAME, LABEL_GPU, PREFIX, READY, endpoint_label
from agent.core.refs import EndpointKey, endpoint_key

VIEWS = "/var/lib/prewarm/views"
RUN_DIR = "/run/prewarm"
MODELS = "/models"
ANNOTATION_MODELS = PREFIX + "models"

Json = dict[str, object]


def add_parser(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command to `prewarm`."""
    parser = subparsers.add_parser("affinity", help="print the affinity that steers pods to ready nodes")
    parser.add_argument("endpoint", metavar="NAMESPACE/NAME", help="the endpoint: its namespace and name")
    parser.add_argument("--required", action="store_true", help="stay Pending rather than start cold")
    parser.add_argument("--gpu", action="store_true", help="ask for healthy GPUs too")
    parser.add_argument(
        "--kind", default="deployment", metavar="KIND", help="the workload's kind (default: deployment)"
    )
    parser.add_argument("--workload", metavar="NAME", help="the workload's name, if it is not the endpoint's")
    parser.add_argument("--patch", action="store_true", help="print a patch for `kubectl patch --patch-file`")
    parser.add_argument(
        "--wait", action="store_true", help="print the `prewarm wait` init container and its volumes too"
    )
    parser.add_argument("--image", metavar="IMAGE", help="prewarm's image, for --wait")
    parser.add_argument("--container", metavar="NAME", help="the serving container (default: the workload's name)")
    parser.add_argument("--json", action="store_true", help="print JSON, without the comments")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print the stanza; 2 for arguments that make none."""
    try:
        key = _key(args.endpoint)
        if args.wait and not args.image:
            raise Invalid("--wait needs --image: the image of prewarm that this cluster runs")
    except Invalid as error:
        print(f"prewarm affinity: {error}", file=sys.stderr)
        return 2
    workload = args.workload or key.name
    spec: Json = {"affinity": affinity(key, required=args.required, gpu=args.gpu)}
    if args.wait:
        spec |= waiting(key, image=args.image, container=args.container or workload)
    shown = _patch(key, spec, label=args.wait) if args.patch else spec
    if args.json:
        print(json.dumps(shown, indent=2))
        return 0
    for line in _comments(key, args, workload):
        print(f"# {line}")
    print(yaml.safe_dump(shown, sort_keys=False), end="")
    return 0


def affinity(key: EndpointKey, *, required: bool = False, gpu: bool = False) -> Json:
    """Return a pod's `affinity`: nodes ready for `key`, preferred with the greatest weight there is, or required.

    Preferred, healthy GPUs count by themselves too, for the hour in which no node is ready; required, both must hold.
    """
    ready = _expression(endpoint_label(key.namespace, key.name), READY)
    healthy = _expression(LABEL_GPU, "healthy")
    if required:
        terms = [{"matchExpressions": [ready, healthy] if gpu else [ready]}]
        return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    weights = [(100, ready), (50, healthy)] if gpu else [(100, ready)]
    preferred = [{"weight": weight, "preference": {"matchExpressions": [e]}} for weight, e in weights]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def waiting(key: EndpointKey, *, image: str, container: str) -> Json:
    """Return what a pod spec needs to wait for its models: init container, volumes, and the serving container's mounts.

    `prewarm wait` links /models/<name> to a version in the endpoint's view, so the view stands at the same path in both.
    """
    view = f"{VIEWS}/{key.namespace}/{key.name}"
    models = {"name": "prewarm-models", "mountPath": MODELS}
    seen = {"name": "prewarm-view", "mountPath": view, "readOnly": True}
    sockets = {"name": "prewarm-run", "mountPath": RUN_DIR, "readOnly": True}
    init = {
        "name": "prewarm-wait",
        "image": image,
        "args": ["wait", "--endpoint", f"{key.namespace}/{key.name}"],
        "env": [
            _from_field("POD_NAME", "metadata.name"),
            _from_field("POD_NAMESPACE", "metadata.namespace"),
            _from_field("POD_UID", "metadata.uid"),
            _from_field("PREWARM_MODELS", f"metadata.annotations['{ANNOTATION_MODELS}']"),
        ],
        # In a pod that must not run as root it would not start with the image's user.
        "securityContext": {
            "runAsUser": 65532,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [models, seen, sockets],  # dict() below: YAML would write the second use as an alias
    }
    return {
        "initContainers": [init],
        "containers": [{"name": container, "volumeMounts": [dict(models), dict(seen)]}],
        "volumes": [
            {"name": "prewarm-models", "emptyDir": {}},
            {"name": "prewarm-view", "hostPath": {"path": view, "type": "DirectoryOrCreate"}},
            {"name": "prewarm-run", "hostPath": {"path": RUN_DIR, "type": "DirectoryOrCreate"}},
        ],
    }


def _key(text: str) -> EndpointKey:
    namespace, slash, name = text.partition("/")
    if not slash:
        raise Invalid(f"{text!r} is not NAMESPACE/NAME")
    return endpoint_key(namespace, name)


def _expression(label: str, value: str) -> Json:
    return {"key": label, "operator": "In", "values": [value]}


def _from_field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _patch(key: EndpointKey, spec: Json, *, label: bool) -> Json:
    metadata: Json = {"metadata": {"labels": {LABEL_ENDPOINT_NAME: key.name}}} if label else {}
    return {"spec": {"template": metadata | {"spec": spec}}}


def _comments(key: EndpointKey, args: Namespace, workload: str) -> Iterator[str]:
    if args.patch:
        yield f"kubectl patch {args.kind} {workload} -n {key.namespace} --patch-file FILE"
        yield "A patch replaces node affinity terms of the same kind that the workload already has."
    else:
        yield f"Under spec.template.spec of {args.kind} {workload} in namespace {key.namespace}."
    if not args.required:
        yield "A PreferNoSchedule taint on a ready node outweighs this preference (TaintToleration weighs 3, NodeAffinity 2)."
    else:
        yield "Pods stay Pending while no node is ready, so also while prewarm is down."
    if args.wait:
        container = args.container or workload
        yield f"The serving container is taken to be called {container}; --container NAME says otherwise."
        yield f"The pod template needs the annotation {ANNOTATION_MODELS} and the label {LABEL_ENDPOINT_NAME}: {key.name}."
