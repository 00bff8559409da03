from __future__ import annotations

from argparse import ArgumentParser, Namespace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.config import SETTINGS, Settings, add_flags, load_settings
from agent.core.errors import Invalid
from agent.core.refs import parse_model_uri
from agent.core.sources import SourceRule, source_allowed, source_refusal


def load(environ: dict[str, str] | None = None, **flags: str) -> Settings:
    return load_settings(Namespace(**flags), environ or {})


def refusal(environ: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(Invalid) as refused:
        load(environ, **flags)
    return str(refused.value)


def test_defaults_need_no_file_and_are_valid() -> None:
    found = load()
    assert found == Settings()
    assert (found.proof_interval_seconds, found.high_watermark, found.warm_ahead) == (15.0, None, timedelta(minutes=30))
    assert found.sources == ()


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("connections: 1\nmax_pulls: 1\nlog_level: error\n")
    environ = {"PREWARM_CONFIG": str(file), "PREWARM_CONNECTIONS": "2", "PREWARM_MAX_PULLS": "2"}
    found = load(environ, connections="3")
    assert (found.connections, found.max_pulls, found.log_level) == (3, 2, "error")


def test_every_setting_has_a_flag_for_its_process(tmp_path: Path) -> None:
    parser = ArgumentParser()
    add_flags(parser, "agent")
    chosen = parser.parse_args(["--proof-interval-seconds", "10s", "--root", str(tmp_path), "--log-format", "json"])
    found = load_settings(chosen, {})
    assert (found.proof_interval_seconds, found.root, found.log_format) == (10.0, tmp_path, "json")
    flags = parser.format_help()
    for each in SETTINGS:
        assert (f"--{each.name.replace('_', '-')} " in flags) == (each.metadata["of"] in ("agent", "both"))


def test_all_mistakes_of_all_spellings_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("brake: 2\ntimezoone: UTC\n")
    told = refusal({"PREWARM_CONFIG": str(file), "PREWARM_TIMEZONE": "Mars"}, bandwidth="fast", gpus="some")
    for part in (
        "--bandwidth: 'fast' is not a size",
        "PREWARM_TIMEZONE: 'Mars' is no IANA time zone",
        f"{file}: brake: '2' is not between 0 and 1",
        f"{file}: unknown setting 'timezoone'",
        "gpus: 'some' is neither auto nor a number",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("high_watermark", "80%", 0.8),
        ("high_watermark", "0.8", 0.8),
        ("bandwidth", "1GiB", 1 << 30),
        ("goodbye_seconds", "1m", 60.0),
        ("leader_elect", "off", False),
        ("timezone", "Europe/Berlin", "Europe/Berlin"),
        ("gpus", "8", "8"),
        ("warm_ahead", "0s", timedelta()),
    ],
)
def test_good_values_are_read(name: str, text: str, value: object) -> None:
    assert getattr(load(None, **{name: text}), name) == value
    assert getattr(load({f"PREWARM_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("high_watermark", "80"),
        ("high_watermark", "nan"),
        ("high_watermark", "much"),
        ("timezone", "No/Where"),
        ("timezone", "Europe"),
        ("timezone", ""),
        ("proof_interval_seconds", "26s"),
        ("proof_interval_seconds", "0s"),
        ("connections", "0"),
        ("connections", "9" * 5000),
        ("connections", "-1"),
        ("max_pulls", "0"),
        ("leader_elect", "maybe"),
        ("log_level", "loud"),
        ("gpu_poll_seconds", "5"),
        ("warm_ahead", "99999999d99999999h"),
        ("sources", "team-a"),
        ("sources", "team-a=s3://models/file.bin"),
        ("resolve_seconds", "0s"),
        ("prometheus_url", "prometheus:9090"),
        ("prometheus_url", "http://[::1"),
        ("prometheus_url", "http://host:port"),
        ("prometheus_url", "http://host/?x=1"),
        ("prometheus_url", "http://prometheus..svc:9090"),
        ("prometheus_url", f"http://{'a' * 64}.svc:9090"),
        ("prometheus_url", "http://ü..svc"),
        ("prometheus_url", "http://host\\svc:9090"),
        ("history_queries", "vlm=up"),
        ("history_queries", "vllm="),
        ("history_seconds", "1s"),
        ("sources", "team-a=s3://models/x/?include=a"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, text: str) -> None:
    told = refusal({f"PREWARM_{name.upper()}": text})
    assert name in told.lower()
    assert len(told) < 600


@pytest.mark.parametrize(
    "written", ["lift_taint: off\npredict: on\nhead_start: off", "lift_taint: 'off'\npredict: 'on'\nhead_start: 'off'"]
)
def test_on_and_off_are_words_in_the_file_too(tmp_path: Path, written: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(written)
    found = load({"PREWARM_CONFIG": str(file)})
    assert (found.lift_taint, found.predict, found.head_start) == ("off", "on", False)


@pytest.mark.parametrize(
    "text", ["goodbye_seconds: .nan", "goodbye_seconds: -1", "goodbye_seconds: true", "warm_ahead: .inf"]
)
def test_numbers_in_the_file_must_be_seconds(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert text.partition(":")[0] in refusal(config=str(file))


def test_plain_numbers_in_the_file_are_seconds(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("goodbye_seconds: 2.5\nwarm_ahead: 60\nconnections: 4\ngpus: 8\n")
    found = load(config=str(file))
    assert (found.goodbye_seconds, found.warm_ahead, found.connections, found.gpus) == (
        2.5,
        timedelta(minutes=1),
        4,
        "8",
    )


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\xff", b"a: [", b"a: 2026-99-99", b"- a\n- b", b"!!python/object:os.system {}"]
)
def test_a_file_that_is_no_settings_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    assert str(file) in refusal(config=str(file))


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(config=str(tmp_path / "none"))


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    told = refusal({"PREWARM_PROMETHEUS_URL": "http://me:secret@host:9090"})
    assert "prometheus_token_file" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    "written",
    ["history_queries: {vllm: 'a{b=\"c\"}', istio: d}", 'history_queries: |\n  vllm=a{b="c"}\n\n  istio = d\n'],
)
def test_queries_may_be_written_as_lines_or_mapping(tmp_path: Path, written: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(written)
    assert load(config=str(file)).history_queries == {"vllm": 'a{b="c"}', "istio": "d"}


SOURCES = (
    SourceRule(namespace="team-a", bucket="models", prefix="a/"),
    SourceRule(namespace="team-a", bucket="shared", prefix=""),
    SourceRule(namespace="*", bucket="public", prefix="open/"),
)


@pytest.mark.parametrize(
    "written",
    [
        "sources: team-a=s3://models/a/, team-a=s3://shared, =s3://public/open/",
        "sources: |\n  team-a=s3://models/a/\n  team-a=s3://shared/\n  *=s3://public/open/\n",
        "sources: ['team-a=s3://models/a/', 'team-a=s3://shared', '*=s3://public/open/']",
        "sources: {team-a: [s3://models/a/, s3://shared], '*': s3://public/open/}",
    ],
)
def test_sources_may_be_written_as_text_list_or_mapping(tmp_path: Path, written: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(written)
    assert load(config=str(file)).sources == SOURCES


@pytest.mark.parametrize(
    ("namespace", "uri", "allowed"),
    [
        ("team-a", "s3://models/a/llama/", True),
        ("team-a", "s3://models/a/x.bin", True),
        ("team-a", "s3://models/a", False),
        ("team-a", "s3://models/ab/", False),
        ("team-a", "s3://models/", False),
        ("team-a", "s3://shared/any", True),
        ("team-b", "s3://models/a/llama/", False),
        ("team-b", "s3://public/open/x", True),
        ("team-b", "s3://public/closed/x", False),
    ],
)
def test_only_named_prefixes_are_allowed(namespace: str, uri: str, allowed: bool) -> None:
    assert source_allowed(SOURCES, namespace, parse_model_uri(uri)) is allowed
    assert not source_allowed((), namespace, parse_model_uri(uri))


@pytest.mark.parametrize(
    "uri", ["s3://models/x/llama/", "s3://models/x.bin", "s3://models/x/y.bin?versionId=1", "s3://models"]
)
def test_the_line_a_refusal_quotes_allows_what_was_refused(uri: str) -> None:
    refused = parse_model_uri(uri)
    line = source_refusal("team-c", refused).partition("sources: ")[2]
    assert source_allowed(load(sources=line).sources, "team-c", refused)
    assert not source_allowed(load(sources=line).sources, "team-d", refused)
