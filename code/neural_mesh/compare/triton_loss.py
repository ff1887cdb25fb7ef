"""Loss and gradient of one image on a GPU, the counterpart of `kernels_numba._evaluate`.

A vector is three scalars that end in x, y and z: c is the camera's centre and w a ray, both in the
object frame, and d is the same ray in the camera frame. xx, xy and xz are the first row of the
rotation object_from_cv_cam, yx to zz the others. Names in g_ are derivatives of the loss.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neural_mesh.compare.triton_numbers import (
    BLOCK,
    CLUTTER,
    CUBOID,
    FOCAL,
    PIXELS,
    VERTICES,
    WIDTH,
    load_vertex,
    real,
    whole,
)
from neural_mesh.compare.triton_rays import hit_cuboid, hit_mesh


@triton.jit
def evaluate(
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
    focal = real(constants, FOCAL)
    width = whole(constants, WIDTH)
    pixels = whole(constants, PIXELS)
    vertex_count = whole(constants, VERTICES)
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
        if CUBOID & FLAGS:
            a, b, c, hit = hit_cuboid(wx, wy, wz, cx, cy, cz, xz, yz, zz, constants)
        else:
            a, b, c, hit = hit_mesh(wx, wy, wz, cx, cy, cz, xz, yz, zz, vertices, faces, constants)
        hit = hit & inside
        # The barycentric coordinates and the depth of the point where the ray meets the triangle
        # follow from Cramer's rule.
        ax, ay, az = load_vertex(vertices, a, hit)
        bx, by, bz = load_vertex(vertices, b, hit)
        gx, gy, gz = load_vertex(vertices, c, hit)
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
        # Interpolate the score between the corners.
        line = scores + p.to(tl.int64) * vertex_count
        s_a = tl.load(line + a, hit, 0.0)
        s_b = tl.load(line + b, hit, 0.0)
        s_c = tl.load(line + c, hit, 0.0)
        score = s_a + bary_b * (s_b - s_a) + bary_c * (s_c - s_a)
        score = tl.where(hit, score, 0.0)
        if CLUTTER & FLAGS:
            behind = tl.load(clutter + p, inside, 0.0)
            gain += tl.maximum(score - behind, 0.0)
            hit = hit & (score > behind)
        else:
            gain += score
        # The score's derivative is q by the camera's centre and t q d^T by its rotation.
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
