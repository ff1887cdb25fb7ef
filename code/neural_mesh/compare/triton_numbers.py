"""Constants, positions of numbers in arrays, and small functions that the CUDA kernels share.

The Triton of torch 2.6 has no tuples. So functions inside a kernel take scalars where numba's take
named tuples, and numbers that are the same for all pixels come in one array of `constants`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neural_mesh.compare import scene

NEAR = tl.constexpr(scene.NEAR)
TINY = tl.constexpr(scene.TINY)
ADAM_EPSILON = tl.constexpr(scene.ADAM_EPSILON)
BLOCK = tl.constexpr(512)  # pixels that a program handles at a time

# Bits of FLAGS; each combination is a variant of a kernel that is compiled by itself.
CLUTTER = tl.constexpr(1)  # scores count only above the clutter's
CUBOID = tl.constexpr(2)  # the mesh is a cuboid
LOCAL = tl.constexpr(4)  # steps are taken in the camera's frame
AVERAGE = tl.constexpr(8)  # the average of the iterates is what is returned
TRACE = tl.constexpr(16)  # every iterate is written down

# Positions in `constants`, which is float64.
LOW = tl.constexpr(0)  # three: the cuboid's lower corner
HIGH = tl.constexpr(3)  # three: its upper corner
SAMPLES = tl.constexpr(6)  # three: vertices along each axis
FOCAL = tl.constexpr(9)  # in cells
WIDTH = tl.constexpr(10)  # of the map, in cells
PIXELS = tl.constexpr(11)  # cells of the map
VERTICES = tl.constexpr(12)
FACES = tl.constexpr(13)
BETA1 = tl.constexpr(14)
BETA2 = tl.constexpr(15)
LOCAL_SCALE = tl.constexpr(16)
PRINCIPAL_SCALE = tl.constexpr(17)
PATIENCE = tl.constexpr(18)
STEPS = tl.constexpr(19)
ROWS = tl.constexpr(20)  # steps, and one more where the returned pose is evaluated
CANDIDATES = tl.constexpr(21)  # per image

# Positions in the `state` of a candidate, which is float64.
POSE = tl.constexpr(0)  # six: centre, theta, principal point
FIRST = tl.constexpr(6)  # six: Adam's first moments
SECOND = tl.constexpr(12)  # six: Adam's second moments
BEST_POSE = tl.constexpr(18)  # six
MEAN_POSE = tl.constexpr(24)  # six: the running average
LOSS = tl.constexpr(30)
BEST_LOSS = tl.constexpr(31)
SINCE_BEST = tl.constexpr(32)
EVALUATIONS = tl.constexpr(33)
STATE = tl.constexpr(34)  # length of the state


# ---- small functions ----


@triton.jit
def real(constants, index):
    """A number of `constants` in float32."""
    return tl.load(constants + index).to(tl.float32)


@triton.jit
def whole(constants, index):
    """A whole number of `constants`."""
    return tl.load(constants + index).to(tl.int32)


@triton.jit
def pick(axis, x, y, z):
    """Component `axis` (0, 1, 2, per pixel) of (x, y, z)."""
    return tl.where(axis == 0, x, tl.where(axis == 1, y, z))


@triton.jit
def min3(a, b, c):
    return tl.minimum(a, tl.minimum(b, c))


@triton.jit
def max3(a, b, c):
    return tl.maximum(a, tl.maximum(b, c))


@triton.jit
def load_vertex(vertices, index, mask):
    """Coordinates of vertices, 0 where they are masked."""
    x = tl.load(vertices + 3 * index, mask, 0.0)
    y = tl.load(vertices + 3 * index + 1, mask, 0.0)
    z = tl.load(vertices + 3 * index + 2, mask, 0.0)
    return x, y, z


@triton.jit
def load6(at):
    """Load six numbers that are stored one after another."""
    a = tl.load(at)
    b = tl.load(at + 1)
    c = tl.load(at + 2)
    d = tl.load(at + 3)
    e = tl.load(at + 4)
    f = tl.load(at + 5)
    return a, b, c, d, e, f


@triton.jit
def store6(at, a, b, c, d, e, f):
    """Store six numbers one after another."""
    tl.store(at, a)
    tl.store(at + 1, b)
    tl.store(at + 2, c)
    tl.store(at + 3, d)
    tl.store(at + 4, e)
    tl.store(at + 5, f)
