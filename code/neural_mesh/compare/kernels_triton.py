"""CUDA kernels: render-and-compare with its whole optimiser on the device.

The only module that imports triton. The logic of `kernels_numba` with one program per pose: a ray
per pixel finds its triangle (analytically on a cuboid, by trying every face of any other mesh), and
the steps of the optimiser follow each other inside the kernel, so the host waits for nothing.
Pixels are computed in float32, poses in float64. Frames and units as in `scene`. With
TRITON_INTERPRET=1 in the environment everything runs on the CPU, slowly, which is how it is tested
without a GPU.

Letters. A vector is three scalars with the endings x, y, z: c the camera's centre, w a ray, f the
viewing direction, all in the object frame. xx, xy, xz are the first row of the rotation
object_from_cv_cam, yx.. and zx.. the others; g_.. are derivatives of the loss. The Triton of torch
2.6 has no tuples, so that functions inside a kernel take scalars where numba's take named tuples;
what is the same for all pixels comes in one array of `constants`.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from neural_mesh.compare.scene import (
    Candidates,
    Gradients,
    MapScores,
    MeshArrays,
    Stage,
    StepRules,
    Views,
)
from neural_mesh.machine.devices import send

NEAR = tl.constexpr(1e-3)  # scene.NEAR; a test compares them
TINY = tl.constexpr(1e-9)  # scene.TINY
ADAM_EPSILON = tl.constexpr(1e-8)  # scene.ADAM_EPSILON
BLOCK = tl.constexpr(512)  # pixels that a program looks at together
WARPS = 8

# Bits of FLAGS, by which variants of a kernel are compiled.
CLUTTER = tl.constexpr(1)  # scores count only above the clutter's
CUBOID = tl.constexpr(2)  # the mesh is a cuboid
LOCAL = tl.constexpr(4)  # steps are taken in the camera's frame
AVERAGE = tl.constexpr(8)  # the average of the iterates is what is returned
TRACE = tl.constexpr(16)  # every iterate is written down

# Where a number lies in `constants`, float64.
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
ROWS = tl.constexpr(20)  # steps, and one more where what is returned is evaluated
CANDIDATES = tl.constexpr(21)  # per image

# Where a number of a candidate lies in `state`, float64.
POSE = tl.constexpr(0)  # six: centre, theta, principal point
FIRST = tl.constexpr(6)  # six: Adam's first moments
SECOND = tl.constexpr(12)  # six: Adam's second moments
BEST_POSE = tl.constexpr(18)  # six
MEAN_POSE = tl.constexpr(24)  # six: the running average
LOSS = tl.constexpr(30)
BEST_LOSS = tl.constexpr(31)
SINCE_BEST = tl.constexpr(32)
EVALUATIONS = tl.constexpr(33)
STATE = tl.constexpr(34)  # numbers of a candidate


# ---- small things ----


@triton.jit
def _real(constants, index):
    """A number of `constants` in float32."""
    return tl.load(constants + index).to(tl.float32)


@triton.jit
def _whole(constants, index):
    """A whole number of `constants`."""
    return tl.load(constants + index).to(tl.int32)


@triton.jit
def _pick(axis, x, y, z):
    """Component `axis` (0, 1, 2, per pixel) of (x, y, z)."""
    return tl.where(axis == 0, x, tl.where(axis == 1, y, z))


@triton.jit
def _min3(a, b, c):
    return tl.minimum(a, tl.minimum(b, c))


@triton.jit
def _max3(a, b, c):
    return tl.maximum(a, tl.maximum(b, c))


@triton.jit
def _load_vertex(vertices, index, mask):
    """Coordinates of vertices, 0 where they are masked."""
    x = tl.load(vertices + 3 * index, mask, 0.0)
    y = tl.load(vertices + 3 * index + 1, mask, 0.0)
    z = tl.load(vertices + 3 * index + 2, mask, 0.0)
    return x, y, z


@triton.jit
def _load6(at):
    """Six numbers that lie side by side."""
    a = tl.load(at)
    b = tl.load(at + 1)
    c = tl.load(at + 2)
    d = tl.load(at + 3)
    e = tl.load(at + 4)
    f = tl.load(at + 5)
    return a, b, c, d, e, f


@triton.jit
def _store6(at, a, b, c, d, e, f):
    """The inverse of `_load6`."""
    tl.store(at, a)
    tl.store(at + 1, b)
    tl.store(at + 2, c)
    tl.store(at + 3, d)
    tl.store(at + 4, e)
    tl.store(at + 5, f)


# ---- which triangle a ray sees ----


@triton.jit
def _cell(t, axis, high, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants):
    """Triangle of a cuboid where rays (w) meet, at depth t, its low or high side of an axis.

    Returns its three corners and whether all of them are in front of the near plane.
    """
    lx = _real(constants, LOW)
    ly = _real(constants, LOW + 1)
    lz = _real(constants, LOW + 2)
    hx = _real(constants, HIGH)
    hy = _real(constants, HIGH + 1)
    hz = _real(constants, HIGH + 2)
    nx = _whole(constants, SAMPLES)
    ny = _whole(constants, SAMPLES + 1)
    nz = _whole(constants, SAMPLES + 2)
    at_x = cx + t * wx - lx
    at_y = cy + t * wy - ly
    at_z = cz + t * wz - lz
    sx = (hx - lx) / (nx - 1)
    sy = (hy - ly) / (ny - 1)
    sz = (hz - lz) / (nz - 1)
    # Rows and columns run along (z, y) on the x sides, (z, x) on the y sides, (y, x) on the z ones.
    at_r = tl.where(axis == 2, at_y / sy, at_z / sz)
    at_c = tl.where(axis == 0, at_y / sy, at_x / sx)
    n_r = tl.where(axis == 2, ny, nz)
    n_c = tl.where(axis == 0, ny, nx)
    i = tl.minimum(tl.maximum(at_r.to(tl.int32), 0), n_r - 2)
    j = tl.minimum(tl.maximum(at_c.to(tl.int32), 0), n_c - 2)
    # A cell has two triangles; the second lies beyond its diagonal.
    second = (at_r - i) + (at_c - j) > 1.0
    # Vertices are numbered side by side: low z, high z, low y, high y, low x, high x.
    of_z = high * (ny * nx)
    of_y = 2 * ny * nx + high * (nz * nx)
    of_x = 2 * ny * nx + 2 * nz * nx + high * (nz * ny)
    side = tl.where(axis == 2, of_z, tl.where(axis == 1, of_y, of_x))
    corner = side + i * n_c + j
    b = corner + 1
    c = corner + n_c
    a = tl.where(second, c + 1, corner)
    # Depths of the corners are sums of what each axis adds.
    step_r = tl.where(axis == 2, fy * sy, fz * sz)
    step_c = tl.where(axis == 0, fy * sy, fx * sx)
    across = _pick(axis, fx * (hx - lx), fy * (hy - ly), fz * (hz - lz))
    ahead_x = fx * (lx - cx)
    ahead_y = fy * (ly - cy)
    ahead_z = fz * (lz - cz)
    depth = ahead_x + ahead_y + ahead_z + high * across
    depth_b = depth + i * step_r + (j + 1) * step_c
    depth_c = depth + (i + 1) * step_r + j * step_c
    far = (i + 1) * step_r + (j + 1) * step_c
    depth_a = depth + tl.where(second, far, i * step_r + j * step_c)
    return a, b, c, _min3(depth_a, depth_b, depth_c) >= NEAR


@triton.jit
def _hit_cuboid(wx, wy, wz, cx, cy, cz, fx, fy, fz, constants):
    """Corners of the triangle that each ray sees of a cuboid, and whether there is one.

    A ray meets the box twice; where the near rule leaves out the first triangle, the second is
    seen.
    """
    # Depths at which the ray crosses the planes of the six sides.
    ux = 1.0 / tl.where(wx == 0.0, 1e-30, wx)
    uy = 1.0 / tl.where(wy == 0.0, 1e-30, wy)
    uz = 1.0 / tl.where(wz == 0.0, 1e-30, wz)
    low_x = (_real(constants, LOW) - cx) * ux
    low_y = (_real(constants, LOW + 1) - cy) * uy
    low_z = (_real(constants, LOW + 2) - cz) * uz
    high_x = (_real(constants, HIGH) - cx) * ux
    high_y = (_real(constants, HIGH + 1) - cy) * uy
    high_z = (_real(constants, HIGH + 2) - cz) * uz
    in_x = tl.minimum(low_x, high_x)
    in_y = tl.minimum(low_y, high_y)
    in_z = tl.minimum(low_z, high_z)
    out_x = tl.maximum(low_x, high_x)
    out_y = tl.maximum(low_y, high_y)
    out_z = tl.maximum(low_z, high_z)
    # It is inside the box between the last way in and the first way out.
    enter = _max3(in_x, in_y, in_z)
    leave = _min3(out_x, out_y, out_z)
    axis_in = tl.where(in_x == enter, 0, tl.where(in_y == enter, 1, 2))
    axis_out = tl.where(out_x == leave, 0, tl.where(out_y == leave, 1, 2))
    high_in = (_pick(axis_in, wx, wy, wz) < 0.0).to(tl.int32)
    high_out = (_pick(axis_out, wx, wy, wz) > 0.0).to(tl.int32)
    a, b, c, drawn = _cell(enter, axis_in, high_in, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants)
    a2, b2, c2, drawn2 = _cell(
        leave, axis_out, high_out, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants
    )
    drawn = drawn & (enter > 0.0)
    drawn2 = drawn2 & (leave > 0.0)
    a = tl.where(drawn, a, a2)
    b = tl.where(drawn, b, b2)
    c = tl.where(drawn, c, c2)
    return a, b, c, (enter <= leave) & (drawn | drawn2)


@triton.jit
def _hit_mesh(wx, wy, wz, cx, cy, cz, fx, fy, fz, vertices, faces, constants):
    """As `_hit_cuboid` for any triangle mesh: every ray tries every face, the nearest wins, the
    first of equals.
    """
    nearest = wx * 0.0 + float("inf")
    a = (wx * 0.0).to(tl.int32)
    b = a
    c = a
    for f in range(_whole(constants, FACES)):
        fa = tl.load(faces + 3 * f)
        fb = tl.load(faces + 3 * f + 1)
        fc = tl.load(faces + 3 * f + 2)
        # The corners seen from the camera, and their depths.
        ax = tl.load(vertices + 3 * fa) - cx
        ay = tl.load(vertices + 3 * fa + 1) - cy
        az = tl.load(vertices + 3 * fa + 2) - cz
        bx = tl.load(vertices + 3 * fb) - cx
        by = tl.load(vertices + 3 * fb + 1) - cy
        bz = tl.load(vertices + 3 * fb + 2) - cz
        gx = tl.load(vertices + 3 * fc) - cx
        gy = tl.load(vertices + 3 * fc + 1) - cy
        gz = tl.load(vertices + 3 * fc + 2) - cz
        depth_a = fx * ax + fy * ay + fz * az
        depth_b = fx * bx + fy * by + fz * bz
        depth_c = fx * gx + fy * gy + fz * gz
        if _min3(depth_a, depth_b, depth_c) >= NEAR:
            # On which side of the planes through the camera and two corners each ray lies.
            px = by * gz - bz * gy
            py = bz * gx - bx * gz
            pz = bx * gy - by * gx
            wa = wx * px + wy * py + wz * pz
            wb = wx * (gy * az - gz * ay) + wy * (gz * ax - gx * az) + wz * (gx * ay - gy * ax)
            wc = wx * (ay * bz - az * by) + wy * (az * bx - ax * bz) + wz * (ax * by - ay * bx)
            total = wa + wb + wc
            inside = (_min3(wa, wb, wc) >= 0.0) | (_max3(wa, wb, wc) <= 0.0)
            depth = (ax * px + ay * py + az * pz) / tl.where(total == 0.0, 1.0, total)
            better = inside & (total != 0.0) & (depth < nearest)
            nearest = tl.where(better, depth, nearest)
            a = tl.where(better, fa, a)
            b = tl.where(better, fb, b)
            c = tl.where(better, fc, c)
    return a, b, c, nearest < float("inf")


# ---- loss and gradient of one image ----


@triton.jit
def _evaluate(
    scores,
    clutter,
    vertices,
    faces,
    constants,
    px,
    py,
    cx,
    cy,
    cz,
    xx,
    xy,
    xz,
    yx,
    yy,
    yz,
    zx,
    zy,
    zz,
    FLAGS: tl.constexpr,
):
    """Loss of one image and its derivatives by the camera's centre and rotation, as 13 numbers.

    scores [P, V] and clutter [P] of this image; (px, py): principal point in cells.
    """
    focal = _real(constants, FOCAL)
    width = _whole(constants, WIDTH)
    pixels = _whole(constants, PIXELS)
    vertex_count = _whole(constants, VERTICES)
    gain = tl.zeros([BLOCK], tl.float32)
    g_x = gain
    g_y = gain
    g_z = gain
    g_xx = gain
    g_xy = gain
    g_xz = gain
    g_yx = gain
    g_yy = gain
    g_yz = gain
    g_zx = gain
    g_zy = gain
    g_zz = gain
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        # The ray of each pixel, in the camera's frame (d, with depth 1) and in the object's (w).
        dx = ((p % width).to(tl.float32) + 0.5 - px) / focal
        dy = ((p // width).to(tl.float32) + 0.5 - py) / focal
        wx = xx * dx + xy * dy + xz
        wy = yx * dx + yy * dy + yz
        wz = zx * dx + zy * dy + zz
        if FLAGS & CUBOID:
            a, b, c, hit = _hit_cuboid(wx, wy, wz, cx, cy, cz, xz, yz, zz, constants)
        else:
            a, b, c, hit = _hit_mesh(wx, wy, wz, cx, cy, cz, xz, yz, zz, vertices, faces, constants)
        hit = hit & inside
        # Where the ray meets the triangle: barycentric coordinates and depth, by Cramer's rule.
        ax, ay, az = _load_vertex(vertices, a, hit)
        bx, by, bz = _load_vertex(vertices, b, hit)
        gx, gy, gz = _load_vertex(vertices, c, hit)
        e1x = bx - ax
        e1y = by - ay
        e1z = bz - az
        e2x = gx - ax
        e2y = gy - ay
        e2z = gz - az
        ox = cx - ax
        oy = cy - ay
        oz = cz - az
        kx = e2y * wz - e2z * wy  # e2 x w
        ky = e2z * wx - e2x * wz
        kz = e2x * wy - e2y * wx
        mx = wy * e1z - wz * e1y  # w x e1
        my = wz * e1x - wx * e1z
        mz = wx * e1y - wy * e1x
        determinant = e1x * kx + e1y * ky + e1z * kz
        hit = hit & (determinant != 0.0)
        inverse = 1.0 / tl.where(hit, determinant, 1.0)
        bary_b = (ox * kx + oy * ky + oz * kz) * inverse
        bary_c = (ox * mx + oy * my + oz * mz) * inverse
        along_normal = (
            (e1z * e2y - e1y * e2z) * ox
            + (e1x * e2z - e1z * e2x) * oy
            + (e1y * e2x - e1x * e2y) * oz
        )
        t = along_normal * inverse
        # The score is interpolated between the corners'.
        line = scores + p.to(tl.int64) * vertex_count
        s_a = tl.load(line + a, hit, 0.0)
        s_b = tl.load(line + b, hit, 0.0)
        s_c = tl.load(line + c, hit, 0.0)
        score = s_a + bary_b * (s_b - s_a) + bary_c * (s_c - s_a)
        score = tl.where(hit, score, 0.0)
        if FLAGS & CLUTTER:
            behind = tl.load(clutter + p, inside, 0.0)
            gain += tl.maximum(score - behind, 0.0)
            hit = hit & (score > behind)
        else:
            gain += score
        # q: derivative of the score by the camera's centre; t q d^T by its rotation.
        u = tl.where(hit, (s_b - s_a) * inverse, 0.0)
        v = tl.where(hit, (s_c - s_a) * inverse, 0.0)
        q_x = u * kx + v * mx
        q_y = u * ky + v * my
        q_z = u * kz + v * mz
        t = tl.where(hit, t, 0.0)
        g_x += q_x
        g_y += q_y
        g_z += q_z
        g_xx += t * q_x * dx
        g_xy += t * q_x * dy
        g_xz += t * q_x
        g_yx += t * q_y * dx
        g_yy += t * q_y * dy
        g_yz += t * q_y
        g_zx += t * q_z * dx
        g_zy += t * q_z * dy
        g_zz += t * q_z
    share = -1.0 / pixels
    return (
        1.0 + tl.sum(gain) * share,
        tl.sum(g_x) * share,
        tl.sum(g_y) * share,
        tl.sum(g_z) * share,
        tl.sum(g_xx) * share,
        tl.sum(g_xy) * share,
        tl.sum(g_xz) * share,
        tl.sum(g_yx) * share,
        tl.sum(g_yy) * share,
        tl.sum(g_yz) * share,
        tl.sum(g_zx) * share,
        tl.sum(g_zy) * share,
        tl.sum(g_zz) * share,
    )


@triton.jit
def _compare_kernel(
    scores, clutter, vertices, faces, constants, views, gradients, FLAGS: tl.constexpr
):
    """Loss and gradients of one pose of one image.

    views [B, 14]: centre, rotation, principal point. gradients [B, 13]: loss, and derivatives by
    centre and rotation.
    """
    n = tl.program_id(0)
    image = n.to(tl.int64)
    pixels = _whole(constants, PIXELS)
    view = views + 14 * n
    value, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = _evaluate(
        scores + image * pixels * _whole(constants, VERTICES),
        clutter + image * pixels,
        vertices,
        faces,
        constants,
        tl.load(view + 12),
        tl.load(view + 13),
        tl.load(view),
        tl.load(view + 1),
        tl.load(view + 2),
        tl.load(view + 3),
        tl.load(view + 4),
        tl.load(view + 5),
        tl.load(view + 6),
        tl.load(view + 7),
        tl.load(view + 8),
        tl.load(view + 9),
        tl.load(view + 10),
        tl.load(view + 11),
        FLAGS,
    )
    out = gradients + 13 * n
    tl.store(out, value)
    _store6(out + 1, gx, gy, gz, gxx, gxy, gxz)
    _store6(out + 7, gyx, gyy, gyz, gzx, gzy, gzz)


# ---- the optimiser ----


@triton.jit
def _repeat(path, begin, end, a, b, c, d, e, f, loss):
    """A pose and its loss in rows begin to end of a path."""
    row = begin
    while row < end:
        _store6(path + 7 * row, a, b, c, d, e, f)
        tl.store(path + 7 * row + 6, loss)
        row += 1


@triton.jit
def _adam(g, first, second, beta1, beta2, rate, correct2):
    """One number's Adam update: step and both moments; rate is already divided by 1 - beta1^n."""
    first += (1.0 - beta1) * (g - first)
    second += (1.0 - beta2) * (g * g - second)
    return -rate * first / (tl.sqrt(second) / correct2 + ADAM_EPSILON), first, second


@triton.jit
def _advance_kernel(
    scores, clutter, vertices, faces, constants, state, path, schedule, FLAGS: tl.constexpr
):
    """The optimiser of one candidate pose of one image.

    state [B, K, STATE]. path [B, K, rows, 7]. schedule [steps, 3]: rate / (1 - beta1^n),
    sqrt(1 - beta2^n), share of iterate n in the average.
    """
    n = tl.program_id(0)
    beta1 = tl.load(constants + BETA1)
    beta2 = tl.load(constants + BETA2)
    local_scale = tl.load(constants + LOCAL_SCALE)
    principal_scale = tl.load(constants + PRINCIPAL_SCALE)
    focal = tl.load(constants + FOCAL)
    patience = _whole(constants, PATIENCE)
    steps = _whole(constants, STEPS)
    rows = _whole(constants, ROWS)
    pixels = _whole(constants, PIXELS)
    image = (n // _whole(constants, CANDIDATES)).to(tl.int64)
    scores += image * pixels * _whole(constants, VERTICES)
    clutter += image * pixels
    state += n * STATE
    path += n * rows * 7
    cx, cy, cz, theta, px, py = _load6(state + POSE)
    m0, m1, m2, m3, m4, m5 = _load6(state + FIRST)
    v0, v1, v2, v3, v4, v5 = _load6(state + SECOND)
    bx, by, bz, b_theta, b_px, b_py = _load6(state + BEST_POSE)
    ex, ey, ez, e_theta, e_px, e_py = _load6(state + MEAN_POSE)
    value = tl.load(state + LOSS)
    best = tl.load(state + BEST_LOSS)
    since = tl.load(state + SINCE_BEST).to(tl.int32)
    count = tl.zeros_like(since)
    s = tl.where(since >= patience, steps, 0)
    if FLAGS & TRACE:
        _repeat(path, 0, s, cx, cy, cz, theta, px, py, value)
    while s < rows:
        if FLAGS & AVERAGE:
            # The last evaluation is the average's.
            last = s == steps
            cx = tl.where(last, ex, cx)
            cy = tl.where(last, ey, cy)
            cz = tl.where(last, ez, cz)
            theta = tl.where(last, e_theta, theta)
            px = tl.where(last, e_px, px)
            py = tl.where(last, e_py, py)

        # The look-at: right (r), up (u) and forward (f), then turned by theta.
        distance = tl.maximum(tl.sqrt(cx * cx + cy * cy + cz * cz), TINY)
        level = tl.sqrt(cx * cx + cy * cy)
        fx = -cx / distance
        fy = -cy / distance
        fz = -cz / distance
        upright = level > TINY
        per_level = tl.where(upright, 1.0 / tl.maximum(level, TINY), 0.0)
        rx = tl.where(upright, -cy * per_level, 1.0)
        ry = cx * per_level
        ux = ry * fz
        uy = -rx * fz
        uz = rx * fy - ry * fx
        cos = tl.cos(theta)
        sin = tl.sin(theta)
        xx = cos * rx - sin * ux
        yx = cos * ry - sin * uy
        zx = -sin * uz
        xy = -sin * rx - cos * ux
        yy = -sin * ry - cos * uy
        zy = -cos * uz
        loss32, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = _evaluate(
            scores,
            clutter,
            vertices,
            faces,
            constants,
            px.to(tl.float32),
            py.to(tl.float32),
            cx.to(tl.float32),
            cy.to(tl.float32),
            cz.to(tl.float32),
            xx.to(tl.float32),
            xy.to(tl.float32),
            fx.to(tl.float32),
            yx.to(tl.float32),
            yy.to(tl.float32),
            fy.to(tl.float32),
            zx.to(tl.float32),
            zy.to(tl.float32),
            fz.to(tl.float32),
            FLAGS,
        )

        # Bookkeeping: the best iterate, and whether this candidate goes on.
        value = loss32.to(tl.float64)
        better = value < best
        best = tl.where(better, value, best)
        since = tl.where(better, 0, since + 1)
        count += 1
        going = (s < steps) & (since < patience)
        after = tl.where(going, s + 1, tl.maximum(s + 1, steps))
        bx = tl.where(better, cx, bx)
        by = tl.where(better, cy, by)
        bz = tl.where(better, cz, bz)
        b_theta = tl.where(better, theta, b_theta)
        b_px = tl.where(better, px, b_px)
        b_py = tl.where(better, py, b_py)
        if FLAGS & TRACE:
            _repeat(path, s, after, cx, cy, cz, theta, px, py, value)

        # Chain rule through the look-at: the rotation's columns x, y (down), z (forward) -> right,
        # up, forward -> centre.
        g_theta = gxx * xy + gyx * yy + gzx * zy - (gxy * xx + gyy * yx + gzy * zx)
        g_ux = -sin * gxx - cos * gxy
        g_uy = -sin * gyx - cos * gyy
        g_uz = -sin * gzx - cos * gzy
        g_rx = cos * gxx - sin * gxy + fy * g_uz - fz * g_uy
        g_ry = cos * gyx - sin * gyy + fz * g_ux - fx * g_uz
        g_fx = gxz - g_uz * ry
        g_fy = gyz + g_uz * rx
        g_fz = gzz + g_ux * ry - g_uy * rx
        along = fx * g_fx + fy * g_fy + fz * g_fz
        across = rx * g_rx + ry * g_ry
        g0 = gx - (g_fx - fx * along) / distance + (g_ry - ry * across) * per_level
        g1 = gy - (g_fy - fy * along) / distance - (g_rx - rx * across) * per_level
        g2 = gz - (g_fz - fz * along) / distance
        g3 = g_theta
        # By the principal point: dO/dd = t R^T q and dd/dprincipal = -1 / focal, and the third
        # column of the rotation's gradient is t q.
        g4 = -(xx * gxz + yx * gyz + zx * gzz) / focal
        g5 = -(xy * gxz + yy * gyz + zy * gzz) / focal
        if FLAGS & LOCAL:
            sideways = (g0 * rx + g1 * ry) * distance
            up = (g0 * ux + g1 * uy + g2 * uz) * distance
            g3 = -(g0 * fx + g1 * fy + g2 * fz) * distance
            g0 = sideways
            g1 = up
            g2 = g_theta

        # Adam's step. The last evaluation is not followed by one: its rate is 0.
        rate = tl.load(schedule + 3 * s, going, 0.0)
        correct2 = tl.load(schedule + 3 * s + 1, going, 1.0)
        d0, m0, v0 = _adam(g0, m0, v0, beta1, beta2, rate, correct2)
        d1, m1, v1 = _adam(g1, m1, v1, beta1, beta2, rate, correct2)
        d2, m2, v2 = _adam(g2, m2, v2, beta1, beta2, rate, correct2)
        d3, m3, v3 = _adam(g3, m3, v3, beta1, beta2, rate, correct2)
        d4, m4, v4 = _adam(g4, m4, v4, beta1, beta2, rate, correct2)
        d5, m5, v5 = _adam(g5, m5, v5, beta1, beta2, rate, correct2)
        if FLAGS & LOCAL:
            longer = tl.exp(d3 * local_scale)
            length = distance * longer / tl.sqrt(1.0 + d0 * d0 + d1 * d1)
            cx = (-fx + d0 * rx + d1 * ux) * length
            cy = (-fy + d0 * ry + d1 * uy) * length
            cz = (-fz + d1 * uz) * length
            theta += d2
        else:
            cx += d0
            cy += d1
            cz += d2
            theta += d3
        px += d4 * principal_scale
        py += d5 * principal_scale
        if FLAGS & AVERAGE:
            share = tl.load(schedule + 3 * s + 2, going, 0.0)
            ex += share * (cx - ex)
            ey += share * (cy - ey)
            ez += share * (cz - ez)
            e_theta += share * (theta - e_theta)
            e_px += share * (px - e_px)
            e_py += share * (py - e_py)
        s = after
    _store6(state + POSE, cx, cy, cz, theta, px, py)
    _store6(state + FIRST, m0, m1, m2, m3, m4, m5)
    _store6(state + SECOND, v0, v1, v2, v3, v4, v5)
    _store6(state + BEST_POSE, bx, by, bz, b_theta, b_px, b_py)
    _store6(state + MEAN_POSE, ex, ey, ez, e_theta, e_px, e_py)
    tl.store(state + LOSS, value)
    tl.store(state + BEST_LOSS, best)
    tl.store(state + SINCE_BEST, since.to(tl.float64))
    tl.store(state + EVALUATIONS, count.to(tl.float64))


# ---- the host ----


def place_mesh(mesh: MeshArrays, device: torch.device) -> MeshArrays:
    """The same mesh with its vertices (float32) and faces on the device, where they stay."""
    vertices = send(torch.as_tensor(mesh.vertices, dtype=torch.float32), device)
    faces = send(torch.as_tensor(mesh.faces, dtype=torch.int32), device)
    return mesh._replace(vertices=vertices, faces=faces)


def _scene_constants(mesh: MeshArrays, focal: float, scores: MapScores) -> list[float]:
    """The first of the kernels' constants, in the order of their names."""
    box = [*mesh.low.tolist(), *mesh.high.tolist(), *mesh.samples.tolist()]
    _, pixels, vertex_count = scores.scores.shape
    return [*box, focal, scores.width, pixels, vertex_count, len(mesh.faces)]


def _flags(mesh: MeshArrays, scores: MapScores) -> int:
    clutter = CLUTTER.value if scores.use_clutter else 0
    cuboid = CUBOID.value if mesh.is_cuboid else 0
    return clutter | cuboid


def _send_numbers(values: list | np.ndarray, device: torch.device) -> Tensor:
    """Numbers on the device, in float64."""
    return send(torch.as_tensor(values, dtype=torch.float64), device)


def compare(mesh: MeshArrays, focal: float, scores: MapScores, views: Views) -> Gradients:
    """Loss and gradients of one pose per image in float32, as `kernels_numba.compare`.

    All tensors are contiguous and on the GPU: mesh from `place_mesh`, scores and views in float32.
    """
    parts = (views.centre, views.rotation.flatten(1), views.principal_xy)
    packed = torch.cat(parts, 1)
    gradients = packed.new_empty(len(packed), 13)
    constants = _send_numbers(_scene_constants(mesh, focal, scores), packed.device)
    with torch.cuda.device_of(packed):
        _compare_kernel[(len(packed),)](
            scores.scores,
            scores.clutter,
            mesh.vertices,
            mesh.faces,
            constants,
            packed,
            gradients,
            FLAGS=_flags(mesh, scores),
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    rotation = gradients[:, 4:].reshape(-1, 3, 3)
    return Gradients(gradients[:, 0], gradients[:, 1:4], rotation)


def _schedule(rules: StepRules, stage: Stage) -> np.ndarray:
    """[steps, 3] as `_advance_kernel` takes it."""
    count = stage.done + 1 + np.arange(len(stage.rates))
    shares = np.zeros(len(stage.rates))
    if rules.averaging:
        shares = rules.averaging / (1 - (1 - rules.averaging) ** count)
    rates = stage.rates / (1 - rules.beta1**count)
    return np.stack([rates, np.sqrt(1 - rules.beta2**count), shares], 1)


def _pack(candidates: Candidates) -> Tensor:
    """Candidates as `_advance_kernel` takes them, [B, K, STATE]."""
    poses = (
        candidates.poses,
        candidates.first,
        candidates.second,
        candidates.best_poses,
        candidates.average,
    )
    numbers = (
        candidates.loss,
        candidates.best_loss,
        candidates.since_best.double(),
        candidates.evaluations.double(),
    )
    return torch.cat([*poses, torch.stack(numbers, -1)], -1)


def _unpack(state: Tensor, candidates: Candidates) -> None:
    """Write what the kernel has left in `state` back into the candidates."""
    poses, first, second, best_poses, average, numbers = state.split([6, 6, 6, 6, 6, 4], -1)
    loss, best_loss, since_best, evaluations = numbers.unbind(-1)
    changed = Candidates(
        poses, first, second, loss, best_loss, best_poses, average, since_best, evaluations
    )
    for old, new in zip(candidates, changed, strict=True):
        old.copy_(new)


def advance(
    mesh: MeshArrays,
    focal: float,
    scores: MapScores,
    candidates: Candidates,
    rules: StepRules,
    stage: Stage,
    path: Tensor,
) -> None:
    """As `kernels_numba.advance`, without waiting for the device.

    All tensors are contiguous and on the GPU; path [B, K, rows, 7], or [B, K, 0, 7] if not traced.
    """
    count = candidates.poses.shape[1]
    optimiser = [rules.beta1, rules.beta2, rules.local_scale, rules.principal_scale]
    loop = [rules.patience, len(stage.rates), stage.rows, count]
    constants = [*_scene_constants(mesh, focal, scores), *optimiser, *loop]
    flags = _flags(mesh, scores)
    flags |= LOCAL.value if rules.local_scale > 0 else 0
    flags |= AVERAGE.value if rules.averaging > 0 else 0
    flags |= TRACE.value if path.shape[2] > 0 else 0
    state = _pack(candidates)
    with torch.cuda.device_of(state):
        _advance_kernel[(len(scores.scores) * count,)](
            scores.scores,
            scores.clutter,
            mesh.vertices,
            mesh.faces,
            _send_numbers(constants, state.device),
            state,
            path,
            _send_numbers(_schedule(rules, stage), state.device),
            FLAGS=flags,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    _unpack(state, candidates)
