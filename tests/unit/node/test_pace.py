"""How the node's pace is sampled and kept."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from agent.core.assignment import ImageWant
from agent.core.inventory import ModelState, ModelsView
from agent.core.latest import Latest, Signal
from agent.core.refs import Digest, parse_image_ref
from agent.node.pace import PaceKeeper
from agent.plan.decision import NodePlan, PullStep
from agent.plan.pace import Pace
from tests.fakes.virtual_time import LoopClock, run_virtual

A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)

IDLE = NodePlan()


def running(rate: float) -> ModelsView:
    states = [
        ModelState(digest=A, busy=True, rate_bytes_per_second=rate),
        ModelState(digest=B, rate_bytes_per_second=9e9),
    ]
    return ModelsView(states={s.digest: s for s in states})


def keeper(
    path: Path, models: ModelsView, plan: NodePlan = IDLE
) -> tuple[PaceKeeper, Latest[ModelsView], Latest[Pace]]:
    cell, pace = Latest(models), Latest(Pace())
    return PaceKeeper(models=cell, plan=Latest(plan), pace=pace, path=path, clock=LoopClock()), cell, pace


def test_running_downloads_are_sampled_every_ten_seconds(tmp_path: Path) -> None:
    async def measure() -> None:
        service, models, pace = keeper(tmp_path / "pace.json", ModelsView())
        service.look()
        for n in range(700):
            await asyncio.sleep(1)
            models.set(running(1e8 + n))
            service.look()
        assert len(pace.get().samples) == 70
        assert pace.get().present_bytes_per_second == 1e8 + 699
        models.set(running(0))
        await asyncio.sleep(9)
        service.look()
        assert pace.get().present_bytes_per_second == 1e8 + 699  # another may follow
        await asyncio.sleep(1)
        service.look()
        assert (len(pace.get().samples), pace.get().present_bytes_per_second) == (70, 0)
        assert 1e8 <= pace.get().bytes_per_second < 1e8 + 100

    run_virtual(measure())


def test_the_present_rate_ends_soon_after_the_last_download(tmp_path: Path) -> None:
    async def measure() -> None:
        service, models, pace = keeper(tmp_path / "pace.json", ModelsView())
        task = asyncio.create_task(service.run(), name="pace")
        numbers = itertools.count()
        while pace.get().running <= 2:  # a thread writes the file: it takes its own time
            await asyncio.sleep(1)
            models.set(running(1e8 + n) if (n := next(numbers)) % 15 else ModelsView())
        assert pace.get().present_bytes_per_second > 1e8
        models.set(ModelsView())
        while pace.get().running:  # noqa: ASYNC110 (in virtual time)
            await asyncio.sleep(1)
        assert pace.get().present_bytes_per_second == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(measure())


def test_what_was_measured_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "pace.json"

    async def measure() -> None:
        service, models, pace = keeper(path, ModelsView())
        task = asyncio.create_task(service.run(), name="pace")
        while len(pace.get().samples) < 40:  # a thread writes the file: it takes its own time
            await asyncio.sleep(1)
            models.set(running(1e8 + asyncio.get_running_loop().time()))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def load() -> None:
        service, _, pace = keeper(path, ModelsView())
        signal = Signal()
        pace.attach(signal)
        task = asyncio.create_task(service.run(), name="pace")
        await signal.wait()
        assert pace.get().samples
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(measure())
    run_virtual(load())


def test_what_a_download_reaches_while_it_makes_way_says_nothing(tmp_path: Path) -> None:
    want = ImageWant(ref=parse_image_ref("r/i:1"))
    pull = PullStep(want=want, runtime_handler="", endpoints=(), due=None, urgent=True, reason="")

    async def samples(models: ModelsView, plan: NodePlan = IDLE, seconds: int = 30) -> int:
        service, cell, pace = keeper(tmp_path / "p", ModelsView(), plan)
        service.look()
        cell.set(models)
        for _ in range(seconds):
            await asyncio.sleep(1)
            service.look()
        return len(pace.get().samples)

    async def look() -> None:
        assert await samples(running(1e8), NodePlan(pulls=(pull,))) == 0
        assert await samples(running(0)) == 0
        assert await samples(running(1e8), seconds=9) == 0
        assert await samples(running(1e8)) == 3

    run_virtual(look())


def test_a_broken_file_is_no_pace(tmp_path: Path) -> None:
    (tmp_path / "pace.json").write_text("{")
    assert keeper(tmp_path / "pace.json", ModelsView())[0]._load() == Pace()
