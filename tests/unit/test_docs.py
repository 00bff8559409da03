"""README, CONTRIBUTING.md and the pages of docs/ name only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.cli import COMMANDS
from agent.config import FIRST_SETTINGS, SETTINGS
from agent.core import names
from agent.demand.annotations import KEYS
from tools.tables import GPU, metrics_table, pages, reasons_table, settings_table, with_tables

ROOT = Path(__file__).resolve().parents[2]
README, REFERENCE = ROOT / "README.md", ROOT / "docs" / "reference.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPS = ("agent", "tests", "deploy", "docs", "bench", "proto", "tools", "changelog", ".ci")
LABELS = {v for k, v in vars(names).items() if k.startswith(("LABEL_", "ANNOTATION_", "CONDITION_", "TAINT_NOT"))}


def code_words(page: Path) -> set[str]:
    """Everything between backticks, and every word of fenced blocks."""
    text = page.read_text()
    fenced = re.findall(r"```\n(.*?)```", text, re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return set(inline) | {
        word for block in fenced for line in block.splitlines() for word in line.split("#")[0].split()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_path_exists(page: Path) -> None:
    paths = {w.rstrip("/") for w in code_words(page) if w.split("/")[0] in TOPS and re.fullmatch(r"[\w./-]+", w)}
    links = {w for w in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in w}
    missing = {p for p in paths if not (ROOT / p).exists()} | {w for w in links if not (page.parent / w).exists()}
    assert paths | links
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_and_make_target_exists(page: Path) -> None:
    text = page.read_text()
    commands = set(re.findall(r"(?:`|^)prewarm ([a-z]+)", text, re.M))
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M))
    makefile = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert commands <= set(COMMANDS)
    assert targets <= makefile
    for command in COMMANDS:
        assert (ROOT / "agent" / "cli" / f"{command}.py").exists()


def test_the_readme_names_every_command() -> None:
    assert {f"`prewarm {c}`" for c in COMMANDS} <= {f"`{w}`" for w in code_words(README)}


def test_the_annotation_table_is_the_reader_s() -> None:
    text = README.read_text()
    section = text[text.index("## Annotations") : text.index("## Labels")]
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.M))
    unsupported = set(
        re.findall(r"`([a-z-]+)`", section.partition("not supported by this version:")[2].partition(".")[0])
    )
    assert rows | unsupported == set(KEYS)
    assert rows & unsupported == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_name_on_kubernetes_objects_is_in_the_catalogue(page: Path) -> None:
    for word in code_words(page):
        for name in re.findall(r"(?<![\w.])(?:endpoint\.)?prewarm\.dev/[\w<>.-]+", word):
            key = name.partition("=")[0].removesuffix(".")
            assert key in LABELS or key.startswith(names.ENDPOINT_PREFIX) or key.removeprefix(names.PREFIX) in KEYS, key


def test_the_label_table_names_them_all() -> None:
    words = " ".join(code_words(README))
    assert [n for n in sorted(LABELS) if n not in words and n != names.LABEL_INJECT] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_metric_and_variable_exists(page: Path) -> None:
    known = {f"PREWARM_{s.name.upper()}" for s in SETTINGS}
    for word in code_words(page):
        if re.fullmatch(r"PREWARM_[A-Z_]+", word):
            assert word in known
        if re.fullmatch(r"prewarm_\w+", word) or word.endswith("_seconds_count"):
            assert word in metrics_table()


@pytest.mark.parametrize("page", [README, REFERENCE], ids=lambda p: p.name)
def test_the_tables_are_as_the_catalogues_say(page: Path) -> None:
    text, first = page.read_text(), page == README
    assert settings_table(first=first) in text
    assert metrics_table(first=first) in text
    assert with_tables(text, first=first) == text, "run python -m tools.tables"


def test_the_table_of_gpu_reasons_is_the_catalogue_s() -> None:
    assert reasons_table() in GPU.read_text()
    assert pages()[GPU] == GPU.read_text(), "run python -m tools.tables"


@pytest.mark.parametrize("page", [README, GPU], ids=lambda p: p.name)
def test_what_only_stubs_have_seen_is_said(page: Path) -> None:
    text = page.read_text()
    assert "H100" in text
    assert re.search(r"NVLink, fabric[^.]*on\s+(the )?stubs", text)


def test_every_first_setting_exists() -> None:
    assert {s.name for s in SETTINGS} >= set(FIRST_SETTINGS)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 200
