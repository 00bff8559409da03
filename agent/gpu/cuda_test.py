"""The active test of one GPU: a process of its own that asks the CUDA driver to remember, copy and compute.

Started by `agent.gpu.children` like the prober, with one GPU visible (CUDA_VISIBLE_DEVICES); the standard library and
libcuda.so.1 only, no toolkit: the driver compiles the embedded PTX. It says one JSON line, then ends.

The tests run it against a stub that emulates the four kernels by their names; on an H100 it takes 0.3-0.5 s (docs/gpu.md).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import zlib
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

from agent.gpu import libraries
from agent.gpu.prober import die_with

LIBRARY = "libcuda.so.1"
LEAST_FREE_BYTES = 2 << 30
COPY_BYTES, COPIES, PATTERN = 64 << 20, 8, 0xA5
COPY_SHARE = 0.7  # of the link's raw rate, each way
PATTERNS = (
    (0, 0),
    (0xFFFFFFFF, 0),
    (0xAAAAAAAA, 0),
    (0, 1),
)  # word i is base + i * step: zeros, ones, 10…, the address
# CRC-32 of the product of the matrices a[i][k] = i + k and b[k][j] = k * j + 1, unsigned 32-bit words in row order, by size
CHECKSUMS = {64: 0x5B5CA47F, 1024: 0x018FE403}
OUT_OF_MEMORY, UNAVAILABLE = 2, 46
# no binary, invalid PTX, no JIT compiler, unsupported PTX version: the test does not fit the driver, which is no fault
CANNOT_COMPILE = (209, 218, 221, 222)
BLOCKS, THREADS = 1024, 256
_INDEX = """
  .reg .pred %q; .reg .u32 %r<16>; .reg .u64 %d<16>;
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mov.u32 %r4, %nctaid.x;
  mul.wide.u32 %d1, %r1, %r2; cvt.u64.u32 %d2, %r3; add.u64 %d1, %d1, %d2; mul.wide.u32 %d3, %r4, %r2;
  ld.param.u64 %d4, [p]; cvta.to.global.u64 %d4, %d4; ld.param.u64 %d5, [n];
"""
_NEXT = "\n  add.u64 %d1, %d1, %d3; bra again;\ndone:\n  ret;\n}\n"
# Each thread starts at its own index (d1) and strides by the number of threads (d3) up to n (d5).
PTX = f""".version 6.0
.target sm_50
.address_size 64
.visible .entry fill(.param .u64 p, .param .u64 n, .param .u32 base, .param .u32 step)
{{{_INDEX}  ld.param.u32 %r5, [base]; ld.param.u32 %r6, [step];
again:
  setp.ge.u64 %q, %d1, %d5; @%q bra done;
  cvt.u32.u64 %r7, %d1; mad.lo.u32 %r7, %r7, %r6, %r5;
  shl.b64 %d6, %d1, 2; add.u64 %d6, %d4, %d6; st.global.u32 [%d6], %r7;{_NEXT}
.visible .entry check(.param .u64 p, .param .u64 n, .param .u32 base, .param .u32 step, .param .u64 bad)
{{{_INDEX}  ld.param.u32 %r5, [base]; ld.param.u32 %r6, [step]; ld.param.u64 %d7, [bad]; cvta.to.global.u64 %d7, %d7;
again:
  setp.ge.u64 %q, %d1, %d5; @%q bra done;
  cvt.u32.u64 %r7, %d1; mad.lo.u32 %r7, %r7, %r6, %r5;
  shl.b64 %d6, %d1, 2; add.u64 %d6, %d4, %d6; ld.global.u32 %r8, [%d6];
  setp.ne.u32 %q, %r7, %r8; @%q red.global.add.u32 [%d7], 1;{_NEXT}
.visible .entry matrices(.param .u64 p, .param .u64 n, .param .u64 b, .param .u32 size)
{{{_INDEX}  ld.param.u64 %d7, [b]; cvta.to.global.u64 %d7, %d7; ld.param.u32 %r5, [size];
again:
  setp.ge.u64 %q, %d1, %d5; @%q bra done;
  cvt.u32.u64 %r6, %d1; div.u32 %r7, %r6, %r5; rem.u32 %r8, %r6, %r5;
  shl.b64 %d6, %d1, 2; add.u64 %d8, %d4, %d6; add.u64 %d9, %d7, %d6;
  add.u32 %r9, %r7, %r8; st.global.u32 [%d8], %r9;
  mad.lo.u32 %r10, %r7, %r8, 1; st.global.u32 [%d9], %r10;{_NEXT}
.visible .entry product(.param .u64 p, .param .u64 n, .param .u64 a, .param .u64 b, .param .u32 size)
{{{_INDEX}  ld.param.u64 %d7, [a]; cvta.to.global.u64 %d7, %d7; ld.param.u64 %d8, [b]; cvta.to.global.u64 %d8, %d8;
  ld.param.u32 %r5, [size];
again:
  setp.ge.u64 %q, %d1, %d5; @%q bra done;
  cvt.u32.u64 %r6, %d1; div.u32 %r7, %r6, %r5; rem.u32 %r8, %r6, %r5;
  mul.lo.u32 %r9, %r7, %r5; mov.u32 %r10, %r8; mov.u32 %r11, 0; mov.u32 %r12, 0;
inner:
  mul.wide.u32 %d9, %r9, 4; add.u64 %d9, %d7, %d9; ld.global.u32 %r13, [%d9];
  mul.wide.u32 %d10, %r10, 4; add.u64 %d10, %d8, %d10; ld.global.u32 %r14, [%d10];
  mad.lo.u32 %r12, %r13, %r14, %r12;
  add.u32 %r9, %r9, 1; add.u32 %r10, %r10, %r5; add.u32 %r11, %r11, 1;
  setp.lt.u32 %q, %r11, %r5; @%q bra inner;
  shl.b64 %d6, %d1, 2; add.u64 %d6, %d4, %d6; st.global.u32 [%d6], %r12;{_NEXT}"""


class Wrong(Exception):
    """The GPU did something wrong."""


class Skip(Exception):
    """The test cannot be run; `lasting` if a later try could not either."""

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


def main(parent: str, gigabytes: str, megabytes: str, size: str, extra: str) -> None:
    """Test the one visible GPU and say how it went.

    Args:
        parent: pid of the process to die with.
        gigabytes: raw rate of its PCIe link one way, in GB/s; 0 if unknown: copies are then checked, but not timed.
        megabytes: how much memory to write and verify, in MiB.
        size: rows of the matrices, one of CHECKSUMS.
        extra: further directories of libcuda.so.1, `:` between them.
    """
    die_with(int(parent))
    libraries.adopt_devices()
    try:
        text, outcome, lasting = run(float(gigabytes), int(megabytes) << 20, int(size), extra), "passed", False
    except Skip as error:
        text, outcome, lasting = str(error), "skipped", error.lasting
    except Wrong as error:
        text, outcome, lasting = str(error), "failed", False
    line = json.dumps({"kind": "test", "outcome": outcome, "text": text, "lasting": lasting})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    os._exit(0)  # the driver frees what a dead process held


def run(gigabytes: float, memory_bytes: int, size: int, extra: str) -> str:
    """Run the whole test; returns one sentence.

    Raises:
        Wrong: a wrong word, a slow copy, or a call that failed.
        Skip: it cannot be run.
    """
    began = time.perf_counter()
    libraries.load(LIBRARY, extra)
    try:
        cuda = Cuda(ctypes.CDLL(LIBRARY))
    except OSError as error:
        raise Skip(f"{LIBRARY} was not found", lasting=True) from error
    cuda.open()
    check_memory(cuda, memory_bytes)
    to, back = copy_there_and_back(cuda)
    for rate, way in ((to, "to"), (back, "from")):
        if gigabytes and rate < COPY_SHARE * gigabytes:
            raise Wrong(f"copies {way} the GPU run at {rate:.1f} GB/s, {gigabytes:.1f} GB/s is the link's raw rate")
    multiply(cuda, size)
    seconds = time.perf_counter() - began
    return f"{memory_bytes >> 20} MiB of patterns, {to:.1f} GB/s to and {back:.1f} GB/s from it, product exact, {seconds:.1f} s"


class Cuda:
    """The few calls of the driver API that the test needs, each checked."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._module = c_void_p()

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function; a code other than 0 is Wrong, or Skip where it says nothing of the GPU."""
        code = getattr(self._library, name)(*arguments)
        if code == OUT_OF_MEMORY:
            raise Skip(f"{name}: out of memory")
        if code == UNAVAILABLE:
            raise Skip(f"{name}: another process has the GPU")
        if code in CANNOT_COMPILE:
            raise Skip(f"{name}: the driver cannot compile the test (code {code})", lasting=True)
        if code:
            raise Wrong(f"{name}: code {code}")

    def open(self) -> None:
        """Make a context on the GPU and load the kernels."""
        device, context, free, total = c_int(), c_void_p(), c_size_t(), c_size_t()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        if free.value < LEAST_FREE_BYTES:
            raise Skip(f"only {free.value >> 20} MiB of its memory are free")
        self.call("cuModuleLoadData", byref(self._module), c_char_p(PTX.encode()))

    def memory(self, size_bytes: int) -> c_void_p:
        """Allocate memory of the GPU."""
        pointer = c_void_p()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(size_bytes))
        return pointer

    def pinned(self, size_bytes: int) -> c_void_p:
        """Allocate memory of the host that the GPU copies by itself."""
        pointer = c_void_p()
        self.call("cuMemAllocHost_v2", byref(pointer), c_size_t(size_bytes))
        return pointer

    def launch(self, kernel: str, *arguments: Any) -> None:
        """Run a kernel and wait for its end."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), self._module, c_char_p(kernel.encode()))
        addresses = (c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.call("cuLaunchKernel", function, BLOCKS, 1, 1, THREADS, 1, 1, 0, None, addresses, None)
        self.call("cuCtxSynchronize")


def check_memory(cuda: Cuda, size_bytes: int) -> None:
    """Write and verify each pattern all over a block of memory."""
    memory, bad, words = cuda.memory(size_bytes), cuda.memory(4), ctypes.c_uint64(size_bytes // 4)
    count = c_uint()
    for base, step in PATTERNS:
        cuda.call("cuMemsetD32_v2", bad, c_uint(0), c_size_t(1))
        cuda.launch("fill", memory, words, c_uint(base), c_uint(step))
        cuda.launch("check", memory, words, c_uint(base), c_uint(step), bad)
        cuda.call("cuMemcpyDtoH_v2", byref(count), bad, c_size_t(4))
        if count.value:
            raise Wrong(
                f"{count.value} of {words.value} words of memory are wrong after writing {base:#010x} + {step} i"
            )
    cuda.call("cuMemFree_v2", memory)


def copy_there_and_back(cuda: Cuda) -> tuple[float, float]:
    """Copy pinned memory to the GPU and back several times; returns GB/s each way. What comes back must be what went."""
    host, memory = cuda.pinned(COPY_BYTES), cuda.memory(COPY_BYTES)  # one: what is pinned counts as the agent's memory
    content = (ctypes.c_char * COPY_BYTES).from_address(host.value or 0)
    ctypes.memset(host, PATTERN, COPY_BYTES)
    went, rates = zlib.crc32(content), []
    for name, to, source in (("cuMemcpyHtoDAsync_v2", memory, host), ("cuMemcpyDtoHAsync_v2", host, memory)):
        cuda.call("cuCtxSynchronize")
        began = time.perf_counter()
        for _ in range(COPIES):
            cuda.call(name, to, source, c_size_t(COPY_BYTES), None)
        cuda.call("cuCtxSynchronize")
        rates.append(COPIES * COPY_BYTES / (time.perf_counter() - began) / 1e9)
        if to is memory:
            ctypes.memset(host, 0, COPY_BYTES)
    if zlib.crc32(content) != went:
        raise Wrong("what was copied to the GPU and back is not what it was")
    return rates[0], rates[1]


def multiply(cuda: Cuda, size: int) -> None:
    """Multiply two matrices of integers; the product's checksum is known."""
    words = size * size
    a, b, c = (cuda.memory(4 * words) for _ in range(3))
    cuda.launch("matrices", a, ctypes.c_uint64(words), b, c_uint(size))
    cuda.launch("product", c, ctypes.c_uint64(words), a, b, c_uint(size))
    product = (c_uint * words)()
    cuda.call("cuMemcpyDtoH_v2", product, c, c_size_t(4 * words))
    if zlib.crc32(product) != CHECKSUMS[size]:
        raise Wrong("a product of integer matrices is wrong")
