from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agent.cli.status import due_fields, fleet_rows, fleet_text
from agent.core.assignment import Window, WindowSource

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)


def test_a_foretold_window_is_told_from_a_declared_one() -> None:
    declared = Window(ready_by=NINE, until=NINE + timedelta(hours=1))
    foretold = Window(ready_by=NINE, until=declared.until, source=WindowSource.PREDICTED, confidence=70)
    some = {"declared": declared, "foretold": foretold, "none": None}
    endpoints = [{"namespace": "shop", "name": name, **due_fields(window)} for name, window in some.items()]
    rows = fleet_rows([{"node": "n1", "status": {}, "endpoints": endpoints}])
    assert [row.get("chance") for row in rows] == [None, 70, None]
    shown = {line.split()[1]: line for line in fleet_text(rows, []) if line.startswith("shop")}
    assert "2026-03-02T09:00:00Z (foretold from its history, 70 %)" in shown["foretold"]
    assert "foretold from" not in shown["declared"]
