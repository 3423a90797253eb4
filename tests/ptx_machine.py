"""A machine for the PTX that Triton compiles to: all threads of all blocks in lock step, in numpy.

What it executes is what a GPU's assembler would be given, so it shows what the interpreter cannot: contracted and
approximate arithmetic, the layout of tiles over threads, shared memory and barriers. Every access to global memory must
lie in a tensor of the launch and be aligned, and no two threads may touch a word, one of them writing, without a
barrier between. Approximate instructions err within PTX's documented bounds, the same for the same operands. A branch
has to be taken by all threads or by none, as those of a loop over a kernel's argument are.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from tests.ptx_memory import Copies, GlobalMemory, SharedMemory

# Largest relative errors, uniform in +-.
ERROR = {"ex2": 2.0**-22, "rsqrt": 2.0**-22.9, "div": 2.0**-23}
TYPES: dict[str, Any] = {
    "f32": np.float32, "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "s64": np.int64, "u64": np.uint64,
    "b64": np.uint64, "u16": np.uint16, "b16": np.uint16, "s16": np.int16, "b8": np.uint8, "pred": np.bool_,
}  # fmt: skip
FLOAT = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.fmax, "min": np.fmin}
WHOLE = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
BITS = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}
COMPARE |= {"ne": np.not_equal, "neu": np.not_equal, "nan": lambda x, y: np.isnan(x) | np.isnan(y)}
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@functools.cache
def program(
    ptx: str,
) -> tuple[list[tuple[tuple[str, bool] | None, list[str], list[str]]], dict[str, int], int, list[str]]:
    """Of a kernel: instructions as (guard and whether it is negated, words of the operation, operands); the number of
    the one that follows each label; threads to a block; names of the parameters."""
    head, _, body = ptx[ptx.index(".entry") :].partition("{")
    body = body[: body.index("ret;")]
    instructions: list[tuple[tuple[str, bool] | None, list[str], list[str]]] = []
    labels = {}
    for line in body.splitlines():
        for statement in line.split("//")[0].split(";"):
            statement = statement.strip()
            if statement.endswith(":"):
                labels[statement[:-1]] = len(instructions)
                continue
            if not statement or statement.startswith((".", "{", "}")):
                continue
            guard = None
            if found := re.match(r"@(!?)(%p\d+)\s+(.*)", statement):
                guard, statement = (found[2], found[1] == "!"), found[3]
            words, _, operands = re.sub(r"\s+", " ", statement).partition(" ")
            instructions.append((guard, words.split("."), OPERAND.findall(operands)))
    threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])  # type: ignore[index]
    return instructions, labels, threads, re.findall(r"\w+_param_\d+", head)


def parts(operand: str) -> list[str]:
    """The registers of a vector operand, or the one of a plain one."""
    return [register.strip() for register in operand.strip("{} ").split(",")]


class Machine:
    """One launch."""

    def __init__(
        self, ptx: str, grid: tuple[int, int, int], arguments: list[Any], shared: int, tensors: list[tuple[int, int]]
    ) -> None:
        self.instructions, self.labels, self.threads, names = program(ptx)
        # Triton adds parameters for scratch memory that these kernels have no use for.
        self.parameters = dict(zip(names, [*arguments, *[0] * (len(names) - len(arguments))], strict=True))
        blocks = int(np.prod(grid))
        self.N = blocks * self.threads
        number = np.arange(self.N)
        self.lane, self.first = number % 32, number - number % 32
        self.block = number // self.threads
        self.registers: dict[str, np.ndarray] = {}
        nothing = np.zeros(self.N, np.uint32)
        self.special = {"%tid.x": (number % self.threads).astype(np.uint32), "%tid.y": nothing, "%tid.z": nothing}
        for axis, below in zip("xyz", (1, grid[0], grid[0] * grid[1]), strict=True):
            self.special[f"%ctaid.{axis}"] = (self.block // below % grid["xyz".index(axis)]).astype(np.uint32)
        self.memory = GlobalMemory(tensors, self.block)
        self.shared = SharedMemory(shared, blocks, self.block)
        self.copies = Copies(self.memory, self.shared)
        self.every = np.ones(self.N, bool)

    def run(self) -> None:
        number = executed = 0
        with np.errstate(all="ignore"):
            while number < len(self.instructions):
                guard, words, operands = self.instructions[number]
                self.memory.now = self.shared.now = executed
                number, executed = number + 1, executed + 1
                mask = self.every
                if guard is not None:
                    mask = self.get(guard[0], "pred") ^ guard[1]
                if words[0] != "bra":
                    self.execute(words, operands, mask)
                elif mask.all():
                    number = self.labels[operands[0]]
                elif mask.any():
                    raise NotImplementedError("a branch at which threads part")
        self.memory.check_races()
        self.shared.check_races()

    # ---- Operands.

    def get(self, operand: str, kind: str) -> np.ndarray:
        found = self.registers.get(operand)
        if found is None:
            found = self.special.get(operand)
        if found is None:
            found = self.immediate(operand, np.dtype(TYPES[kind]).itemsize)
        return found if found.dtype == TYPES[kind] else found.view(TYPES[kind])

    def immediate(self, text: str, size: int) -> np.ndarray:
        if size == 1:  # a predicate; no byte is ever immediate
            return np.full(self.N, bool(int(text, 0)))
        if text.startswith("global_smem"):
            value = int(text.partition("+")[2] or 0)
        else:
            value = int(text[2:], 16) if text[:2] in ("0f", "0F") else int(text.rstrip("U"), 0)
        return np.full(self.N, value & ((1 << 8 * size) - 1), f"u{size}")

    def put(self, register: str, value: np.ndarray, mask: np.ndarray) -> None:
        if register == "_":
            return
        if value.dtype != np.bool_:
            value = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
        if mask is not self.every:
            value = np.where(mask, value, self.registers.get(register, np.zeros(self.N, value.dtype)))
        self.registers[register] = value

    def address(self, operand: str, size: int) -> np.ndarray:
        base, _, offset = operand.strip("[] ").replace(" ", "").partition("+")
        kind = "u64" if size == 8 else "u32"
        return self.get(base, kind).astype(np.int64) + int(offset or "0", 0)

    # ---- Instructions.

    def execute(self, words: list[str], a: list[str], mask: np.ndarray) -> None:
        name, kind = words[0], words[-1]
        if name in ("ld", "st", "ldmatrix", "stmatrix"):
            self.move_memory(words, a, mask)
        elif name == "bar":
            self.memory.barrier(block=words[1] == "sync")
            self.shared.barrier(block=words[1] == "sync")
            self.copies.barrier()
        elif name == "cp":
            self.copy_beside(words, a, mask)
        elif name == "shfl":
            self.put(a[0], self.get(a[1], "b32")[self.first + self.source_lane(words[2], a)], mask)
        elif name == "mov" and "{" in a[0] + a[1]:
            self.pack(a, mask)
        elif kind == "f32x2":
            self.in_pairs(name, a, mask)
        elif name == "setp":
            self.put(a[0], COMPARE[words[1]](self.get(a[1], kind), self.get(a[2], kind)), mask)
        elif name == "selp":
            self.put(a[0], np.where(self.get(a[3], "pred"), self.get(a[1], kind), self.get(a[2], kind)), mask)
        elif name == "cvt":
            self.put(a[0], self.get(a[1], kind).astype(TYPES[words[-2]]), mask)
        elif name == "prmt":
            self.put(a[0], permuted(*(self.get(x, "b32") for x in a[1:])), mask)
        elif name in ("bfe", "shl", "shr"):
            self.put(a[0], self.shifted(name, kind, a), mask)
        elif name in ("mul", "mad") and words[1] in ("lo", "wide"):
            wide = {"s32": np.int64, "u32": np.uint64}[kind] if words[1] == "wide" else TYPES[kind]
            product = self.get(a[1], kind).astype(wide) * self.get(a[2], kind).astype(wide)
            sum_kind = kind.replace("32", "64") if words[1] == "wide" else kind
            self.put(a[0], product + self.get(a[3], sum_kind) if name == "mad" else product, mask)
        elif kind == "f32" and name != "mov":
            self.put(a[0], self.floating(words, [self.get(x, "f32") for x in a[1:]]), mask)
        else:
            values = [self.get(x, kind) for x in a[1:]]
            table = BITS | WHOLE | {"mov": np.copy, "not": np.bitwise_not, "neg": np.negative}
            if name not in table:
                raise NotImplementedError(".".join(words))
            self.put(a[0], table[name](*values), mask)

    def floating(self, words: list[str], x: list[np.ndarray]) -> np.ndarray:
        name = words[0]
        if name in FLOAT:
            return FLOAT[name](x[0], x[1])
        exact = [v.astype(np.float64) for v in x]
        if name == "fma":
            return (exact[0] * exact[1] + exact[2]).astype(np.float32)
        if name == "div" and words[1] == "rn":
            return x[0] / x[1]
        if name == "div":
            # x times the reciprocal, which the hardware's table has exactly for powers of two.
            of_power = (x[1].view(np.uint32) & np.uint32(0x7FFFFF)) == 0
            return x[0] * np.where(of_power, 1 / x[1], approximate(1 / exact[1], "div"))
        table = {"neg": lambda: -x[0], "abs": lambda: np.abs(x[0])}
        table |= {"ex2": lambda: approximate(np.exp2(exact[0]), "ex2")}
        table |= {"rsqrt": lambda: approximate(1 / np.sqrt(exact[0]), "rsqrt")}
        if name not in table:
            raise NotImplementedError(".".join(words))
        return table[name]()

    def in_pairs(self, name: str, a: list[str], mask: np.ndarray) -> None:
        both = [np.ascontiguousarray(self.get(x, "b64")).view(np.float32).reshape(-1, 2) for x in a[1:]]
        halves = [self.floating([name], [np.ascontiguousarray(v[:, half]) for v in both]) for half in (0, 1)]
        self.put(a[0], np.stack(halves, 1).reshape(-1).view(np.uint64), mask)

    def pack(self, a: list[str], mask: np.ndarray) -> None:
        if a[1].startswith("{"):
            low, high = (self.get(x, "b32").astype(np.uint64) for x in parts(a[1]))
            self.put(a[0], low | (high << np.uint64(32)), mask)
        else:
            value = self.get(a[1], "b64")
            for half, register in enumerate(parts(a[0])):
                self.put(register, (value >> np.uint64(32 * half)).astype(np.uint32), mask)

    def shifted(self, name: str, kind: str, a: list[str]) -> np.ndarray:
        value = self.get(a[1], kind)
        if name == "bfe":
            start, length = int(a[2]), int(a[3])
            field = (value.view(np.uint32) >> np.uint32(start)) & np.uint32((1 << length) - 1)
            if kind == "s32":
                return (field << np.uint32(32 - length)).view(np.int32) >> np.int32(32 - length)
            return field
        by = self.get(a[2], "u32").astype(value.dtype)
        return value << by if name == "shl" else value >> by

    def source_lane(self, mode: str, a: list[str]) -> np.ndarray:
        by = self.get(a[2], "u32").astype(np.int64)
        down = np.where(self.lane + by < 32, self.lane + by, self.lane)
        return {"bfly": self.lane ^ by, "idx": by & 31, "down": down}[mode] & 31

    def move_memory(self, words: list[str], a: list[str], mask: np.ndarray) -> None:
        load, kind = words[0].startswith("ld"), words[-1]
        if words[1] == "param":
            value = self.parameters[a[1].strip("[]")]
            made = np.float32(value) if isinstance(value, float) else None
            size = np.dtype(TYPES[kind]).itemsize
            self.put(a[0], self.immediate(str(value), size) if made is None else np.full(self.N, made), mask)
            return
        registers, address = (parts(a[0]), a[1]) if load else (parts(a[1]), a[0])
        if "matrix" in words[0]:
            if "trans" in words or words[1:4] != ["sync", "aligned", "m8n8"] or mask is not self.every:
                raise NotImplementedError(".".join(words))
            # Thread 8k + i gives the address of row i of matrix k; of each row a thread gets a word.
            rows = self.address(address, 4)
            for k, register in enumerate(registers):
                row = rows[self.first + 8 * k + self.lane // 4]
                self.shared.aligned(row, 16, mask)
                self.word(register, row + 4 * (self.lane % 4), self.shared, load, mask)
            self.shared.barrier(block=False)
            return
        memory = self.memory if words[1] == "global" else self.shared
        at, size = self.address(address, 8 if memory is self.memory else 4), np.dtype(TYPES[kind]).itemsize
        memory.aligned(at, size * len(registers), mask)
        for k, register in enumerate(registers):
            if size == 1:
                if memory is self.memory:
                    raise NotImplementedError(".".join(words))
                if load:
                    self.put(register, self.shared.load_byte(at + k, mask).astype(np.uint16), mask)
                else:
                    self.shared.store_byte(at + k, self.get(register, "b16").astype(np.uint8), mask)
            elif size == 4:
                self.word(register, at + 4 * k, memory, load, mask)
            elif load:
                low, high = (memory.load(at + 8 * k + half, mask).astype(np.uint64) for half in (0, 4))
                self.put(register, low | (high << np.uint64(32)), mask)
            else:
                value = self.get(register, "b64")
                for half in (0, 4):
                    memory.store(at + 8 * k + half, (value >> np.uint64(8 * half)).astype(np.uint32), mask)

    def copy_beside(self, words: list[str], a: list[str], mask: np.ndarray) -> None:
        if words[2] == "commit_group":
            self.copies.commit()
        elif words[2] == "wait_group":
            self.copies.wait(int(a[0]))
        else:
            given = self.get(a[3], "u32") if len(a) > 3 else np.full(self.N, int(a[2], 0))
            self.copies.begin(self.address(a[0], 4), self.address(a[1], 8), int(a[2], 0), given, mask)

    def word(self, register: str, at: np.ndarray, memory: Any, load: bool, mask: np.ndarray) -> None:
        if load:
            value = memory.load(at, mask)  # a wider register is filled up with zeros
            self.put(register, value.astype(np.uint64) if register.startswith("%rd") else value, mask)
        else:
            memory.store(at, self.get(register, "b32"), mask)


def permuted(low: np.ndarray, high: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four bytes out of eight; the highest bit of a choice asks for the byte's sign instead."""
    given = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    found = np.zeros(len(low), np.uint32)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)) & np.uint32(15)
        byte = (given >> (8 * (choice & 7)).astype(np.uint64)).astype(np.uint32) & np.uint32(255)
        byte = np.where(choice & 8, np.where(byte & 128, 255, 0), byte).astype(np.uint32)
        found |= byte << np.uint32(8 * place)
    return found


def approximate(exact: np.ndarray, name: str) -> np.ndarray:
    """Within the documented error, by a hash of the value."""
    mixed = exact.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    share = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1
    return (exact * (1 + ERROR[name] * share)).astype(np.float32)
