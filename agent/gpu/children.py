"""Child processes that talk NVIDIA's libraries: start one, read its lines with a deadline, kill it, and never wait without bound.

Must not import pynvml: no call of NVIDIA's may run in the agent's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self, cast

from agent.core.errors import Permanent, PrewarmError
from agent.gpu.observation import Garbled, Message, parse_message

REAP_SECONDS = 2.0  # a killed process that is not in the driver is gone within milliseconds
MAX_LINE_BYTES = 1 << 20
_ROOT = str(Path(__file__).parents[2])
_MAIN = "import sys; sys.path[:0] = sys.argv[1].split(':'); from agent.gpu.{module} import main; main(*sys.argv[2:])"


class NoAnswer(PrewarmError):
    """The deadline passed; the child is presumed to hang in the driver."""


class Gone(PrewarmError):
    """The child ended. `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the child process ended with status {status}")
        self.status = status


class ChildProcess(asyncio.SubprocessProtocol):
    """A child over pipes. Callbacks only: it owns no task, so that nothing of it can be left behind."""

    def __init__(self) -> None:
        self._transport: asyncio.SubprocessTransport | None = None
        self._exit = asyncio.Event()
        self._buffer = b""
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """Its process id."""
        return (self._transport and self._transport.get_pid()) or 0

    @property
    def exited(self) -> bool:
        """True once the kernel has let it go."""
        return self._exit.is_set()

    def send(self, line: bytes) -> None:
        """Write one line; what is said from now on answers it.

        Raises:
            Gone: it has ended.
        """
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self.exited:
            raise Gone(self._status())
        cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0)).write(line + b"\n")

    async def answer(self, seconds: float) -> Message:
        """Return the next message that `hear` does not take.

        Raises:
            NoAnswer: none within `seconds`.
            Gone: it ended.
            Garbled: it said something else.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError as error:
            raise NoAnswer(f"no answer from a GPU's child process for {seconds:g} s") from error

    async def close(self) -> bool:
        """Kill it and wait at most REAP_SECONDS; False if it is still there."""
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

    def hear(self, message: Message) -> bool:
        """Take a message that is no answer; True if it was one of these."""
        del message
        return False

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
            self._fail(Garbled(f"a GPU's child process wrote a line of more than {MAX_LINE_BYTES} bytes"))

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
        if not self.hear(message) and not self._answer.done():
            self._answer.set_result(message)

    def _fail(self, error: PrewarmError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # marks it as seen: nobody may be waiting

    async def start(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Self:
        """Run `main(parent's pid, *arguments)` of `agent.gpu.<module>`; returns itself.

        In a session of its own, so that a Ctrl-C in a terminal does not reach it. Call from the thread that outlives it: the
        kernel kills it when that thread ends.

        Raises:
            Permanent: pynvml is not installed or the process cannot be made.
        """
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                *child_command(module, *arguments),
                stderr=None,  # a crash of the driver's library is told where the agent's log goes
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise Permanent(f"cannot start a GPU's child process: {error}") from error
        return self


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command for `main(this process's pid, *arguments)` of `agent.gpu.<module>`.

    In isolated mode without `site`, at this interpreter's optimisation level (whose byte code is on disk).

    Raises:
        Permanent: pynvml is not installed.
    """
    spec = importlib.util.find_spec("pynvml")  # finds, does not import
    if spec is None or spec.origin is None:
        raise Permanent("pynvml is not installed: install nvidia-ml-py")
    level = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    path = f"{_ROOT}:{Path(spec.origin).parent}"
    code = _MAIN.format(module=module)
    return [sys.executable, "-I", "-S", *level, "-c", code, path, str(os.getpid()), *arguments]
