"""The CUDA kernels: one comparison, and the whole optimiser.

There is one program per pose. The steps of the optimiser follow each other inside the kernel, so
the host never waits. Pixels are computed in float32, poses in float64. Letters mean the same as in
`triton_loss`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neural_mesh.compare.triton_loss import evaluate
from neural_mesh.compare.triton_numbers import (
    ADAM_EPSILON,
    AVERAGE,
    BEST_LOSS,
    BEST_POSE,
    BETA1,
    BETA2,
    CANDIDATES,
    EVALUATIONS,
    FIRST,
    FOCAL,
    LOCAL,
    LOCAL_SCALE,
    LOSS,
    MEAN_POSE,
    PATIENCE,
    PIXELS,
    POSE,
    PRINCIPAL_SCALE,
    ROWS,
    SECOND,
    SINCE_BEST,
    STATE,
    STEPS,
    TINY,
    TRACE,
    VERTICES,
    load6,
    store6,
    whole,
)


@triton.jit
def compare_kernel(
    scores, clutter, vertices, faces, constants, views, gradients, FLAGS: tl.constexpr
):
    """Loss and gradients of one pose of one image.

    views [B, 14]: centre, rotation, principal point. gradients [B, 13]: receives the loss, and its
    derivatives by centre and rotation.
    """
    n = tl.program_id(0)
    image = n.to(tl.int64)
    pixels = whole(constants, PIXELS)
    view = views + 14 * n
    value, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = evaluate(
        scores + image * pixels * whole(constants, VERTICES),
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
    store6(out + 1, gx, gy, gz, gxx, gxy, gxz)
    store6(out + 7, gyx, gyy, gyz, gzx, gzy, gzz)


# ---- the optimiser ----


@triton.jit
def _repeat(path, begin, end, a, b, c, d, e, f, loss):
    """Write a pose and its loss into the rows from begin to end (exclusive) of a path."""
    row = begin
    while row < end:
        store6(path + 7 * row, a, b, c, d, e, f)
        tl.store(path + 7 * row + 6, loss)
        row += 1


@triton.jit
def _adam(g, first, second, beta1, beta2, rate, correct2):
    """Adam's update of one variable: its step and both moments.

    rate is already divided by 1 - beta1^n, and correct2 is sqrt(1 - beta2^n).
    """
    first += (1.0 - beta1) * (g - first)
    second += (1.0 - beta2) * (g * g - second)
    return -rate * first / (tl.sqrt(second) / correct2 + ADAM_EPSILON), first, second


@triton.jit
def advance_kernel(
    scores, clutter, vertices, faces, constants, state, path, schedule, FLAGS: tl.constexpr
):
    """The optimiser of one candidate pose of one image.

    state [B, K, STATE]: see `triton_numbers`; changed in place. path [B, K, rows, 7]: receives
    poses and losses if traced. schedule [steps, 3]: rate / (1 - beta1^n), sqrt(1 - beta2^n), share
    of iterate n in the average.
    """
    # What all steps share.
    n = tl.program_id(0)
    beta1 = tl.load(constants + BETA1)
    beta2 = tl.load(constants + BETA2)
    local_scale = tl.load(constants + LOCAL_SCALE)
    principal_scale = tl.load(constants + PRINCIPAL_SCALE)
    focal = tl.load(constants + FOCAL)
    patience = whole(constants, PATIENCE)
    steps = whole(constants, STEPS)
    rows = whole(constants, ROWS)
    pixels = whole(constants, PIXELS)
    image = (n // whole(constants, CANDIDATES)).to(tl.int64)
    scores += image * pixels * whole(constants, VERTICES)
    clutter += image * pixels
    state += n * STATE
    path += n * rows * 7
    # The candidate: its pose, both moments, best pose (b) and running average (e).
    cx, cy, cz, theta, px, py = load6(state + POSE)
    m0, m1, m2, m3, m4, m5 = load6(state + FIRST)
    v0, v1, v2, v3, v4, v5 = load6(state + SECOND)
    bx, by, bz, b_theta, b_px, b_py = load6(state + BEST_POSE)
    ex, ey, ez, e_theta, e_px, e_py = load6(state + MEAN_POSE)
    value = tl.load(state + LOSS)
    best = tl.load(state + BEST_LOSS)
    since = tl.load(state + SINCE_BEST).to(tl.int32)
    count = tl.zeros_like(since)
    # A candidate that stopped in an earlier stage gets at most the last evaluation.
    s = tl.where(since >= patience, steps, 0)
    if TRACE & FLAGS:
        _repeat(path, 0, s, cx, cy, cz, theta, px, py, value)
    while s < rows:
        if AVERAGE & FLAGS:
            # The last evaluation is the average's.
            last = s == steps
            cx = tl.where(last, ex, cx)
            cy = tl.where(last, ey, cy)
            cz = tl.where(last, ez, cz)
            theta = tl.where(last, e_theta, theta)
            px = tl.where(last, e_px, px)
            py = tl.where(last, e_py, py)

        # The look-at has the axes right (r), up (u) and forward (f), and is then turned by theta.
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
        loss32, gx, gy, gz, gxx, gxy, gxz, gyx, gyy, gyz, gzx, gzy, gzz = evaluate(
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

        # Keep the best iterate, and decide whether this candidate takes another step.
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
        if TRACE & FLAGS:
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
        # In the camera's frame the variables are (sideways, up, theta, log distance).
        if LOCAL & FLAGS:
            sideways = (g0 * rx + g1 * ry) * distance
            up = (g0 * ux + g1 * uy + g2 * uz) * distance
            g3 = -(g0 * fx + g1 * fy + g2 * fz) * distance
            g0 = sideways
            g1 = up
            g2 = g_theta

        # Take Adam's step. None follows the last evaluation, whose rate is therefore 0.
        rate = tl.load(schedule + 3 * s, going, 0.0)
        correct2 = tl.load(schedule + 3 * s + 1, going, 1.0)
        d0, m0, v0 = _adam(g0, m0, v0, beta1, beta2, rate, correct2)
        d1, m1, v1 = _adam(g1, m1, v1, beta1, beta2, rate, correct2)
        d2, m2, v2 = _adam(g2, m2, v2, beta1, beta2, rate, correct2)
        d3, m3, v3 = _adam(g3, m3, v3, beta1, beta2, rate, correct2)
        d4, m4, v4 = _adam(g4, m4, v4, beta1, beta2, rate, correct2)
        d5, m5, v5 = _adam(g5, m5, v5, beta1, beta2, rate, correct2)
        if LOCAL & FLAGS:
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
        if AVERAGE & FLAGS:
            share = tl.load(schedule + 3 * s + 2, going, 0.0)
            ex += share * (cx - ex)
            ey += share * (cy - ey)
            ez += share * (cz - ez)
            e_theta += share * (theta - e_theta)
            e_px += share * (px - e_px)
            e_py += share * (py - e_py)
        s = after
    store6(state + POSE, cx, cy, cz, theta, px, py)
    store6(state + FIRST, m0, m1, m2, m3, m4, m5)
    store6(state + SECOND, v0, v1, v2, v3, v4, v5)
    store6(state + BEST_POSE, bx, by, bz, b_theta, b_px, b_py)
    store6(state + MEAN_POSE, ex, ey, ez, e_theta, e_px, e_py)
    tl.store(state + LOSS, value)
    tl.store(state + BEST_LOSS, best)
    tl.store(state + SINCE_BEST, since.to(tl.float64))
    tl.store(state + EVALUATIONS, count.to(tl.float64))
