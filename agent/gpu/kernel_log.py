"""The kernel log as a second witness: Xids and GPUs off the bus, from the start of this boot, without the driver's lock.

`/dev/kmsg` gives one record a read and tells of new ones by poll; it is read in the event loop's thread without blocking,
except for what lies in it at the start, which is read in a thread. Any other file is looked at once a second.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.core.clock import Clock
from agent.gpu.observation import LogEvent, pci_address

RECORD_BYTES = 8192  # more than the kernel's longest record
MAX_RECORDS = 50_000  # at the start: more than the largest ring buffer holds
LOOK_SECONDS = 1.0
RESERVE_BYTES = 1 << 20  # of a line that never ends

# NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
# With MIG: NVRM: Xid (PCI:0000:3b:00 GPU-I:05 GPU-CI:00): 48, …
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)(?: [^)]*)?\): (\d{1,6})\b(.*)")
_OFF_THE_BUS = "has fallen off the bus"
_ADDRESS = re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-9])?\b")
_RECORD = re.compile(r"\d+,(\d+),-?\d+,[^;]*;(.*)")

OnLine = Callable[[LogEvent], None]


def parse_record(record: str, number: int) -> LogEvent | None:
    """Return what one record tells of a GPU, None if nothing. `number` is its place where it carries no sequence number."""
    found = _RECORD.match(record)
    seq, text = (int(found[1]), found[2]) if found else (number, record)
    if "NVRM" not in text:
        return None
    if xid := _XID.search(text):
        return LogEvent(pci=pci_address(xid[1]), xid=int(xid[2]), nonfatal="nonfatal" in xid[3].lower(), seq=seq)
    if _OFF_THE_BUS in text:
        address = _ADDRESS.search(text)
        return LogEvent(pci=pci_address(address[0]) if address else "", seq=seq)
    return None


class KernelLog:
    """Follows a kernel log and tells `on_event` of every line about a GPU, those of before the start too.

    `readable` is False where it could not be opened; `seq` is the number of the newest record read.
    """

    name = "kernel log"

    def __init__(self, path: Path, on_event: OnLine, *, clock: Clock) -> None:
        self._path = path
        self._on_event = on_event
        self._clock = clock
        self._fd = -1
        self._rest = b""
        self._number = 0
        self._regular = False
        self.readable = False
        self.seq = -1

    async def open(self) -> None:
        """Open it and tell of all that lies in it."""
        for event in await asyncio.to_thread(self._open):
            self._on_event(event)

    async def run(self) -> None:
        """Follow it until cancelled; without a log there is nothing to do but wait."""
        try:
            if self._fd < 0:
                await asyncio.Event().wait()
            loop = asyncio.get_running_loop()
            if self._regular:
                while True:
                    await self._clock.sleep(LOOK_SECONDS)
                    self._take()
            loop.add_reader(self._fd, self._take)
            try:
                await asyncio.Event().wait()
            finally:
                loop.remove_reader(self._fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> list[LogEvent]:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return []
        self.readable, self._regular = True, stat.S_ISREG(os.fstat(self._fd).st_mode)
        newest = {(event.pci, event.xid, event.nonfatal): event for event in self._events(MAX_RECORDS)}
        return sorted(newest.values(), key=lambda event: event.seq)

    def _take(self) -> None:
        for event in self._events(1000):  # the rest comes with the next call: no burst may hold up the loop
            self._on_event(event)
        if not self.readable:  # a broken one would wake the loop for ever
            asyncio.get_running_loop().remove_reader(self._fd)

    def _events(self, limit: int) -> Iterator[LogEvent]:
        for _ in range(limit):
            block = self._read()
            if not block:
                return
            *lines, self._rest = (self._rest + block).split(b"\n")
            self._rest = self._rest[-RESERVE_BYTES:]
            for line in lines:
                if line.startswith(b" "):  # a record's dictionary
                    continue
                event = parse_record(line.decode(errors="replace"), self._number)
                self._number += 1
                self.seq = event.seq if event else self.seq
                if event:
                    yield event

    def _read(self) -> bytes:
        while True:
            try:
                block = os.read(self._fd, RECORD_BYTES)
            except BlockingIOError:
                return b""
            except OSError as error:
                if error.errno == errno.EPIPE:  # the ring has overtaken us; the next read is of what is left
                    continue
                block = b""
            self.readable = bool(block) or self._regular  # a device has no end
            return block
