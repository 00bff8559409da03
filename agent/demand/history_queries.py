"""What Prometheus is asked about an endpoint: PromQL for each kind of server. Pure.

A query is evaluated at the end of each slot and tells of the ten minutes before: active where any of its series is above 0,
idle where there is a sample and none is, unknown without a sample. A pod that starts for one request and is scraped after it
shows a counter that never rises, so a series that was not there before counts with its whole value.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from types import MappingProxyType

from agent.demand.endpoint import Endpoint

# A sample says that Prometheus itself was at work in both halves of a slot (it looks five minutes back): then a series that is
# absent was not scraped, as where there is no pod.
HEARTBEAT = "count(up offset 5m) and count(up)"
_POD = 'namespace="$namespace",pod=~"$pods"'


def _counted(metric: str, labels: str) -> str:
    series = f"{metric}{{{labels}}}"
    new = f"(last_over_time({series}[10m]) unless last_over_time({series}[1h] offset 10m))"
    return f"sum({new} or increase({series}[10m]))"


def _level(metric: str, labels: str) -> str:
    return f"sum(max_over_time({metric}{{{labels}}}[10m]))"


def _any(*parts: str) -> str:
    """Return a series for each part: whoever reads them takes the greatest."""
    return " or ".join(f'label_replace({part}, "part", "{n}", "", "")' for n, part in enumerate(parts))


DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "vllm": _any(
            _counted("vllm:request_success_total", _POD),
            _level("vllm:num_requests_running", _POD),
            _level("vllm:num_requests_waiting", _POD),
        ),
        "triton": _counted("nv_inference_request_success", _POD),
        "knative": _any(
            _counted("revision_request_count", 'namespace_name="$namespace",service_name="$service"'),
            _counted("activator_request_count", 'namespace_name="$namespace",service_name="$service"'),
            _counted("kn_serving_invocation_duration_seconds_count", _POD),  # Knative 1.19 and later
        ),
        "kserve": _counted("request_predict_seconds_count", _POD),
        "istio": _counted(
            "istio_requests_total",
            'reporter="destination",destination_workload_namespace="$namespace",destination_workload=~"$workloads"',
        ),
    }
)
KINDS = tuple(DEFAULTS)
# How many of its pods ran at most in a slot, by what Prometheus scrapes of them, else by what kube-state-metrics says.
PODS = (
    f"max_over_time((count(count by (pod) (up{{{_POD}}} == 1)) or "
    f'sum(kube_pod_status_ready{{condition="true",{_POD}}}))[10m:1m])'
)
_SERVERS = ("vllm", "triton", "istio")
_OF_WORKLOAD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"Service": ("knative", *_SERVERS), "InferenceService": ("kserve", "knative", *_SERVERS)}
)
# How the pods of a workload, and the workload that they belong to, are called after it.
_NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "StatefulSet": ("$name-[0-9]+", "$name"),
        "LeaderWorkerSet": ("$name-[0-9]+(-[0-9]+)?", "$name(-[0-9]+)?"),
        "Service": ("$name-[0-9]+-deployment-.+", "$name-[0-9]+-deployment"),
        "InferenceService": ("$name-predictor-.+", "$name-predictor(-.+)?"),
    }
)
_DEPLOYMENT = ("$name-[a-z0-9]+-[a-z0-9]{5}", "$name")


def query_of(endpoint: Endpoint, overrides: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the PromQL that tells of an endpoint's requests: its own, else all that may apply to its kind of workload.

    `overrides` replace DEFAULTS by kind; in them, as there, `$namespace`, `$name` (the workload's), `$service`, `$pods` and
    `$workloads` (regular expressions) are the endpoint's.
    """
    if endpoint.history:
        return endpoint.history
    kind = endpoint.workload.kind
    templates = [(k, overrides.get(k, DEFAULTS[k])) for k in _OF_WORKLOAD.get(kind, _SERVERS)]
    words = _words(kind, *_of(endpoint))
    return " or ".join(
        f'label_replace({Template(text).safe_substitute(words)}, "kind", "{k}", "", "")' for k, text in templates
    )


def pods_query(endpoint: Endpoint, template: str = PODS) -> str:
    """Return the PromQL that tells how many pods an endpoint needed in a slot; `template` has the words of `query_of`."""
    return Template(template).safe_substitute(_words(endpoint.workload.kind, *_of(endpoint)))


def _of(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.workload.namespace, endpoint.workload.name


def _words(kind: str, namespace: str, name: str) -> Mapping[str, str]:
    pods, workloads = _NAMES.get(kind, _DEPLOYMENT)
    literal = name.replace(
        ".", "[.]"
    )  # the one character of a Kubernetes name that a regular expression takes otherwise
    return {
        "namespace": namespace,
        "name": name,
        "service": f"{name}-predictor" if kind == "InferenceService" else name,
        "pods": pods.replace("$name", literal),
        "workloads": workloads.replace("$name", literal),
    }
