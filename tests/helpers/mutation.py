"""Random changes of the bytes of a file, as bad disks, cut downloads and attackers make them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np

EXTREMES = [
    b"\x00" * 4,
    b"\xff" * 4,
    struct.pack("<i", 2**31 - 1),
    struct.pack("<i", -(2**31)),
    struct.pack("<q", 2**62),
    b"nan",
    b"1e999",
    b"-1",
]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """One to four random changes.

    Bits, bytes, cuts, repetitions, and numbers that are as large as they get.
    """
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        at = int(random.integers(len(data)))
        length = int(random.integers(1, 65))
        kind = int(random.integers(7))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            extreme = EXTREMES[int(random.integers(len(EXTREMES)))]
            data[at : at + len(extreme)] = extreme
        elif kind == 5:
            del data[at:]
        else:
            data[at : at + length] = random.bytes(length)
    return bytes(data)


def mutated_zip(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the time the archive itself is changed, else one of its members.

    Then checksums do not hide what lies deeper.
    """
    if random.random() < 0.5:
        return mutated(content, random)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        victim = int(random.integers(len(old.infolist())))
        for i, member in enumerate(old.infolist()):
            stored = old.read(member)
            new.writestr(member.filename, mutated(stored, random) if i == victim else stored)
    return out.getvalue()


def mutated_mat(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the time the compressed file is changed, else what is inside, compressed again."""
    if random.random() < 0.5:
        return mutated(content, random)
    inner = mutated(zlib.decompress(content[136:]), random)
    packed = zlib.compress(inner)
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed
