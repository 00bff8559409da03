"""A shortened year: four days of it on a few crowded nodes. The whole: `python -m bench.year`."""

from __future__ import annotations

from bench.year import World


def test_windows_are_met_where_an_oracle_could_and_the_others_are_announced() -> None:
    found = World(seed=3, days=4, nodes=6, endpoints=40).run()
    assert found["windows"] > 150  # type: ignore[operator]
    assert found["met_share"] >= 0.999  # type: ignore[operator]
    assert found["infeasible_announced"] == found["infeasible"] - found["infeasible_met"]  # type: ignore[operator]
