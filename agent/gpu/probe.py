"""The agent's side of the NVML prober (`agent.gpu.prober`): start it, ask it, hear its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from agent.gpu.children import ChildProcess
from agent.gpu.observation import Deaf, Event, Garbled, Message, Sample, Started

OnEvent = Callable[[Event | Deaf], None]


class Child(Protocol):
    """A running prober."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def exited(self) -> bool:
        """True once the kernel has let it go."""
        ...

    async def started(self, seconds: float) -> Started:
        """Return what nvmlInit said; raises NoAnswer or Gone."""
        ...

    async def ask(self, depth: int, seconds: float) -> Sample:
        """Return a fresh sample with all questions up to that depth; raises NoAnswer or Gone."""
        ...

    async def close(self) -> bool:
        """Kill it and wait at most REAP_SECONDS; False if it is still there."""
        ...


class ProberProcess(ChildProcess):
    """`Child` over pipes."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__()
        self._on_event = on_event

    async def started(self, seconds: float) -> Started:
        """See `Child`."""
        answer = await self.answer(seconds)
        if not isinstance(answer, Started):
            raise Garbled("the NVML prober answered before it had started")
        return answer

    async def ask(self, depth: int, seconds: float) -> Sample:
        """See `Child`."""
        self.send(str(depth).encode())
        answer = await self.answer(seconds)
        if not isinstance(answer, Sample):
            raise Garbled("the NVML prober started twice")
        return answer

    def hear(self, message: Message) -> bool:
        """Pass on what NVML tells by itself."""
        if isinstance(message, Event | Deaf):
            self._on_event(message)
            return True
        return False


async def start_prober(
    on_event: OnEvent, *, libraries: str = "", environment: Mapping[str, str] | None = None
) -> ProberProcess:
    """Start a prober; `on_event` is called in the loop's thread the moment NVML tells of something.

    Raises:
        Permanent: pynvml is not installed or the process cannot be made.
    """
    return await ProberProcess(on_event).start("prober", libraries, environment=environment)
