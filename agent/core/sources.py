"""Which namespaces may use which weights: the setting `sources`. No rule, no access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.core.errors import Invalid, cut
from agent.core.refs import ModelUri, parse_model_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRule:
    """Namespaces matching `namespace` (a name, or `*`) may name models below `bucket/prefix`."""

    namespace: str
    bucket: str
    prefix: str

    def allows(self, namespace: str, uri: ModelUri) -> bool:
        """Say whether this rule lets `namespace` use `uri`."""
        return self.namespace in ("*", namespace) and uri.bucket == self.bucket and uri.key.startswith(self.prefix)


def source_allowed(rules: Sequence[SourceRule], namespace: str, uri: ModelUri) -> bool:
    """Say whether any rule allows it; no rule, no access."""
    return any(rule.allows(namespace, uri) for rule in rules)


def source_refusal(namespace: str, uri: ModelUri) -> str:
    """Return the sentence for a refused source: it quotes the line an operator would add."""
    prefix = uri.key if uri.is_prefix else uri.key.rpartition("/")[0] + "/"
    line = f"{namespace}=s3://{uri.bucket}/{prefix.lstrip('/')}"
    return (
        f"namespace {namespace} may not use {cut(uri, 200)}: an operator can allow it with the setting sources: {line}"
    )


def parse_sources(value: object) -> tuple[SourceRule, ...]:
    """Read NAMESPACE=s3://bucket/prefix/ pairs from lines, a list of them, or a mapping of namespaces to one or more URIs.

    Raises:
        Invalid: a source that is no bucket or prefix.
    """
    if isinstance(value, Mapping):
        pairs = [(str(n), u) for n, us in value.items() for u in (us if isinstance(us, list) else [us])]
    else:
        lines = value if isinstance(value, list) else str(value).replace("\n", ",").split(",")
        pairs = [
            (n.strip(), u.strip()) for n, _, u in (str(line).partition("=") for line in lines if str(line).strip())
        ]
    rules = []
    for namespace, text in pairs:
        uri = parse_model_uri(str(text))
        if not uri.is_prefix or uri.include or uri.exclude:
            raise Invalid(f"source {cut(text, 200)!r} must be a bucket or a prefix ending in /")
        rules.append(SourceRule(namespace=namespace or "*", bucket=uri.bucket, prefix=uri.key))
    return tuple(rules)
