"""Settings: one value, three spellings (YAML key, `PREWARM_…` variable, `--flag`), parsed once, all mistakes told at once.

Flags win over variables, variables over the file (`--config FILE` or `PREWARM_CONFIG`). docs/reference.md has the table of
SETTINGS, the README that of FIRST_SETTINGS; both are checked. AWS credentials, region and endpoint are not ours: they are found as every AWS SDK finds them (`AWS_…`).
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from agent.core.documents import load_document
from agent.core.errors import Invalid, cut
from agent.core.sources import SourceRule, parse_sources
from agent.core.units import parse_duration, parse_size

HISTORY_KINDS = ("vllm", "triton", "knative", "kserve", "istio")  # what is known to tell of an endpoint's requests


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= 366 * 86400:
            raise Invalid(f"{cut(value, 60)!r} is not between 0 and 366 days of seconds")
        return float(value)
    return parse_duration(str(value)).total_seconds()


def _duration(value: object) -> timedelta:
    return timedelta(seconds=_seconds(value))


def _whole(value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Invalid(f"{cut(text, 60)!r} is not a whole number")
    return int(text)


def _share(value: object) -> float:
    text = str(value)
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise Invalid(f"{cut(text, 60)!r} is not a share: write 0.8 or 80%") from error
    if not 0 <= share <= 1:
        raise Invalid(f"{cut(text, 60)!r} is not between 0 and 1")
    return share


def _watermark(value: object) -> float | None:
    return None if value == "auto" else _share(value)


def _flag(value: object) -> bool:
    text = str(value).lower()
    if text not in ("true", "false", "on", "off", "1", "0"):
        raise Invalid(f"{cut(text, 60)!r} is neither on nor off")
    return text in ("true", "on", "1")


def zone_name(value: object) -> str:
    """Check an IANA zone name.

    Raises:
        Invalid: quoting it.
    """
    try:
        ZoneInfo(str(value))
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise Invalid(f"{cut(value, 60)!r} is no IANA time zone: write it like Europe/Paris") from error
    return str(value)


def _path(value: object) -> Path | None:
    return Path(str(value)) if str(value) else None


def _size(value: object) -> int:
    return parse_size(str(value))


def _budget(value: object) -> int | None:
    return None if value == "auto" else parse_size(str(value))


def server_url(value: object) -> str:
    """Check a server's address; its text is not quoted where it carries a password."""
    text = str(value).rstrip("/")
    if not text:
        return ""
    from yarl import URL

    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
        (URL(text).raw_host or "").encode("idna")  # as it will be looked up: labels of 1 to 63 characters
    except ValueError as error:
        raise Invalid("it is no URL: write it like http://prometheus.monitoring:9090") from error
    if "@" in parts.netloc:
        raise Invalid(
            "it carries a user or password, which would be shown: put a token into a file (prometheus_token_file)"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise Invalid(f"{cut(text, 120)!r} is no address of a server: write it like http://prometheus.monitoring:9090")
    return text


def _queries(value: object) -> Mapping[str, str]:
    if isinstance(value, Mapping):
        pairs = [(str(kind), str(query)) for kind, query in value.items()]
    else:
        lines = [line for line in str(value).splitlines() if line.strip()]
        pairs = [(kind, query) for kind, _, query in (line.partition("=") for line in lines)]
    found = {kind.strip(): query.strip() for kind, query in pairs}
    for kind, query in found.items():
        if kind not in HISTORY_KINDS or not query:
            raise Invalid(f"{cut(kind, 60)!r}: write KIND=PROMQL, a kind being one of {', '.join(HISTORY_KINDS)}")
    return found


def _choice(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if isinstance(value, bool):
            value = "on" if value else "off"  # as YAML reads these words
        if value not in words:
            raise Invalid(f"{cut(value, 60)!r} is not one of {', '.join(words)}")
        return str(value)

    return parse


def setting(default: object, parse: Callable[[object], object], text: str, *, of: str = "agent") -> Any:
    """Declare one setting: its default as a person writes it, its parser, its help text and which process reads it."""
    return field(
        default_factory=lambda: parse(default), metadata={"parse": parse, "help": text, "default": default, "of": of}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of agent and planner. Durations ending in `_seconds` are floats in seconds; sizes are bytes."""

    log_level: str = setting(
        "info", _choice("debug", "info", "warning", "error"), "least severity that is logged", of="both"
    )
    log_format: str = setting("text", _choice("text", "json"), "one event a line, as key=value or JSON", of="both")
    kubeconfig: str = setting("", str, "kubeconfig file; empty: in-cluster, else the default file", of="both")
    http_address: str = setting("0.0.0.0:9808", str, "where /metrics, /livez and /readyz are served", of="both")
    sources: tuple[SourceRule, ...] = setting(
        "", parse_sources, "NAMESPACE=s3://bucket/prefix/ pairs: who may name which weights; default deny", of="both"
    )

    node_name: str = setting("", str, "the Node this agent runs on (NODE_NAME in the DaemonSet)")
    plan: str = setting("", str, "run without Kubernetes on this plan file (YAML, the spec of a NodeWarmup)")
    root: Path = setting("/var/lib/prewarm", lambda v: Path(str(v)), "store, staging, views, refs and last assignment")
    run_dir: Path = setting("/run/prewarm", lambda v: Path(str(v)), "where agent.sock and admin.sock are made")
    containerd: str = setting("/run/containerd/containerd.sock", str, "containerd's socket; `none` warms no images")
    snapshotter: str = setting("overlayfs", str, "the snapshotter the runtime unpacks into")
    registry_config: Path = setting(
        "/etc/prewarm/registry/config.json",
        lambda v: Path(str(v)),
        "Docker config file with credentials of registries; none there: everybody's",
        of="both",
    )
    credential_provider_config: Path | None = setting(
        "", _path, "CredentialProviderConfig, as the kubelet's --image-credential-provider-config; empty: no plugins"
    )
    credential_provider_bin: Path = setting(
        "/etc/prewarm/credential-providers", lambda v: Path(str(v)), "where its plugins are"
    )
    max_pulls: int = setting(2, _whole, "image pulls at a time")
    pin_budget: int | None = setting(
        "auto", _budget, "most bytes of images kept from the kubelet's garbage collection; auto: half of their disk"
    )
    image_watermark: float = setting(
        "0.84", _share, "share of containerd's file system that pulls ahead of a window may fill it to"
    )
    connections: int = setting(8, _whole, "S3 connections of this node")
    bandwidth: int = setting("0", _size, "bytes per second for background downloads; 0: no cap")
    memory_budget: int | None = setting(
        "auto", _budget, "most memory that weights are read into; auto: what pods have not requested (docs/memory.md)"
    )
    head_start: bool = setting(
        "on", _flag, "read the weights of a pod that starts into page cache at once; off for loaders that bypass it"
    )
    high_watermark: float | None = setting(
        "auto",
        _watermark,
        "share of the store's file system that models may fill it to; auto: 0.75 where kubelet or containerd share it, else 0.95",
    )
    scrub: int = setting("5MB", _size, "bytes per second at which committed models are read back and checked; 0: never")
    warm_ahead: timedelta = setting("30m", _duration, "start this long before the latest safe start of a window")
    early: timedelta = setting(
        "6h",
        _duration,
        "spare capacity fetches models up to this long before their start, spread over the fleet; 0: never",
    )
    proof_interval_seconds: float = setting(
        "15s", _seconds, "how often everything claimed is proved again; at most 25s"
    )
    gpus: str = setting("auto", str, "GPUs this node must have: a number, or auto (those on the PCI bus)")
    gpu_poll_seconds: float = setting("5s", _seconds, "how often the GPUs are asked")
    gpu_timeout_seconds: float = setting(
        "10s", _seconds, "one answer of NVML may take this long before it counts as hung"
    )
    gpu_quorum: str = setting(
        "all", str, "while this many GPUs are healthy (all, or a number) sick ones degrade the node, and no more"
    )
    gpu_test: bool = setting(
        "on", _flag, "run the active test under the start-up taint and before a GPU counts as recovered"
    )
    nvidia_libraries: str = setting("", str, "further directories of the driver's libraries, `:` between them")
    kernel_log: Path = setting("/dev/kmsg", lambda v: Path(str(v)), "where Xids are read from, since the boot")
    pci_devices: Path = setting("/sys/bus/pci/devices", lambda v: Path(str(v)), "PCI devices in sysfs")
    boot_id_file: Path = setting(
        "/proc/sys/kernel/random/boot_id", lambda v: Path(str(v)), "where the kernel tells its boot id"
    )
    lift_taint: str = setting(
        "gpu",
        _choice("gpu", "windows", "off"),
        "lift prewarm.dev/not-ready when GPUs are healthy, when due windows are warm too, or never",
    )
    goodbye_seconds: float = setting("5s", _seconds, "time to say goodbye in at shutdown", of="both")

    namespace: str = setting("prewarm", str, "namespace of prewarm's own objects", of="planner")
    timezone: str = setting("UTC", zone_name, "zone of schedules that name none", of="planner")
    registries: Path = setting(
        "/etc/prewarm/certs.d",
        lambda v: Path(str(v)),
        "hosts.toml directory, as containerd's config_path",
        of="planner",
    )
    resolve_seconds: float = setting(
        "5m", _seconds, "how often tags and model versions are resolved again outside windows", of="planner"
    )
    grace_seconds: float = setting("20s", _seconds, "an agent not Ready for this long loses its claims", of="planner")
    brake: float = setting(
        "0.3",
        _share,
        "largest share of the fleet (always three nodes) whose claims the planner withdraws in a minute by itself",
        of="planner",
    )
    prometheus_url: str = setting(
        "",
        server_url,
        "where endpoints' requests are read from; empty: the planner watches replicas only",
        of="planner",
    )
    prometheus_token_file: Path | None = setting(
        "", _path, "file with a bearer token for Prometheus; read for each question", of="planner"
    )
    history_queries: Mapping[str, str] = setting(
        "", _queries, "KIND=PROMQL lines in place of the built-in queries (docs/history.md)", of="planner"
    )
    history_seconds: float = setting("1h", _seconds, "how often histories are written to ConfigMaps", of="planner")
    keep_nodes: int = setting(
        20, _whole, "most nodes of due windows that autoscalers are asked to leave alone; 0: none", of="planner"
    )
    provision_nodes: int = setting(
        0,
        _whole,
        "most nodes at a time that placeholder pods ask for and hold; 0: none (docs/workloads.md)",
        of="planner",
    )
    provision_lead: timedelta = setting(
        "15m", _duration, "how long a node takes to come, until that has been measured", of="planner"
    )
    provision_image: str = setting("registry.k8s.io/pause:3.10", str, "what placeholder pods run", of="planner")
    provision_namespace: str = setting(
        "prewarm-placeholders", str, "where placeholder pods are (deploy/provision)", of="planner"
    )
    predict: str = setting(
        "shadow",
        _choice("off", "shadow", "on"),
        "whether predicted windows count where no annotation says: off, shadow (only measured), on",
        of="planner",
    )
    predict_budget: float = setting(
        "0.2", _share, "share of idle endpoint-time that predicted windows may keep warm", of="planner"
    )
    leader_elect: bool = setting("true", _flag, "elect one leader among the planner's replicas", of="planner")


SETTINGS: tuple[Field[Any], ...] = fields(Settings)
FIRST_SETTINGS = (
    "sources", "http_address", "plan", "root", "containerd", "connections", "bandwidth", "high_watermark", "warm_ahead", "gpus",
    "lift_taint", "timezone", "registries", "brake", "prometheus_url",
)  # fmt: skip


def add_flags(parser: ArgumentParser, of: str) -> None:
    """Add `--config` and a `--flag` for each setting of `agent` or `planner` to a parser."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings (PREWARM_CONFIG)")
    for each in SETTINGS:
        if each.metadata["of"] in (of, "both"):
            told = f"{each.metadata['help']} (default: {each.metadata['default'] or 'none'})".replace("%", "%%")
            parser.add_argument(f"--{each.name.replace('_', '-')}", dest=each.name, metavar="VALUE", help=told)


def load_settings(flags: Namespace | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from flags, `PREWARM_…` variables and the YAML file.

    Raises:
        Invalid: one message listing every mistake of all three.
    """
    given = {k: v for k, v in vars(flags or Namespace()).items() if v is not None}
    env = os.environ if environ is None else environ
    path = given.get("config") or env.get("PREWARM_CONFIG", "")
    mistakes: list[str] = []
    written = _read_file(str(path), mistakes) if path else {}
    values: dict[str, Any] = {}
    for each in SETTINGS:
        variable = f"PREWARM_{each.name.upper()}"
        for where, holder, key in (
            (f"--{each.name.replace('_', '-')}", given, each.name),
            (variable, env, variable),
            (f"{path}: {each.name}", written, each.name),
        ):
            if key in holder:
                try:
                    values[each.name] = each.metadata["parse"](holder[key])
                except Invalid as error:
                    mistakes.append(f"{where}: {error}")
                break
    _check(values, mistakes)
    if mistakes:
        raise Invalid("bad settings:\n  " + "\n  ".join(mistakes))
    return Settings(**values)


def _read_file(path: str, mistakes: list[str]) -> Mapping[str, object]:
    try:
        content = load_document(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, Invalid) as error:
        mistakes.append(f"{path}: {cut(error)}")
        return {}
    if not isinstance(content, Mapping):
        mistakes.append(f"{path}: expected a mapping of settings")
        return {}
    known = {each.name for each in SETTINGS}
    mistakes += [f"{path}: unknown setting {cut(k, 60)!r}" for k in content if k not in known]
    return content


def _check(values: Mapping[str, Any], mistakes: list[str]) -> None:
    if not 1 <= values.get("proof_interval_seconds", 15.0) <= 25:
        mistakes.append("proof_interval_seconds must be between 1s and 25s: readiness rests on a proof every 30 s")
    if values.get("resolve_seconds", 300.0) < 10:
        mistakes.append("resolve_seconds must be at least 10s: S3 and registries are asked that often")
    if values.get("connections", 8) < 1 or values.get("max_pulls", 2) < 1:
        mistakes.append("connections and max_pulls must be at least 1")
    if values.get("history_seconds", 3600.0) < 5:
        mistakes.append("history_seconds must be at least 5s: each time the histories of all endpoints go into etcd")
    if not 0.5 <= values.get("gpu_timeout_seconds", 10.0) <= 12:
        mistakes.append(
            "gpu_timeout_seconds must be between 0.5s and 12s: a cycle may take it twice, and readiness rests on 30 s"
        )
    for name, word in (("gpus", "auto"), ("gpu_quorum", "all")):
        value = values.get(name, word)
        if value != word and not (value.isascii() and value.isdigit()):
            mistakes.append(f"{name}: {cut(value, 60)!r} is neither {word} nor a number")
