"""The active test's kernels, run: an interpreter of the few PTX instructions they use, thread by thread."""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Callable

import pytest

from agent.gpu.cuda_test import CHECKSUMS, PTX

MASK32, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
MAX_STEPS = 100_000
ARITHMETIC: dict[str, Callable[..., int]] = {
    "mov": lambda a: a, "cvt": lambda a: a, "cvta": lambda a: a, "add": lambda a, b: a + b, "shl": lambda a, b: a << b,
    "mul": lambda a, b: a * b, "mad": lambda a, b, c: a * b + c, "div": lambda a, b: a // b, "rem": lambda a, b: a % b,
}  # fmt: skip
COMPARE = {"ge": lambda a, b: a >= b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b}


def kernels() -> dict[str, tuple[list[str], list[str]]]:
    """Parameters and statements of each kernel."""
    found = {}
    for name, parameters, body in re.findall(r"\.entry (\w+)\((.*?)\)\n\{(.*?)\n\}", PTX, re.S):
        statements = re.sub(r"(\w+):", r"\1:;", body).split(";")
        found[name] = (re.findall(r"\.param \.\w+ (\w+)", parameters), [s.strip() for s in statements if s.strip()])
    return found


class Thread:
    """One thread of a kernel."""

    def __init__(self, memory: dict[int, int], parameters: dict[str, int], block: int, blocks: int) -> None:
        self.memory, self.parameters = memory, parameters
        self.registers = {"%ctaid.x": block, "%nctaid.x": blocks, "%ntid.x": 1, "%tid.x": 0}

    def run(self, statements: list[str]) -> None:
        at = 0
        for _ in range(MAX_STEPS):
            statement = statements[at]
            at += 1
            if guard := re.match(r"@(%\w+) (.*)", statement):
                if not self.registers[guard[1]]:
                    continue
                statement = guard[2]
            if statement.endswith(":") or statement.startswith(".reg"):
                continue
            opcode, _, rest = statement.partition(" ")
            if opcode == "ret":
                return
            if opcode == "bra":
                at = statements.index(f"{rest}:")
            else:
                self.step(opcode.split("."), [word.strip() for word in rest.split(",")])
        raise AssertionError("it does not end")

    def step(self, opcode: list[str], operands: list[str]) -> None:
        kind, bits = opcode[0], MASK64 if opcode[-1].endswith("64") or "wide" in opcode else MASK32
        match opcode[:2]:
            case ["ld", "param"]:
                self.registers[operands[0]] = self.parameters[operands[1].strip("[]")]
            case ["ld", "global"]:
                self.registers[operands[0]] = self.memory[self.address(operands[1])]
            case ["st", "global"]:
                self.memory[self.address(operands[0])] = self.value(operands[1]) & MASK32
            case ["red", "global"]:
                self.memory[self.address(operands[0])] += self.value(operands[1])
            case ["setp", _]:
                self.registers[operands[0]] = COMPARE[opcode[1]](*map(self.value, operands[1:]))
            case _:
                bits = MASK32 if kind == "cvt" and opcode[1] == "u32" else bits
                self.registers[operands[0]] = ARITHMETIC[kind](*map(self.value, operands[1:])) & bits

    def address(self, operand: str) -> int:
        address = self.registers[operand.strip("[]")]
        assert address in self.memory, "out of bounds"
        return address

    def value(self, operand: str) -> int:
        return self.registers[operand] if operand.startswith("%") else int(operand)


def launch(memory: dict[int, int], kernel: str, *arguments: int, blocks: int = 3) -> None:
    parameters, statements = kernels()[kernel]
    assert len(parameters) == len(arguments)
    for block in range(blocks):
        Thread(memory, dict(zip(parameters, arguments, strict=True)), block, blocks).run(statements)


def words(memory: dict[int, int], address: int, count: int) -> list[int]:
    return [memory[address + 4 * n] for n in range(count)]


def blank(*blocks: tuple[int, int]) -> dict[int, int]:
    return {address + 4 * n: 0xDEAD for address, count in blocks for n in range(count)}


@pytest.mark.parametrize(("base", "step"), [(0, 0), (0xFFFFFFFF, 0), (0xAAAAAAAA, 0), (0, 1)])
def test_memory_is_filled_with_the_pattern_and_every_wrong_word_is_counted(base: int, step: int) -> None:
    memory = blank((4096, 10), (64, 1))
    memory[64] = 0
    launch(memory, "fill", 4096, 10, base, step)
    assert words(memory, 4096, 10) == [(base + n * step) & MASK32 for n in range(10)]
    launch(memory, "check", 4096, 10, base, step, 64)
    assert memory[64] == 0
    memory[4096 + 4 * 9] ^= 1
    memory[4096] ^= 0x80000000
    launch(memory, "check", 4096, 10, base, step, 64)
    assert memory[64] == 2


def test_the_product_is_that_of_the_matrices() -> None:
    size, a, b, c = 5, 1000, 2000, 3000
    memory = blank((a, 25), (b, 25), (c, 25))
    launch(memory, "matrices", a, 25, b, size)
    launch(memory, "product", c, 25, a, b, size)
    assert words(memory, a, 25) == [i + k for i in range(size) for k in range(size)]
    assert words(memory, b, 25) == [k * j + 1 for k in range(size) for j in range(size)]
    assert words(memory, c, 25) == brute(size)


def brute(size: int) -> list[int]:
    around = range(size)
    return [sum((i + k) * (k * j + 1) for k in around) & MASK32 for i in around for j in around]


def test_the_known_checksums_are_those_of_the_product() -> None:
    assert zlib.crc32(array("I", brute(64))) == CHECKSUMS[64]
    size = 1024  # by the closed form: the sum over k is j (i s1 + s2) + i n + s1
    s1, s2 = sum(range(size)), sum(k * k for k in range(size))
    words = array("I", ((j * (i * s1 + s2) + i * size + s1) & MASK32 for i in range(size) for j in range(size)))
    assert zlib.crc32(words) == CHECKSUMS[size]
