from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from agent.cli import main
from agent.cli.recordings import read_recording
from agent.cli.replay_page import page
from agent.core.errors import Invalid
from agent.demand.propose import Proposal, proposals
from agent.demand.recording import Recorded, Recording
from bench import cache
from tests.unit.demand.traffic import Active, every, office, slots


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days of one office and two robots, as a CSV file."""
    path = tmp_path_factory.mktemp("replay") / "traffic.csv"
    traffic = {"office": office(opens=8), "robot": every(6), "other": every(5, 30)}
    with path.open("w") as lines:
        print("endpoint,slot_start_epoch_s,demand", file=lines)
        for at, (name, active) in product(slots(10), traffic.items()):
            if active(at):
                print(f"{name},{int(at.timestamp())},3", file=lines)
    return path


def test_replay_prints_hits_waste_and_a_schedule(
    trace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    html = tmp_path / "curve.html"
    words = ["replay", "--trace", str(trace), "--learn-days", "2", "--budget", "0.1,0.3", "--html", str(html), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["replay"]
    assert low["returns"] == high["returns"] == low["hits"] + low["misses"] > 60
    assert 40 <= low["hit_pct"] <= high["hit_pct"]
    assert high["waste_pct"] <= 45
    assert high["cold_seconds_saved"] == high["hits"] * 180
    [proposal] = [each for each in found["proposals"] if each["endpoint"] == "office"]
    assert proposal["annotations"]["prewarm.dev/schedule"] == "0 8 * * MON-FRI"
    assert "<svg" in html.read_text()


def recording_of(traffic: Active, *schedule: str, zone: str = "UTC") -> Recording:
    """Three weeks of one endpoint."""
    times = slots(21)
    return Recording(
        start=int(times[0].timestamp()),
        endpoints=(Recorded(name="e", timezone=zone, group="g", schedule=schedule),),
        active=np.array([[traffic(at) for at in times]]),
        known=np.ones(len(times), bool),
        counted=np.ones(len(times), bool),
    )


def test_a_schedule_is_compared_with_what_really_happened() -> None:
    early = office(zone="Europe/Berlin", opens=7)
    [late] = proposals(recording_of(early, "0 9 * * MON-FRI", zone="Europe/Berlin"))
    assert late.why.startswith("declared 09:00, real P10 07:00: of ")
    assert late.annotations["prewarm.dev/schedule"] == "0 7 * * MON-FRI"
    assert not list(proposals(recording_of(early, "0 7 * * MON-FRI", zone="Europe/Berlin")))


def test_a_window_that_is_never_used_is_named() -> None:
    [unused] = proposals(recording_of(office(opens=9), "0 20 * * *"))
    assert unused.why == "none of 21 declared windows saw a request within its first hour"
    assert not unused.annotations


def test_a_window_of_which_nothing_is_known_is_not_called_unused() -> None:
    found = recording_of(office(opens=9), "0 20 * * *")
    known = np.array([[found.at(slot).hour != 20 for slot in range(found.active.shape[1])]])
    assert not [p for p in proposals(replace(found, known=known)) if not p.annotations]


def test_irregular_traffic_is_left_alone() -> None:
    assert not list(proposals(recording_of(every(7))))


def test_a_full_disk_is_simulated_as_by_hand() -> None:
    """One place, two robots in turn: LRU always holds the wrong one, whoever knows the future the right one."""
    active = np.zeros((2, 600), bool)
    active[0, ::20], active[1, 10::20] = True, True
    recording = Recording(
        start=0,
        endpoints=tuple(Recorded(name=f"e{i}", timezone="UTC", group="g") for i in range(2)),
        active=active,
        known=np.ones(600, bool),
        counted=np.arange(600) >= 300,
    )
    found = {rule: cache.simulate(recording, rule, worth, 1, True) for rule, worth in cache.worths(recording).items()}
    assert found["LRU"].hits_pct == 0
    assert found["LRU"].loads_a_day == pytest.approx(14.4, abs=0.5), "every use is a download"
    assert found["Belady, prefetch"].hits_pct == 100
    assert found["Belady"].hits_pct == 50, "the one used sooner stays, and is never replaced"
    assert found["forecast"].hits_pct > 50


def test_a_folder_with_gaps_is_read(tmp_path: Path) -> None:
    (tmp_path / "trace.toml").write_text(
        "slot_seconds=600\nstart=0\nevaluation_start=600\nevaluation_end=3000\nknown_gaps=[[1200,1800]]\n"
    )
    (tmp_path / "endpoints.csv").write_text(
        "endpoint,timezone,group,schedule\na,Europe/Berlin,team,0 9 * * *; 0 17 * * *\nb,UTC,team,\n"
    )
    with gzip.open(tmp_path / "demand.csv.gz", "wt") as lines:
        csv.writer(lines).writerows([["endpoint", "slot_start_epoch_s", "demand"], ["a", 600, 2], ["b", 2400, 1]])
    found = read_recording(tmp_path)
    assert found.active.tolist() == [[False, True, False, False, False], [False, False, False, False, True]]
    assert [each.schedule for each in found.endpoints] == [("0 9 * * *", "0 17 * * *"), ()]
    assert found.known.tolist() == [True, True, False, True, True]
    assert found.counted.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpoint,slot_start_epoch_s,demand\n", "has no traffic"),
        ("endpoint,slot_start_epoch_s,demand\na,soon,1\n", "line 2: 'soon' is not a time"),
        ("endpoint,slot_start_epoch_s,demand\na,600,many\n", "demand 'many' is not a number"),
        ("name,slot_start_epoch_s,demand\na,600,1\n", "a line without endpoint"),
        ("endpoint,slot_start_epoch_s,demand\na,600,1\na,99999999999,1\n", "are too many"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(Invalid, match=says):
        read_recording(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget", "lots"], "write shares of idle time"),
        (["--budget", "2"], "at most 1"),
        (["--timezone", "Mars/Base"], "no IANA time zone"),
        (["--learn-days", "-1"], "numbers from 0"),
        (["--cold-seconds", "nan"], "numbers from 0"),
        (["--size", "big"], "not a size"),
        (["--html", "/nonexistent/page.html"], "there is no folder"),
        (["--from-prometheus", "http://p"], "not allowed with"),
    ],
)
def test_wrong_flags_are_refused(trace: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay", "--trace", str(trace), *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_recording_shorter_than_what_is_learned_from_is_said(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--trace", str(trace), "--learn-days", "400"]) == 1
    assert "ends before 400 days of learning are over" in capsys.readouterr().err


def test_no_name_from_outside_becomes_markup() -> None:
    line = {"budget": 0.2, "waste_pct": 10.0, "hit_pct": 50.0, "hit_pct_after_4h": 40.0}
    odd = Proposal(endpoint="<script>", annotations={}, why="a & b")
    found = page("<1>", [line], [odd])
    assert "<script>" not in found
    assert "&lt;script&gt;" in found
    assert "a &amp; b" in found


def test_a_file_that_is_absent_is_said() -> None:
    with pytest.raises(Invalid, match="cannot read"):
        read_recording(Path("/nonexistent/file.csv"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ms.csv", b"endpoint,slot_start_epoch_s,demand\na,1700000000000,1\n", "is not a time in whole seconds"),
        (
            "a.csv.gz",
            gzip.compress(b"endpoint,slot_start_epoch_s,demand\n", mtime=0)[:12] + b"\xff" * 30,
            "cannot read",
        ),
        ("inf.csv", b"endpoint,slot_start_epoch_s,demand\na,-1,1\n", "is not a time in whole seconds"),
    ],
    ids=["milliseconds", "damaged", "negative"],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Invalid, match=told):
        read_recording(path)


@pytest.mark.parametrize("gaps", ['["x"]', "5", "[[1]]"])
def test_gaps_that_are_none_are_refused(tmp_path: Path, gaps: str) -> None:
    times = "slot_seconds = 600\nstart = 0\nevaluation_end = 6000\n"
    (tmp_path / "trace.toml").write_text(f"{times}known_gaps = {gaps}\n")
    (tmp_path / "endpoints.csv").write_text("endpoint,timezone\na,UTC\n")
    (tmp_path / "demand.csv").write_text("endpoint,slot_start_epoch_s,demand\na,0,1\n")
    with pytest.raises(Invalid):
        read_recording(tmp_path)
