"""A shortened year: three weeks around a change of the clock, on fewer nodes. The whole: `python -m bench.year`."""

from __future__ import annotations

from bench.year import World


def test_windows_are_met_where_an_oracle_could_and_the_others_are_announced() -> None:
    found = World(seed=3, days=8, nodes=12, endpoints=48).run()
    assert found["windows"] > 300  # type: ignore[operator]
    assert found["met_share"] >= 0.999  # type: ignore[operator]
    assert found["infeasible_announced"] == found["infeasible"] - found["infeasible_met"]  # type: ignore[operator]
