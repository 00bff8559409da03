"""The parent's side of the NVML prober: start it, ask it with a deadline, kill it, and never wait for it without bound.

Must not import pynvml: no NVML call may run in the agent's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

from agent.core.errors import Permanent, PrewarmError
from agent.gpu.observation import Deaf, Event, Garbled, Sample, Started, parse_message

REAP_SECONDS = 2.0  # a killed process that is not in the driver is gone within milliseconds
MAX_LINE_BYTES = 1 << 20

OnEvent = Callable[[Event | Deaf], None]


class NoAnswer(PrewarmError):
    """The deadline passed; the prober is presumed to hang in the driver."""


class Gone(PrewarmError):
    """The prober ended. `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the NVML prober ended with status {status}")
        self.status = status


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

    async def ask(self, seconds: float) -> Sample:
        """Return a fresh sample; raises NoAnswer or Gone."""
        ...

    async def close(self) -> bool:
        """Kill it and wait at most REAP_SECONDS; False if it is still there."""
        ...


class ProberProcess(asyncio.SubprocessProtocol):
    """`Child` over pipes. Callbacks only: it owns no task, so that nothing of it can be left behind."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._transport: asyncio.SubprocessTransport | None = None
        self._exit = asyncio.Event()
        self._buffer = b""
        self._answer: asyncio.Future[Started | Sample] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """See `Child`."""
        return (self._transport and self._transport.get_pid()) or 0

    @property
    def exited(self) -> bool:
        """See `Child`."""
        return self._exit.is_set()

    async def started(self, seconds: float) -> Started:
        """See `Child`."""
        answer = await self._wait(seconds)
        if not isinstance(answer, Started):
            raise Garbled("the NVML prober answered before it had started")
        return answer

    async def ask(self, seconds: float) -> Sample:
        """See `Child`."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self.exited:
            raise Gone(self._status())
        stdin = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        stdin.write(b"sample\n")
        answer = await self._wait(seconds)
        if not isinstance(answer, Sample):
            raise Garbled("the NVML prober started twice")
        return answer

    async def close(self) -> bool:
        """See `Child`."""
        if self._transport is None:
            return True
        if not self.exited:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()
        try:
            async with asyncio.timeout(REAP_SECONDS):
                await self._exit.wait()
        except TimeoutError:
            return False
        finally:
            self._transport.close()
        return True

    async def _wait(self, seconds: float) -> Started | Sample:
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError as error:
            raise NoAnswer(f"NVML has not answered for {seconds:g} s") from error

    def _status(self) -> int:
        return (self._transport.get_returncode() or 0) if self._transport else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """Cut what arrives into lines."""
        *lines, self._buffer = (self._buffer + cast("bytes", data)).split(b"\n")
        for line in lines:
            self._heard(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            self._buffer = b""
            self._fail(Garbled(f"the NVML prober wrote a line of more than {MAX_LINE_BYTES} bytes"))

    def process_exited(self) -> None:
        """Wake whoever waits for an answer or for the end."""
        self._exit.set()
        self._fail(Gone(self._status()))

    def _heard(self, line: bytes) -> None:
        try:
            message = parse_message(line)
        except Garbled as error:
            self._fail(error)
            return
        if isinstance(message, Event | Deaf):
            self._on_event(message)
        elif not self._answer.done():
            self._answer.set_result(message)

    def _fail(self, error: PrewarmError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # marks it as seen: nobody may be waiting


async def start_prober(on_event: OnEvent, *, environment: Mapping[str, str] | None = None) -> Child:
    """Start a prober; `on_event` is called in the loop's thread the moment NVML tells of something.

    It runs in isolated mode without `site`, at this interpreter's optimisation level (whose byte code is on disk), in a
    session of its own so that a Ctrl-C in a terminal does not reach it. Call from the thread that outlives it: the kernel
    kills it when that thread ends.

    Raises:
        Permanent: pynvml is not installed or the process cannot be made.
    """
    spec = importlib.util.find_spec("pynvml")  # finds, does not import
    if spec is None or spec.origin is None:
        raise Permanent("pynvml is not installed: install nvidia-ml-py")
    level = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    command = [sys.executable, "-I", "-S", *level, str(Path(__file__).with_name("child.py"))]
    try:
        _, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: ProberProcess(on_event),
            *command,
            str(Path(spec.origin).parent),
            str(os.getpid()),
            stderr=None,  # a crash of the driver's library is told where the agent's log goes
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise Permanent(f"cannot start the NVML prober: {error}") from error
    return child
