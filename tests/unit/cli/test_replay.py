from __future__ import annotations

import csv
import gzip
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from agent.cli import main
from agent.cli.recordings import read_recording
from agent.core.errors import Invalid
from agent.demand.propose import proposals
from agent.demand.recording import Recorded, Recording, count
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


def test_irregular_traffic_is_left_alone() -> None:
    assert not list(proposals(recording_of(every(7))))


def test_counts_agree_with_a_slow_count() -> None:
    random = np.random.default_rng(3)
    active, warm = random.random((4, 500)) < 0.06, random.random((4, 500)) < 0.3
    known = np.ones(500, bool)
    known[200:210] = False
    recording = Recording(
        start=0,
        endpoints=tuple(Recorded(name=f"e{i}", timezone="UTC", group="g") for i in range(4)),
        active=active & known,
        known=known,
        counted=np.arange(500) >= 100,
    )
    returns = met = idle = wasted = 0
    for row, slot in product(range(4), range(100, 500)):
        if not known[slot]:
            continue
        past = [s for s in range(slot) if not known[s] or recording.active[row, s]]
        if not past or not known[past[-1]]:
            continue
        before = slot - past[-1] - 1
        if recording.active[row, slot]:
            returns, met = returns + (before >= 3), met + (before >= 3 and warm[row, slot])
        else:
            ends = next((s for s in range(slot, 500) if not known[s] or recording.active[row, s]), None)
            long = ends is None or not known[ends] or ends - past[-1] - 1 >= 3
            idle, wasted = idle + long, wasted + (long and warm[row, slot])
    found = count(recording, warm)
    assert (found.returns, found.met) == (returns, met)
    assert found.idle_hours == pytest.approx(idle / 6)
    assert found.wasted_hours == pytest.approx(wasted / 6)


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
    "words", [["--budget", "lots"], ["--budget", "2"], ["--learn-days", "400"], ["--timezone", "Mars/Base"]]
)
def test_wrong_flags_are_refused(trace: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--trace", str(trace), *words]) == 1
    assert "prewarm replay: " in capsys.readouterr().err


def test_a_file_that_is_absent_is_said() -> None:
    with pytest.raises(Invalid, match="cannot read"):
        read_recording(Path("/nonexistent/file.csv"))
