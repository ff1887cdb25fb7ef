"""CUDA kernels: render-and-compare with its whole optimiser on the device. The only module that imports triton.

The logic of `kernels_numba` with one program per pose: a ray per pixel finds its triangle (analytically on a cuboid, by
trying every face of any other mesh), and the steps of the optimiser follow each other inside the kernel, so the host
waits for nothing. Pixels are computed in float32, poses in float64. Frames and units as in `rendering`.
With TRITON_INTERPRET=1 in the environment everything runs on the CPU, slowly, which is how it is tested without a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.machine.devices import send

NEAR = tl.constexpr(1e-3)  # kernels_numba.NEAR; a test compares them
TINY = tl.constexpr(1e-9)  # kernels_numba.TINY
ADAM_EPSILON = tl.constexpr(1e-8)  # kernels_numba.ADAM_EPSILON
BLOCK = 512  # pixels that a program looks at together
WARPS = 8


@triton.jit
def _pick(axis, x, y, z):
    """Component `axis` (0, 1, 2, per pixel) of (x, y, z)."""
    return tl.where(axis == 0, x, tl.where(axis == 1, y, z))


@triton.jit
def _cell(t, axis, high, wx, wy, wz, cx, cy, cz, fx, fy, fz, lx, ly, lz, hx, hy, hz, nx, ny, nz):
    """Triangle of a cuboid where rays (wx, wy, wz) meet, at depth t, its low or high side of an axis.

    Returns its three corners and whether all of them are in front of the near plane.
    """
    at_x, at_y, at_z = (cx + t * wx - lx), (cy + t * wy - ly), (cz + t * wz - lz)
    sx, sy, sz = (hx - lx) / (nx - 1), (hy - ly) / (ny - 1), (hz - lz) / (nz - 1)
    # rows and columns run along (z, y) on the x sides, (z, x) on the y sides, (y, x) on the z sides
    at_r = tl.where(axis == 2, at_y / sy, at_z / sz)
    at_c = tl.where(axis == 0, at_y / sy, at_x / sx)
    n_r, n_c = tl.where(axis == 2, ny, nz), tl.where(axis == 0, ny, nx)
    i = tl.minimum(tl.maximum(at_r.to(tl.int32), 0), n_r - 2)
    j = tl.minimum(tl.maximum(at_c.to(tl.int32), 0), n_c - 2)
    second = (at_r - i) + (at_c - j) > 1.0
    side = tl.where(
        axis == 2,
        high * (ny * nx),
        tl.where(
            axis == 1, 2 * ny * nx + high * (nz * nx), 2 * ny * nx + 2 * nz * nx + high * (nz * ny)
        ),
    )
    corner = side + i * n_c + j
    b, c = corner + 1, corner + n_c
    a = tl.where(second, c + 1, corner)
    step_r, step_c = tl.where(axis == 2, fy * sy, fz * sz), tl.where(axis == 0, fy * sy, fx * sx)
    ahead_x, ahead_y, ahead_z = fx * (lx - cx), fy * (ly - cy), fz * (lz - cz)
    depth = (
        ahead_x
        + ahead_y
        + ahead_z
        + high * _pick(axis, fx * (hx - lx), fy * (hy - ly), fz * (hz - lz))
    )
    depth_b, depth_c = depth + i * step_r + (j + 1) * step_c, depth + (i + 1) * step_r + j * step_c
    depth_a = depth + tl.where(second, (i + 1) * step_r + (j + 1) * step_c, i * step_r + j * step_c)
    return a, b, c, tl.minimum(depth_a, tl.minimum(depth_b, depth_c)) >= NEAR


@triton.jit
def _hit_cuboid(wx, wy, wz, cx, cy, cz, fx, fy, fz, lx, ly, lz, hx, hy, hz, nx, ny, nz):
    """Corners of the triangle that each ray sees of a cuboid, and whether there is one.

    A ray meets the box twice; where the near rule leaves out the first triangle, the second is seen.
    """
    ux, uy, uz = (
        1.0 / tl.where(wx == 0.0, 1e-30, wx),
        1.0 / tl.where(wy == 0.0, 1e-30, wy),
        1.0 / tl.where(wz == 0.0, 1e-30, wz),
    )
    lows_x, lows_y, lows_z = (lx - cx) * ux, (ly - cy) * uy, (lz - cz) * uz
    highs_x, highs_y, highs_z = (hx - cx) * ux, (hy - cy) * uy, (hz - cz) * uz
    in_x, in_y, in_z = (
        tl.minimum(lows_x, highs_x),
        tl.minimum(lows_y, highs_y),
        tl.minimum(lows_z, highs_z),
    )
    out_x, out_y, out_z = (
        tl.maximum(lows_x, highs_x),
        tl.maximum(lows_y, highs_y),
        tl.maximum(lows_z, highs_z),
    )
    enter, leave = (
        tl.maximum(in_x, tl.maximum(in_y, in_z)),
        tl.minimum(out_x, tl.minimum(out_y, out_z)),
    )
    axis_in = tl.where(in_x == enter, 0, tl.where(in_y == enter, 1, 2))
    axis_out = tl.where(out_x == leave, 0, tl.where(out_y == leave, 1, 2))
    high_in = (_pick(axis_in, wx, wy, wz) < 0.0).to(tl.int32)
    high_out = (_pick(axis_out, wx, wy, wz) > 0.0).to(tl.int32)
    a, b, c, drawn = _cell(
        enter,
        axis_in,
        high_in,
        wx,
        wy,
        wz,
        cx,
        cy,
        cz,
        fx,
        fy,
        fz,
        lx,
        ly,
        lz,
        hx,
        hy,
        hz,
        nx,
        ny,
        nz,
    )
    a2, b2, c2, drawn2 = _cell(
        leave,
        axis_out,
        high_out,
        wx,
        wy,
        wz,
        cx,
        cy,
        cz,
        fx,
        fy,
        fz,
        lx,
        ly,
        lz,
        hx,
        hy,
        hz,
        nx,
        ny,
        nz,
    )
    drawn, drawn2 = drawn & (enter > 0.0), drawn2 & (leave > 0.0)
    return (
        tl.where(drawn, a, a2),
        tl.where(drawn, b, b2),
        tl.where(drawn, c, c2),
        (enter <= leave) & (drawn | drawn2),
    )


@triton.jit
def _hit_mesh(wx, wy, wz, cx, cy, cz, fx, fy, fz, vertices, faces, face_count):
    """As `_hit_cuboid` for any triangle mesh: every ray tries every face, the nearest wins, the first of equals."""
    nearest = wx * 0.0 + float("inf")
    a = (wx * 0.0).to(tl.int32)
    b, c = a, a
    for f in range(face_count):
        fa, fb, fc = tl.load(faces + 3 * f), tl.load(faces + 3 * f + 1), tl.load(faces + 3 * f + 2)
        ax, ay, az = (
            tl.load(vertices + 3 * fa) - cx,
            tl.load(vertices + 3 * fa + 1) - cy,
            tl.load(vertices + 3 * fa + 2) - cz,
        )
        bx, by, bz = (
            tl.load(vertices + 3 * fb) - cx,
            tl.load(vertices + 3 * fb + 1) - cy,
            tl.load(vertices + 3 * fb + 2) - cz,
        )
        gx, gy, gz = (
            tl.load(vertices + 3 * fc) - cx,
            tl.load(vertices + 3 * fc + 1) - cy,
            tl.load(vertices + 3 * fc + 2) - cz,
        )
        depth_a, depth_b, depth_c = (
            fx * ax + fy * ay + fz * az,
            fx * bx + fy * by + fz * bz,
            fx * gx + fy * gy + fz * gz,
        )
        if tl.minimum(depth_a, tl.minimum(depth_b, depth_c)) >= NEAR:
            px, py, pz = by * gz - bz * gy, bz * gx - bx * gz, bx * gy - by * gx
            wa = wx * px + wy * py + wz * pz
            wb = wx * (gy * az - gz * ay) + wy * (gz * ax - gx * az) + wz * (gx * ay - gy * ax)
            wc = wx * (ay * bz - az * by) + wy * (az * bx - ax * bz) + wz * (ax * by - ay * bx)
            total = wa + wb + wc
            low, high = tl.minimum(wa, tl.minimum(wb, wc)), tl.maximum(wa, tl.maximum(wb, wc))
            depth = (ax * px + ay * py + az * pz) / tl.where(total == 0.0, 1.0, total)
            better = ((low >= 0.0) | (high <= 0.0)) & (total != 0.0) & (depth < nearest)
            nearest = tl.where(better, depth, nearest)
            a, b, c = tl.where(better, fa, a), tl.where(better, fb, b), tl.where(better, fc, c)
    return a, b, c, nearest < float("inf")


@triton.jit
def _evaluate(
    scores,
    clutter,
    vertices,
    faces,
    face_count,
    lx,
    ly,
    lz,
    hx,
    hy,
    hz,
    nx,
    ny,
    nz,
    focal,
    px,
    py,
    pixels,
    vertex_count,
    width,
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
    CLUTTER: tl.constexpr,
    CUBOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss of one image and its derivatives by the camera centre (c) and by the rows of its rotation, as 13 numbers.

    xx, xy, xz: first row of world_from_cam, and so on. scores [P, V] and clutter [P] of this image.
    """
    gain = tl.zeros([BLOCK], tl.float32)
    g_x, g_y, g_z = gain, gain, gain
    g_xx, g_xy, g_xz, g_yx, g_yy, g_yz, g_zx, g_zy, g_zz = (
        gain,
        gain,
        gain,
        gain,
        gain,
        gain,
        gain,
        gain,
        gain,
    )
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        dx, dy = (
            ((p % width).to(tl.float32) + 0.5 - px) / focal,
            ((p // width).to(tl.float32) + 0.5 - py) / focal,
        )
        wx, wy, wz = xx * dx + xy * dy + xz, yx * dx + yy * dy + yz, zx * dx + zy * dy + zz
        if CUBOID:
            a, b, c, hit = _hit_cuboid(
                wx, wy, wz, cx, cy, cz, xz, yz, zz, lx, ly, lz, hx, hy, hz, nx, ny, nz
            )
        else:
            a, b, c, hit = _hit_mesh(
                wx, wy, wz, cx, cy, cz, xz, yz, zz, vertices, faces, face_count
            )
        hit = hit & inside
        ax, ay, az = (
            tl.load(vertices + 3 * a, hit, 0.0),
            tl.load(vertices + 3 * a + 1, hit, 0.0),
            tl.load(vertices + 3 * a + 2, hit, 0.0),
        )
        e1x, e1y, e1z = (
            tl.load(vertices + 3 * b, hit, 0.0) - ax,
            tl.load(vertices + 3 * b + 1, hit, 0.0) - ay,
            tl.load(vertices + 3 * b + 2, hit, 0.0) - az,
        )
        e2x, e2y, e2z = (
            tl.load(vertices + 3 * c, hit, 0.0) - ax,
            tl.load(vertices + 3 * c + 1, hit, 0.0) - ay,
            tl.load(vertices + 3 * c + 2, hit, 0.0) - az,
        )
        ox, oy, oz = cx - ax, cy - ay, cz - az
        kx, ky, kz = e2y * wz - e2z * wy, e2z * wx - e2x * wz, e2x * wy - e2y * wx  # e2 x D
        mx, my, mz = wy * e1z - wz * e1y, wz * e1x - wx * e1z, wx * e1y - wy * e1x  # D x e1
        determinant = e1x * kx + e1y * ky + e1z * kz
        hit = hit & (determinant != 0.0)
        inverse = 1.0 / tl.where(hit, determinant, 1.0)
        bary_b, bary_c = (
            (ox * kx + oy * ky + oz * kz) * inverse,
            (ox * mx + oy * my + oz * mz) * inverse,
        )
        t = (
            (e1z * e2y - e1y * e2z) * ox
            + (e1x * e2z - e1z * e2x) * oy
            + (e1y * e2x - e1x * e2y) * oz
        ) * inverse
        line = scores + p.to(tl.int64) * vertex_count
        s_a, s_b, s_c = (
            tl.load(line + a, hit, 0.0),
            tl.load(line + b, hit, 0.0),
            tl.load(line + c, hit, 0.0),
        )
        score = s_a + bary_b * (s_b - s_a) + bary_c * (s_c - s_a)
        score = tl.where(hit, score, 0.0)
        if CLUTTER:
            behind = tl.load(clutter + p, inside, 0.0)
            gain += tl.maximum(score - behind, 0.0)
            hit = hit & (score > behind)
        else:
            gain += score
        u, v = tl.where(hit, (s_b - s_a) * inverse, 0.0), tl.where(hit, (s_c - s_a) * inverse, 0.0)
        q_x, q_y, q_z = u * kx + v * mx, u * ky + v * my, u * kz + v * mz
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
    scores,
    clutter,
    vertices,
    faces,
    face_count,
    lx,
    ly,
    lz,
    hx,
    hy,
    hz,
    nx,
    ny,
    nz,
    focal,
    pixels,
    vertex_count,
    width,
    centre,
    rotation,
    principal,
    loss,
    grad_centre,
    grad_rotation,
    CLUTTER: tl.constexpr,
    CUBOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0)
    c, r = centre + 3 * n, rotation + 9 * n
    value, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = _evaluate(
        scores + n.to(tl.int64) * pixels * vertex_count,
        clutter + n.to(tl.int64) * pixels,
        vertices,
        faces,
        face_count,
        lx,
        ly,
        lz,
        hx,
        hy,
        hz,
        nx,
        ny,
        nz,
        focal,
        tl.load(principal + 2 * n),
        tl.load(principal + 2 * n + 1),
        pixels,
        vertex_count,
        width,
        tl.load(c),
        tl.load(c + 1),
        tl.load(c + 2),
        tl.load(r),
        tl.load(r + 1),
        tl.load(r + 2),
        tl.load(r + 3),
        tl.load(r + 4),
        tl.load(r + 5),
        tl.load(r + 6),
        tl.load(r + 7),
        tl.load(r + 8),
        CLUTTER,
        CUBOID,
        BLOCK,
    )
    tl.store(loss + n, value)
    tl.store(grad_centre + 3 * n, gx)
    tl.store(grad_centre + 3 * n + 1, gy)
    tl.store(grad_centre + 3 * n + 2, gz)
    g = grad_rotation + 9 * n
    tl.store(g, gxx)
    tl.store(g + 1, gxy)
    tl.store(g + 2, gxz)
    tl.store(g + 3, gyx)
    tl.store(g + 4, gyy)
    tl.store(g + 5, gyz)
    tl.store(g + 6, gzx)
    tl.store(g + 7, gzy)
    tl.store(g + 8, gzz)


@triton.jit
def _load6(at):
    """Six numbers that lie side by side."""
    return (
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
    )


@triton.jit
def _store6(at, a, b, c, d, e, f):
    """The inverse of `_load6`."""
    tl.store(at, a)
    tl.store(at + 1, b)
    tl.store(at + 2, c)
    tl.store(at + 3, d)
    tl.store(at + 4, e)
    tl.store(at + 5, f)


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
    scores,
    clutter,
    vertices,
    faces,
    face_count,
    lx,
    ly,
    lz,
    hx,
    hy,
    hz,
    nx,
    ny,
    nz,
    focal,
    pixels,
    vertex_count,
    width,
    poses,
    first,
    second,
    loss,
    best_loss,
    best_poses,
    average,
    since_best,
    evaluations,
    path,
    schedule,
    steps,
    rows,
    patience,
    constants,
    candidates,
    CLUTTER: tl.constexpr,
    CUBOID: tl.constexpr,
    LOCAL: tl.constexpr,
    AVERAGE: tl.constexpr,
    TRACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The optimiser of one candidate pose of one image. rows: steps, and one more to evaluate what is returned.

    schedule [steps, 3]: rate / (1 - beta1^n), sqrt(1 - beta2^n), share of iterate n in the average.
    constants [5]: beta1, beta2, local_scale, principal_scale, focal, in float64, which an argument would not be.
    """
    n = tl.program_id(0)
    beta1, beta2 = tl.load(constants), tl.load(constants + 1)
    local_scale, principal_scale, focal64 = (
        tl.load(constants + 2),
        tl.load(constants + 3),
        tl.load(constants + 4),
    )
    image = (n // candidates).to(tl.int64)
    scores += image * pixels * vertex_count
    clutter += image * pixels
    cx, cy, cz, theta, px, py = _load6(poses + 6 * n)
    m0, m1, m2, m3, m4, m5 = _load6(first + 6 * n)
    v0, v1, v2, v3, v4, v5 = _load6(second + 6 * n)
    bx, by, bz, b_theta, b_px, b_py = _load6(best_poses + 6 * n)
    ex, ey, ez, e_theta, e_px, e_py = _load6(average + 6 * n)
    best = tl.load(best_loss + n)
    value = tl.load(loss + n)
    since = tl.load(since_best + n)
    count = tl.zeros_like(since)
    path += n * rows * 7
    s = tl.where(since >= patience, steps, 0)
    if TRACE:
        _repeat(path, 0, s, cx, cy, cz, theta, px, py, value)
    while s < rows:
        if AVERAGE:
            last = s == steps
            cx, cy, cz = tl.where(last, ex, cx), tl.where(last, ey, cy), tl.where(last, ez, cz)
            theta, px, py = (
                tl.where(last, e_theta, theta),
                tl.where(last, e_px, px),
                tl.where(last, e_py, py),
            )
        # look-at: right, up, forward without theta
        distance, level = (
            tl.maximum(tl.sqrt(cx * cx + cy * cy + cz * cz), TINY),
            tl.sqrt(cx * cx + cy * cy),
        )
        fx, fy, fz = -cx / distance, -cy / distance, -cz / distance
        upright = level > TINY
        per_level = tl.where(upright, 1.0 / tl.maximum(level, TINY), 0.0)
        rx, ry = tl.where(upright, -cy * per_level, 1.0), cx * per_level
        ux, uy, uz = ry * fz, -rx * fz, rx * fy - ry * fx
        cos, sin = tl.cos(theta), tl.sin(theta)
        xx, yx, zx = cos * rx - sin * ux, cos * ry - sin * uy, -sin * uz
        xy, yy, zy = -sin * rx - cos * ux, -sin * ry - cos * uy, -cos * uz
        loss32, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = _evaluate(
            scores,
            clutter,
            vertices,
            faces,
            face_count,
            lx,
            ly,
            lz,
            hx,
            hy,
            hz,
            nx,
            ny,
            nz,
            focal,
            px.to(tl.float32),
            py.to(tl.float32),
            pixels,
            vertex_count,
            width,
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
            CLUTTER,
            CUBOID,
            BLOCK,
        )
        value = loss32.to(tl.float64)
        better = value < best
        best = tl.where(better, value, best)
        since = tl.where(better, 0, since + 1)
        count += 1
        going = (s < steps) & (since < patience)
        after = tl.where(going, s + 1, tl.maximum(s + 1, steps))
        bx, by, bz = tl.where(better, cx, bx), tl.where(better, cy, by), tl.where(better, cz, bz)
        b_theta, b_px, b_py = (
            tl.where(better, theta, b_theta),
            tl.where(better, px, b_px),
            tl.where(better, py, b_py),
        )
        if TRACE:
            _repeat(path, s, after, cx, cy, cz, theta, px, py, value)
        # chain rule through the look-at: columns x, y (down), z (forward) of the rotation -> right, up, forward -> centre
        g_theta = gxx * xy + gyx * yy + gzx * zy - (gxy * xx + gyy * yx + gzy * zx)
        g_rx, g_ry = cos * gxx - sin * gxy, cos * gyx - sin * gyy
        g_ux, g_uy, g_uz = -sin * gxx - cos * gxy, -sin * gyx - cos * gyy, -sin * gzx - cos * gzy
        g_rx, g_ry = g_rx + fy * g_uz - fz * g_uy, g_ry + fz * g_ux - fx * g_uz
        g_fx, g_fy, g_fz = gxz - g_uz * ry, gyz + g_uz * rx, gzz + g_ux * ry - g_uy * rx
        along, across = fx * g_fx + fy * g_fy + fz * g_fz, rx * g_rx + ry * g_ry
        g0 = gx - (g_fx - fx * along) / distance + (g_ry - ry * across) * per_level
        g1 = gy - (g_fy - fy * along) / distance - (g_rx - rx * across) * per_level
        g2 = gz - (g_fz - fz * along) / distance
        g3 = g_theta
        # dO/dd = t R^T q and dd/dprincipal = -1 / focal; the third column of the rotation's gradient is t q
        g4, g5 = (
            -(xx * gxz + yx * gyz + zx * gzz) / focal64,
            -(xy * gxz + yy * gyz + zy * gzz) / focal64,
        )
        if LOCAL:
            sideways, up = (g0 * rx + g1 * ry) * distance, (g0 * ux + g1 * uy + g2 * uz) * distance
            g3 = -(g0 * fx + g1 * fy + g2 * fz) * distance
            g0, g1, g2 = sideways, up, g_theta
        rate = tl.load(
            schedule + 3 * s, going, 0.0
        )  # the last evaluation is not followed by a step
        correct2 = tl.load(schedule + 3 * s + 1, going, 1.0)
        d0, m0, v0 = _adam(g0, m0, v0, beta1, beta2, rate, correct2)
        d1, m1, v1 = _adam(g1, m1, v1, beta1, beta2, rate, correct2)
        d2, m2, v2 = _adam(g2, m2, v2, beta1, beta2, rate, correct2)
        d3, m3, v3 = _adam(g3, m3, v3, beta1, beta2, rate, correct2)
        d4, m4, v4 = _adam(g4, m4, v4, beta1, beta2, rate, correct2)
        d5, m5, v5 = _adam(g5, m5, v5, beta1, beta2, rate, correct2)
        if LOCAL:
            length = distance * tl.exp(d3 * local_scale) / tl.sqrt(1.0 + d0 * d0 + d1 * d1)
            cx, cy, cz = (
                (-fx + d0 * rx + d1 * ux) * length,
                (-fy + d0 * ry + d1 * uy) * length,
                (-fz + d1 * uz) * length,
            )
            theta += d2
        else:
            cx, cy, cz, theta = cx + d0, cy + d1, cz + d2, theta + d3
        px, py = px + d4 * principal_scale, py + d5 * principal_scale
        if AVERAGE:
            share = tl.load(schedule + 3 * s + 2, going, 0.0)
            ex, ey, ez = ex + share * (cx - ex), ey + share * (cy - ey), ez + share * (cz - ez)
            e_theta, e_px, e_py = (
                e_theta + share * (theta - e_theta),
                e_px + share * (px - e_px),
                e_py + share * (py - e_py),
            )
        s = after
    _store6(poses + 6 * n, cx, cy, cz, theta, px, py)
    _store6(first + 6 * n, m0, m1, m2, m3, m4, m5)
    _store6(second + 6 * n, v0, v1, v2, v3, v4, v5)
    _store6(best_poses + 6 * n, bx, by, bz, b_theta, b_px, b_py)
    _store6(average + 6 * n, ex, ey, ez, e_theta, e_px, e_py)
    tl.store(loss + n, value)
    tl.store(best_loss + n, best)
    tl.store(since_best + n, since)
    tl.store(evaluations + n, count)


def _placed(values: NDArray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An array on the device, as a tensor."""
    return send(torch.as_tensor(values, dtype=dtype), device)


def place_mesh(vertices: NDArray, faces: NDArray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] float32 and faces [F, 3] int32 as the kernels read them."""
    return _placed(vertices, torch.float32, device), _placed(faces, torch.int32, device)


def _scene_arguments(shape: tuple, focal: float, width: int, scores: Tensor) -> tuple:
    """What both kernels take between the clutter and the poses. shape: `rendering.triton_shape`."""
    vertices, faces, low, high, samples, _ = shape
    box = (*low.tolist(), *high.tolist(), *samples.tolist())
    return vertices, faces, len(faces), *box, focal, scores.shape[1], scores.shape[2], width


def compare(
    shape: tuple,
    centre: Tensor,
    rotation: Tensor,
    focal: float,
    principal: Tensor,
    width: int,
    scores: Tensor,
    clutter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B] and gradients [B, 3], [B, 3, 3] of one pose per image, float32, as `kernels_numba.compare`.

    centre [B, 3], rotation [B, 3, 3], principal [B, 2], scores [B, P, V], clutter [B, P] or None: float32, contiguous, on the GPU.
    """
    loss, grad_centre, grad_rotation = (
        torch.empty_like(centre[:, 0]),
        torch.empty_like(centre),
        torch.empty_like(rotation),
    )
    with torch.cuda.device_of(scores):
        _compare_kernel[(len(scores),)](
            scores,
            scores if clutter is None else clutter,
            *_scene_arguments(shape, focal, width, scores),
            centre,
            rotation,
            principal,
            loss,
            grad_centre,
            grad_rotation,
            CLUTTER=clutter is not None,
            CUBOID=bool(shape[-1]),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    return loss, grad_centre, grad_rotation


def advance(
    shape: tuple,
    focal: float,
    width: int,
    scores: Tensor,
    clutter: Tensor | None,
    state: tuple[Tensor, ...],
    rates: NDArray,
    done: int,
    beta1: float,
    beta2: float,
    local_scale: float,
    principal_scale: float,
    averaging: float,
    patience: int,
    finish: bool,
    path: Tensor,
) -> None:
    """As `kernels_numba.advance`, without waiting for the device.

    state: poses, first, second [B, K, 6], loss, best_loss [B, K], best_poses, average [B, K, 6], float64, since_best,
    evaluations [B, K], int64; all contiguous.
    """
    count = done + 1 + np.arange(len(rates))
    shares = averaging / (1 - (1 - averaging) ** count) if averaging else np.zeros(len(rates))
    schedule = np.stack([rates / (1 - beta1**count), np.sqrt(1 - beta2**count), shares], 1)
    constants = np.array([beta1, beta2, local_scale, principal_scale, focal])
    schedule, constants = (_placed(x, torch.float64, scores.device) for x in (schedule, constants))
    candidates = state[0].shape[1]
    with torch.cuda.device_of(scores):
        _advance_kernel[(len(scores) * candidates,)](
            scores,
            scores if clutter is None else clutter,
            *_scene_arguments(shape, focal, width, scores),
            *state,
            path,
            schedule,
            len(rates),
            len(rates) + finish,
            patience,
            constants,
            candidates,
            CLUTTER=clutter is not None,
            CUBOID=bool(shape[-1]),
            LOCAL=local_scale > 0,
            AVERAGE=averaging > 0,
            TRACE=path.shape[2] > 0,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
