"""The triangle that a ray sees, found on a GPU.

On a cuboid it is computed, on any other mesh every face is tried.

A vector is three scalars that end in x, y and z: c is the camera's centre, w a ray, f the viewing
direction, all in the object frame.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neural_mesh.compare.triton_numbers import (
    FACES,
    HIGH,
    LOW,
    NEAR,
    SAMPLES,
    max3,
    min3,
    pick,
    real,
    whole,
)


@triton.jit
def cell(t, axis, high, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants):
    """The triangle of a cuboid that rays w meet at depth t, on the low or high side of an axis.

    Returns the triangle's three corners, and whether all of them are in front of the near plane.
    """
    lx = real(constants, LOW)
    ly = real(constants, LOW + 1)
    lz = real(constants, LOW + 2)
    hx = real(constants, HIGH)
    hy = real(constants, HIGH + 1)
    hz = real(constants, HIGH + 2)
    nx = whole(constants, SAMPLES)
    ny = whole(constants, SAMPLES + 1)
    nz = whole(constants, SAMPLES + 2)
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
    # The depth of a corner is a sum of one term for each axis.
    step_r = tl.where(axis == 2, fy * sy, fz * sz)
    step_c = tl.where(axis == 0, fy * sy, fx * sx)
    across = pick(axis, fx * (hx - lx), fy * (hy - ly), fz * (hz - lz))
    ahead_x = fx * (lx - cx)
    ahead_y = fy * (ly - cy)
    ahead_z = fz * (lz - cz)
    depth = ahead_x + ahead_y + ahead_z + high * across
    depth_b = depth + i * step_r + (j + 1) * step_c
    depth_c = depth + (i + 1) * step_r + j * step_c
    far = (i + 1) * step_r + (j + 1) * step_c
    depth_a = depth + tl.where(second, far, i * step_r + j * step_c)
    return a, b, c, min3(depth_a, depth_b, depth_c) >= NEAR


@triton.jit
def hit_cuboid(wx, wy, wz, cx, cy, cz, fx, fy, fz, constants):
    """Corners of the triangle of a cuboid that each ray sees, and whether it sees one.

    A ray meets the box twice; where the near rule leaves out the first triangle, the ray sees the
    second.
    """
    # Compute the depths at which the ray crosses the planes of the six sides.
    ux = 1.0 / tl.where(wx == 0.0, 1e-30, wx)
    uy = 1.0 / tl.where(wy == 0.0, 1e-30, wy)
    uz = 1.0 / tl.where(wz == 0.0, 1e-30, wz)
    low_x = (real(constants, LOW) - cx) * ux
    low_y = (real(constants, LOW + 1) - cy) * uy
    low_z = (real(constants, LOW + 2) - cz) * uz
    high_x = (real(constants, HIGH) - cx) * ux
    high_y = (real(constants, HIGH + 1) - cy) * uy
    high_z = (real(constants, HIGH + 2) - cz) * uz
    in_x = tl.minimum(low_x, high_x)
    in_y = tl.minimum(low_y, high_y)
    in_z = tl.minimum(low_z, high_z)
    out_x = tl.maximum(low_x, high_x)
    out_y = tl.maximum(low_y, high_y)
    out_z = tl.maximum(low_z, high_z)
    # The ray is inside the box between its last entrance and its first exit.
    enter = max3(in_x, in_y, in_z)
    leave = min3(out_x, out_y, out_z)
    axis_in = tl.where(in_x == enter, 0, tl.where(in_y == enter, 1, 2))
    axis_out = tl.where(out_x == leave, 0, tl.where(out_y == leave, 1, 2))
    high_in = (pick(axis_in, wx, wy, wz) < 0.0).to(tl.int32)
    high_out = (pick(axis_out, wx, wy, wz) > 0.0).to(tl.int32)
    a, b, c, drawn = cell(enter, axis_in, high_in, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants)
    a2, b2, c2, drawn2 = cell(
        leave, axis_out, high_out, wx, wy, wz, cx, cy, cz, fx, fy, fz, constants
    )
    drawn = drawn & (enter > 0.0)
    drawn2 = drawn2 & (leave > 0.0)
    a = tl.where(drawn, a, a2)
    b = tl.where(drawn, b, b2)
    c = tl.where(drawn, c, c2)
    return a, b, c, (enter <= leave) & (drawn | drawn2)


@triton.jit
def hit_mesh(wx, wy, wz, cx, cy, cz, fx, fy, fz, vertices, faces, constants):
    """The same as `hit_cuboid` for any triangle mesh: every ray tries every face.

    The nearest face wins, and the first of several at the same depth.
    """
    nearest = wx * 0.0 + float("inf")
    a = (wx * 0.0).to(tl.int32)
    b = a
    c = a
    for f in range(whole(constants, FACES)):
        fa = tl.load(faces + 3 * f)
        fb = tl.load(faces + 3 * f + 1)
        fc = tl.load(faces + 3 * f + 2)
        # Compute the corners relative to the camera, and their depths.
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
        if min3(depth_a, depth_b, depth_c) >= NEAR:
            # Test on which side of the planes through the camera and two corners each ray lies.
            px = by * gz - bz * gy
            py = bz * gx - bx * gz
            pz = bx * gy - by * gx
            wa = wx * px + wy * py + wz * pz
            wb = wx * (gy * az - gz * ay) + wy * (gz * ax - gx * az) + wz * (gx * ay - gy * ax)
            wc = wx * (ay * bz - az * by) + wy * (az * bx - ax * bz) + wz * (ax * by - ay * bx)
            total = wa + wb + wc
            inside = (min3(wa, wb, wc) >= 0.0) | (max3(wa, wb, wc) <= 0.0)
            depth = (ax * px + ay * py + az * pz) / tl.where(total == 0.0, 1.0, total)
            better = inside & (total != 0.0) & (depth < nearest)
            nearest = tl.where(better, depth, nearest)
            a = tl.where(better, fa, a)
            b = tl.where(better, fb, b)
            c = tl.where(better, fc, c)
    return a, b, c, nearest < float("inf")
