"""A shortened year: four days of it on a few crowded nodes. The whole: `python -m bench.year`."""

from __future__ import annotations

from bench.year import World


def test_windows_are_met_where_an_oracle_could_and_the_others_are_announced() -> None:
    found = World(seed=3, days=4, nodes=6, endpoints=40).run()
    assert found["feasible"] > 150
    assert found["met"] >= 0.999 * found["feasible"]
    assert found["announced"] == found["infeasible"] > 0
