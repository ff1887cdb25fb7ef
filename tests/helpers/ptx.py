"""Compiled CUDA kernels on the CPU: PTX, the code that a GPU's driver gets, one instruction after
the other in NumPy.

All threads of a program take each instruction together, which is one of the orders that a GPU may
take. So a branch on which threads disagree is an error here, as are reads and writes outside of the
kernel's tensors, and different values written by several threads to one place. Covers what Triton
makes of this project's kernels, no more.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SHARED_BYTES = 1 << 16
LOCAL_BYTES = 1 << 10  # of each thread
CONSTANTS_AT = 1 << 60  # addresses of the program's constants, far from all tensors
KINDS = ("f32", "f64", "s16", "s32", "s64", "u16", "u32", "u64", "b16", "b32", "b64", "pred")
NUMPY = {"f": "float", "s": "int", "u": "uint", "b": "uint"}
COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
BITWISE = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
}
UNARY = {"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "not": np.invert}
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.fmin,
    "max": np.fmax,
    "rem": np.fmod,
}
COMPUTE = {*BITWISE, *UNARY, *ARITHMETIC, "div", "fma", "mad", "cvt", "cvta", "selp", "shfl", "bfe"}
ROUND = {"rzi": np.trunc, "rni": np.rint}


class UnknownInstruction(Exception):
    """This Triton has compiled a kernel to something that is not covered here."""


def dtype_of(kind: str) -> np.dtype:
    """NumPy's type of f32, b64 and the like; pred is bool."""
    return np.dtype(bool if kind == "pred" else NUMPY[kind[0]] + kind[1:])


def bits_of(kind: str) -> np.dtype:
    """The unsigned type that registers hold values of a kind in."""
    return np.dtype(bool if kind == "pred" else f"uint{kind[1:]}")


def bits_of_register(name: str) -> np.dtype:
    """What LLVM names registers after: %rs, %r or %f, %rd or %fd."""
    return np.dtype(
        np.uint16
        if name.startswith("%rs")
        else np.uint64
        if name.startswith(("%rd", "%fd"))
        else np.uint32
    )


@dataclass
class Program:
    """A compiled kernel. text: PTX. threads: of a program in Triton's sense, a block of CUDA's."""

    text: str
    threads: int
    executed: int = 0  # instructions, of all programs so far
    labels: dict[str, int] = field(default_factory=dict)
    steps: list[Callable[[], int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        head, _, rest = self.text[self.text.index(".visible .entry") :].partition("{")
        self.parameters = re.findall(r"(\w+_param_\d+)[,\s)]", head)
        self.constants = {
            name: self._constant(int(size), values)
            for name, size, values in re.findall(
                r"\.global \.align \d+ \.b8 (\S+)\[(\d+)\] = \{([^}]*)\}", self.text
            )
        }
        self.at = {name: CONSTANTS_AT + (i << 20) for i, name in enumerate(self.constants)} | {
            "global_smem": 0
        }
        self.at |= dict.fromkeys(re.findall(r"__local_depot\d+", self.text), 0)
        self.registers: dict[str, NDArray] = {}
        body = re.split(r"\n\}", rest)[0]  # what follows are the functions that it calls
        for line in self._lines(body):
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.steps)
            else:
                self.steps.append(self._step(line))

    @staticmethod
    def _constant(size: int, values: str) -> NDArray:
        given = np.array([int(value) for value in values.split(",")], np.uint8)
        return np.pad(given, (0, size - len(given)))

    @staticmethod
    def _lines(body: str) -> list[str]:
        """Labels and instructions, without comments, directives and the braces of blocks."""
        kept = [line.strip() for line in re.sub(r"//.*", "", body).splitlines()]
        text = "\n".join(
            line
            for line in kept
            if line and not line.startswith((".loc", ".reg", ".local", ".param", ".b8", ".pragma"))
        )
        found = (" ".join(part.split()).lstrip("{} ") for part in re.split(r";|(?<=:)\n", text))
        return [line for line in found if line and not line.startswith(".")]

    def run(self, programs: int, arguments: list[Tensor | float | int]) -> None:
        """Run programs 0 .. programs - 1 with the kernel's arguments, whose tensors are read and
        changed in place.
        """
        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for x in arguments
            if isinstance(x, Tensor)
        }
        self.memory = [
            (at, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at)))
            for at, size in storages.items()
            if size
        ]
        self.memory += [(self.at[name], values) for name, values in self.constants.items()]
        kinds = [np.float32 if isinstance(x, float) else np.int32 for x in arguments]
        values = [
            np.uint64(x.data_ptr()) if isinstance(x, Tensor) else kind(x)
            for x, kind in zip(arguments, kinds, strict=True)
        ]
        values += [np.uint64(0)] * (
            len(self.parameters) - len(values)
        )  # Triton's own, not used by these kernels
        self.arguments = dict(zip(self.parameters, values, strict=True))
        with np.errstate(all="ignore"):
            for self.program in range(programs):
                self.shared, self.local = (
                    np.zeros(SHARED_BYTES, np.uint8),
                    np.zeros(self.threads * LOCAL_BYTES, np.uint8),
                )
                self.registers = {"%SPL": np.zeros(self.threads, np.uint64)}
                at: int | None = 0
                while at is not None and at < len(self.steps):
                    self.executed += 1
                    then = self.steps[at]()
                    at = at + 1 if then is None else then if then >= 0 else None

    # ---- operands ----

    def _value(self, operand: str, kind: str) -> Callable[[], NDArray]:
        """How to read an operand, as an array of all threads."""
        bits, dtype, n = bits_of(kind), dtype_of(kind), self.threads
        if operand == "%tid.x":
            return lambda: np.arange(n, dtype=bits)
        if operand == "%ctaid.x":
            return lambda: np.full(n, self.program, bits)
        if operand.startswith("%") or (operand.isidentifier() and operand not in self.at):
            return lambda: self.registers[operand].view(dtype)
        if kind == "pred":
            constant = np.full(n, int(operand) != 0)
        elif operand in self.at:
            constant = np.full(n, self.at[operand], bits)
        else:
            number = int(operand[2:], 16) if operand[:2] in ("0f", "0d") else int(operand, 0)
            constant = np.full(n, number % (1 << 8 * bits.itemsize), bits)
        return lambda: constant.view(dtype)

    def _set(self, register: str, values: NDArray, bits: np.dtype, active: NDArray | None) -> None:
        values = np.ascontiguousarray(values).view(bits)
        if active is not None:
            values = np.where(active, values, self.registers.get(register, np.zeros_like(values)))
        self.registers[register] = values

    # ---- instructions ----

    def _step(self, line: str) -> Callable[[], int | None]:
        """An instruction, ready to run: it returns where to go on, if not at the next one; -1 is
        the end.
        """
        negated, guard, opcode, rest = re.fullmatch(
            r"(?:@(!?)(%p\d+) )?([\w.:]+) ?(.*)", line
        ).groups()
        # Newer compilers say whose shared memory it is: that of the program's own threads.
        words = opcode.replace("shared::cta", "shared").split(".")
        operands = [part.strip() for part in re.split(r",(?![^{[]*[}\]])", rest)] if rest else []

        def active() -> NDArray | None:
            return None if guard is None else self.registers[guard] ^ bool(negated)

        build = getattr(self, f"_{words[0]}", None)
        if words[0] in ("bar", "ret"):
            return lambda: None if words[0] == "bar" else -1
        if build is not None:
            return build(line, words, operands, active)
        if words[0] in COMPUTE and words[-1] in KINDS and "cc" not in words and "hi" not in words:
            compute = self._compute(words, operands)
            if compute is not None:
                kind = words[-1] if "wide" not in words else f"{words[-1][0]}64"
                if words[0] == "cvt":
                    kind = words[-2]
                return lambda: self._set(operands[0], compute(), bits_of(kind), active())
        return self._unknown(line)

    @staticmethod
    def _unknown(line: str) -> Callable[[], int | None]:
        def step() -> None:
            raise UnknownInstruction(line)

        return step

    def _compute(self, words: list[str], operands: list[str]) -> Callable[[], NDArray] | None:
        """The result of an instruction that only computes."""
        name, kind = words[0], words[-1]
        if name == "shfl":
            value, lanes = (
                self._value(operands[1], "b32"),
                np.arange(self.threads) ^ int(operands[2], 0),
            )
            return (lambda: value()[lanes]) if words[2] == "bfly" else None
        if name == "selp":
            yes, no = (self._value(x, kind) for x in operands[1:3])
            return lambda: np.where(self.registers[operands[3]], yes(), no())
        values = [
            self._value(x, "u32" if name in ("shl", "shr") and i else kind)
            for i, x in enumerate(operands[1:])
        ]
        if name == "cvta":
            return values[0]
        if name == "cvt":
            return self._convert(words, values[0])
        if name == "bfe":
            first, mask = int(operands[2]), (1 << int(operands[3])) - 1
            return lambda: values[0]() >> first & mask
        if name in UNARY:
            return lambda: UNARY[name](values[0]())
        if name in BITWISE:
            return lambda: BITWISE[name](values[0](), values[1]().astype(dtype_of(kind)))
        if name == "div":
            return lambda: np.divide(values[0](), values[1]()).astype(
                dtype_of(kind)
            )  # of integers towards zero
        if name in ("fma", "mad") or "wide" in words:
            return self._multiply_add(words, operands)
        return lambda: ARITHMETIC[name](values[0](), values[1]())

    def _multiply_add(self, words: list[str], operands: list[str]) -> Callable[[], NDArray]:
        """a * b + c in twice the precision, rounded once; `wide` gives twice the width."""
        kind = words[-1]
        wide = f"{kind[0]}64" if "wide" in words else kind
        inner = np.dtype(
            {"float32": np.float64, "float64": np.longdouble}.get(
                dtype_of(kind).name, dtype_of(wide)
            )
        )
        a, b = (self._value(x, kind) for x in operands[1:3])
        c = (
            self._value(operands[3], wide)
            if len(operands) > 3
            else lambda: np.zeros(1, dtype_of(wide))
        )
        return lambda: (a().astype(inner) * b() + c()).astype(dtype_of(wide))

    def _convert(self, words: list[str], value: Callable[[], NDArray]) -> Callable[[], NDArray]:
        target = dtype_of(words[-2])
        if words[1] not in ROUND:
            return lambda: value().astype(target)
        limits = np.iinfo(target)
        return lambda: (
            ROUND[words[1]](np.nan_to_num(value().astype(np.float64)))
            .clip(limits.min, limits.max)
            .astype(target)
        )

    def _setp(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], None]:
        """A comparison; one whose name ends in u is true for what is not a number, the others are
        false.
        """
        name, kind = words[1], words[-1]
        test, unordered = (COMPARE[name], False) if name in COMPARE else (COMPARE[name[:-1]], True)
        a, b = (self._value(x, kind) for x in operands[1:3])

        def step() -> None:
            x, y = a(), b()
            self.registers[operands[0]] = (
                np.where(np.isnan(x) | np.isnan(y), unordered, test(x, y))
                if kind[0] == "f"
                else test(x, y)
            )

        return step

    def _bra(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], int | None]:
        def step() -> int | None:
            taken = active()
            if taken is None or taken.all():
                return self.labels[operands[0]]
            assert not taken.any(), f"threads disagree: {line}"
            return None

        return step

    def _mov(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], None]:
        """Between registers, or a pair of 32 bits and one of 64."""
        apart, together = (re.findall(r"[%\w]+", x) if "{" in x else None for x in operands)
        if apart is None and together is None:
            value, bits = self._value(operands[1], words[-1]), bits_of(words[-1])
            return lambda: self._set(operands[0], value(), bits, active())
        whole = self._value(operands[1], "b64") if apart else None
        parts = None if apart else [self._value(x, "b32") for x in together]

        def step() -> None:
            if parts:
                pair = np.stack([part() for part in parts], 1)
                self._set(operands[0], pair.view(np.uint64)[:, 0], np.dtype(np.uint64), active())
            else:
                for name, half in zip(
                    apart, np.ascontiguousarray(whole()).view(np.uint32).reshape(-1, 2).T
                ):
                    self._set(name, half, np.dtype(np.uint32), active())

        return step

    def _ld(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], None]:
        if words[1] == "param":
            return self._parameter(line, words, operands, active)
        return self._access(line, words, operands[1], operands[0], active, self._read)

    def _st(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], None]:
        return self._access(line, words, operands[0], operands[1], active, self._write)

    def _parameter(
        self, line: str, words: list[str], operands: list[str], active: Callable
    ) -> Callable[[], None]:
        name = operands[1].strip("[] ")
        if name not in self.parameters:
            return self._unknown(line)
        bits = bits_of_register(operands[0])

        def step() -> None:
            value = np.array([self.arguments[name]])
            value = (
                value.astype(np.int64).view(np.uint64)
                if value.itemsize < bits.itemsize
                else value.view(bits)
            )
            self._set(operands[0], np.repeat(value, self.threads), bits, active())

        return step

    def _access(
        self, line: str, words: list[str], place: str, names: str, active: Callable, act: Callable
    ) -> Callable[[], None]:
        """A read or write of one or several neighbouring values."""
        if words[1] not in ("global", "shared", "local"):
            return self._unknown(line)
        base, offset = re.fullmatch(r"\[ ?([%\w]+) ?\+? ?(\d+)? ?\]", place).groups()
        address = self._value(base, "u32" if re.match(r"%r\d", base) else "u64")
        bits = bits_of(words[-1])
        registers = re.findall(r"%\w+", names)

        def step() -> None:
            guard = active()
            threads = np.arange(self.threads) if guard is None else np.flatnonzero(guard)
            for i, register in enumerate(registers):
                at = address().astype(np.uint64)[threads] + np.uint64(
                    int(offset or 0) + i * bits.itemsize
                )
                if words[1] == "local":
                    at = at + (threads * LOCAL_BYTES).astype(np.uint64)
                act(register, words[1], at, bits, threads, guard)

        return step

    def _cells(self, space: str, at: NDArray, bits: np.dtype) -> tuple[NDArray, NDArray]:
        """The memory that addresses are in, as an array, and the places in it."""
        first, memory = 0, self.shared if space == "shared" else self.local
        if space == "global":
            found = [
                (start, values)
                for start, values in self.memory
                if start <= at[0] < start + len(values)
            ]
            assert found, f"no tensor at {at[0]:#x}"
            first, memory = found[0]
        inside = (at - np.uint64(first)).astype(np.int64)
        assert (
            inside.min() >= 0
            and inside.max() + bits.itemsize <= len(memory)
            and not (inside % bits.itemsize).any()
        ), "out of bounds"
        return memory[: len(memory) // bits.itemsize * bits.itemsize].view(
            bits
        ), inside // bits.itemsize

    def _read(
        self,
        register: str,
        space: str,
        at: NDArray,
        bits: np.dtype,
        threads: NDArray,
        guard: NDArray | None,
    ) -> None:
        wide = bits_of_register(register)
        values = np.zeros(self.threads, wide)
        if len(threads):
            memory, cells = self._cells(space, at, bits)
            values[threads] = memory[cells]
        self._set(register, values, wide, guard)

    def _write(
        self,
        register: str,
        space: str,
        at: NDArray,
        bits: np.dtype,
        threads: NDArray,
        guard: NDArray | None,
    ) -> None:
        if not len(threads):
            return
        memory, cells = self._cells(space, at, bits)
        values = self.registers[register][threads].astype(bits)
        memory[cells] = values
        assert (memory[cells] == values).all(), (
            "several threads write different values to one place"
        )
