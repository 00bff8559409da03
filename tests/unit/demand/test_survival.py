from __future__ import annotations

from datetime import timedelta

from agent.demand.forecast import Forecast
from agent.demand.survival import next_use
from tests.unit.demand.traffic import START, Active, never, office, play, sites, slots


def test_by_night_the_next_use_is_the_morning_and_after_a_friday_it_is_not_saturday() -> None:
    traffic: list[Active] = [*(office(opens=9, jitter_seed=i) for i in range(5)), never]
    forecast = Forecast(sites(6), [0.2])
    play(forecast, traffic, slots(10.95), refit=True)  # to Thursday of the second week, 22:40
    thursday = START + timedelta(days=10, hours=23)
    found = next_use(forecast, thursday)
    assert "e5" not in found, "nothing is known of what was never used"
    for name in ("e0", "e1", "e2"):
        use = found[name]
        assert use.p10 is not None
        assert use.p50 is not None
        assert timedelta(hours=8) <= use.p50 - thursday <= timedelta(hours=12), "nine in the morning"
        assert use.p10 <= use.p50
        assert use.p90 is None or use.p50 <= use.p90
    play(forecast, traffic, slots(1, START + timedelta(days=10.95)), refit=True)
    after_friday = next_use(forecast, thursday + timedelta(days=1), horizon=timedelta(hours=36))
    assert all(after_friday[f"e{row}"].p50 is None for row in range(5)), "no use before Sunday noon"
