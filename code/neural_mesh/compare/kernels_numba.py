"""CPU kernels: a triangle rasteriser, and render-and-compare with its optimiser. The only module that imports numba.

Frames and units as in `rendering`: camera x right, y down, z forward; `rotation` is world_from_cam; the map is measured
in cells. A pixel's ray is d = ((x - principal_x) / focal, (y - principal_y) / focal, 1) in the camera's frame, so the
length along a ray is the depth. Sums over pixels run in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

NEAR = 1e-3  # a triangle with a corner nearer to the camera than this (in CAD units) is not drawn
ADAM_EPSILON = 1e-8  # torch.optim.Adam's default, which the reference uses
TINY = 1e-9  # CAD units; keeps the look-at finite on the vertical axis and at the origin
COMPILED = {
    "cache": True,
    "error_model": "numpy",
    "nogil": True,
}  # division by zero gives infinity; other threads go on
REASSOCIATE = {
    "contract",
    "reassoc",
    "arcp",
    "nsz",
}  # lets sums be reordered, keeps infinities and NaN


@njit(**COMPILED)
def _rasterize(uv, depth, faces, face_of, z_of, bary_of):
    height, width = face_of.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = depth[a], depth[b], depth[c]
        if not min(za, zb, zc) >= NEAR:
            continue
        ax, ay, bx, by, cx, cy = uv[a, 0], uv[a, 1], uv[b, 0], uv[b, 1], uv[c, 0], uv[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        left, right = min(ax, bx, cx), max(ax, bx, cx)
        top, bottom = min(ay, by, cy), max(ay, by, cy)
        if right < 0 or bottom < 0 or left > width or top > height:
            continue
        for row in range(
            int(max(0.0, np.ceil(top - 0.5))), int(min(height - 1.0, np.floor(bottom - 0.5))) + 1
        ):
            y = row + 0.5
            for col in range(
                int(max(0.0, np.ceil(left - 0.5))), int(min(width - 1.0, np.floor(right - 0.5))) + 1
            ):
                x = col + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                inverse = wa / za + wb / zb + wc / zc
                z = 1.0 / inverse
                if z < z_of[row, col]:
                    z_of[row, col] = z
                    face_of[row, col] = f
                    bary_of[row, col, 0] = wa / za * z
                    bary_of[row, col, 1] = wb / zb * z
                    bary_of[row, col, 2] = wc / zc * z


def rasterize(
    uv: NDArray, depth: NDArray, faces: NDArray, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray, NDArray]:
    """Which triangle each pixel sees, hard visibility, no culling.

    uv [V, 2]: projected vertices as (x right, y down), pixel (row, col) is sampled at (col + 0.5, row + 0.5).
    depth [V]: distance along the viewing axis, positive in front. faces [F, 3].
    Returns the face per pixel int32 [H, W] (-1: none), its depth [H, W] (inf: none) and the perspective-correct
    barycentric coordinates of the point seen [H, W, 3], all zero where there is none.
    """
    face_of = np.full((height, width), -1, np.int32)
    z_of = np.full((height, width), np.inf)
    bary_of = np.zeros((height, width, 3))
    _rasterize(
        np.ascontiguousarray(uv, np.float64),
        np.ascontiguousarray(depth, np.float64),
        np.ascontiguousarray(faces, np.int32),
        face_of,
        z_of,
        bary_of,
    )
    return face_of, z_of, bary_of


@njit(**COMPILED)
def _project(vertices, centre, rotation, intrinsics, uv, depth):
    """Vertices [V, 3] -> uv [V, 2] in cells and depth [V]; uv of a vertex behind the near plane is not used."""
    focal, px, py = intrinsics
    for v in range(vertices.shape[0]):
        x, y, z = vertices[v, 0] - centre[0], vertices[v, 1] - centre[1], vertices[v, 2] - centre[2]
        depth[v] = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z
        if depth[v] >= NEAR:
            uv[v, 0] = (
                px
                + focal * (rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z) / depth[v]
            )
            uv[v, 1] = (
                py
                + focal * (rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z) / depth[v]
            )


@njit(**COMPILED)
def _add_mesh(
    vertices,
    faces,
    centre,
    rotation,
    intrinsics,
    width,
    scores,
    clutter,
    use_clutter,
    buffers,
    total,
):
    """Any triangle mesh: z-buffer, then per pixel the score and its derivative. See `_evaluate` for `total`."""
    focal, px, py = intrinsics
    uv, depth, face_of, z_of, bary_of = buffers
    _project(vertices, centre, rotation, intrinsics, uv, depth)
    face_of[:] = -1
    z_of[:] = np.inf
    _rasterize(uv, depth, faces, face_of, z_of, bary_of)
    for p in range(scores.shape[0]):
        row, col = p // width, p % width
        if face_of[row, col] < 0:
            continue
        a, b, c = (
            faces[face_of[row, col], 0],
            faces[face_of[row, col], 1],
            faces[face_of[row, col], 2],
        )
        sa, sb, sc = np.float64(scores[p, a]), np.float64(scores[p, b]), np.float64(scores[p, c])
        score = bary_of[row, col, 0] * sa + bary_of[row, col, 1] * sb + bary_of[row, col, 2] * sc
        if use_clutter:
            total[0] += max(score - clutter[p], 0.0) - max(-clutter[p], 0.0)
            if score <= clutter[p]:
                continue
        else:
            total[0] += score
        dx, dy = (col + 0.5 - px) / focal, (row + 0.5 - py) / focal
        wx = rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2]
        wy = rotation[1, 0] * dx + rotation[1, 1] * dy + rotation[1, 2]
        wz = rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2]
        # q = ((sb - sa) e2 x D + (sc - sa) D x e1) / (e1 . e2 x D) with the edges e1, e2 from corner a
        ax, ay, az = vertices[a]
        e1x, e1y, e1z = vertices[b, 0] - ax, vertices[b, 1] - ay, vertices[b, 2] - az
        e2x, e2y, e2z = vertices[c, 0] - ax, vertices[c, 1] - ay, vertices[c, 2] - az
        kx, ky, kz = e2y * wz - e2z * wy, e2z * wx - e2x * wz, e2x * wy - e2y * wx
        determinant = e1x * kx + e1y * ky + e1z * kz
        if determinant == 0.0:
            continue
        u, v = (sb - sa) / determinant, (sc - sa) / determinant
        qx = u * kx + v * (wy * e1z - wz * e1y)
        qy = u * ky + v * (wz * e1x - wx * e1z)
        qz = u * kz + v * (wx * e1y - wy * e1x)
        t = z_of[row, col]
        for i, q in enumerate((qx, qy, qz)):
            total[1 + i] += q
            total[4 + 3 * i] += t * q * dx
            total[5 + 3 * i] += t * q * dy
            total[6 + 3 * i] += t * q


@njit(**COMPILED)
def _corner(i, j, axis, plane, rows, columns, low, high, centre, rotation, intrinsics, out):
    """Project a corner of a side (i, j: 0 low, 1 high along rows and columns) -> out [3] = x, y in cells, depth."""
    focal, px, py = intrinsics
    offset = np.empty(3)
    offset[axis] = plane - centre[axis]
    offset[rows] = (high[rows] if i else low[rows]) - centre[rows]
    offset[columns] = (high[columns] if j else low[columns]) - centre[columns]
    x, y, z = offset
    out[2] = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z
    out[0] = px + focal * (rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z) / out[2]
    out[1] = py + focal * (rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z) / out[2]


@njit(**COMPILED)
def _span(quad, y, width):
    """First column and one past the last whose centre a convex quad [4, 2+] covers on the line y.

    Half-open, and a shared edge always gives the same number, so that neighbouring sides never count a pixel twice.
    """
    left, right = np.inf, -np.inf
    for k in range(4):
        x0, y0, x1, y1 = quad[k, 0], quad[k, 1], quad[(k + 1) % 4, 0], quad[(k + 1) % 4, 1]
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        if y0 <= y < y1:
            x = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
            left, right = min(left, x), max(right, x)
    if not right > left:
        return 0, 0
    return int(max(0.0, math.ceil(min(left, width) - 0.5))), int(
        min(float(width), math.ceil(max(right, 0.0) - 0.5))
    )


@njit(**COMPILED, fastmath=REASSOCIATE)
def _add_side(
    axis,
    plane,
    first,
    quad,
    low,
    step,
    samples,
    centre,
    rotation,
    intrinsics,
    width,
    scores,
    clutter,
    use_clutter,
    total,
):
    """One side of a cuboid that faces the camera: hit point -> cell -> diagonal -> score and derivative."""
    focal, px, py = intrinsics
    rows, columns = (1, 0) if axis == 2 else (2, 0) if axis == 1 else (2, 1)
    stride = samples[columns]
    last_r, last_c = samples[rows] - 2, samples[columns] - 2
    per_r, per_c = 1.0 / step[rows], 1.0 / step[columns]
    distance, start_r, start_c = (
        plane - centre[axis],
        centre[rows] - low[rows],
        centre[columns] - low[columns],
    )
    ax, ay, az = rotation[axis, 0], rotation[axis, 1], rotation[axis, 2]
    rx, ry, rz = rotation[rows, 0], rotation[rows, 1], rotation[rows, 2]
    cx, cy, cz = rotation[columns, 0], rotation[columns, 1], rotation[columns, 2]
    height = scores.shape[0] // width
    top, bottom = quad[:, 1].min(), quad[:, 1].max()
    for row in range(
        int(max(0.0, math.ceil(top - 0.5))), int(min(height - 1.0, math.floor(bottom - 0.5))) + 1
    ):
        begin, end = _span(quad, row + 0.5, width)
        dy = (row + 0.5 - py) / focal
        a0, r0, c0 = ay * dy + az, ry * dy + rz, cy * dy + cz
        gain = sum_a = sum_r = sum_c = t_a = t_r = t_c = tx_a = tx_r = tx_c = 0.0
        for col in range(begin, end):
            p = row * width + col
            dx = (col + 0.5 - px) / focal
            ray_a, ray_r, ray_c = a0 + ax * dx, r0 + rx * dx, c0 + cx * dx
            per_a = 1.0 / ray_a
            t = distance * per_a
            at_r, at_c = (start_r + t * ray_r) * per_r, (start_c + t * ray_c) * per_c
            i, j = min(max(int(at_r), 0), last_r), min(max(int(at_c), 0), last_c)
            at_r -= i
            at_c -= j
            corner = first + i * stride + j
            s01, s10 = np.float64(scores[p, corner + 1]), np.float64(scores[p, corner + stride])
            if at_r + at_c <= 1.0:
                s00 = np.float64(scores[p, corner])
                g_r, g_c = s10 - s00, s01 - s00
                score = s00 + at_r * g_r + at_c * g_c
            else:
                s11 = np.float64(scores[p, corner + stride + 1])
                g_r, g_c = s11 - s01, s11 - s10
                score = s11 - (1.0 - at_r) * g_r - (1.0 - at_c) * g_c
            if use_clutter:
                gain += max(score - clutter[p], 0.0) - max(-clutter[p], 0.0)
                if score <= clutter[p]:
                    continue
            else:
                gain += score
            q_r, q_c = g_r * per_r, g_c * per_c
            q_a = -(q_r * ray_r + q_c * ray_c) * per_a
            sum_a += q_a
            sum_r += q_r
            sum_c += q_c
            t_a += t * q_a
            t_r += t * q_r
            t_c += t * q_c
            tx_a += t * q_a * dx
            tx_r += t * q_r * dx
            tx_c += t * q_c * dx
        total[0] += gain
        for i, q, tq, tqx in (
            (axis, sum_a, t_a, tx_a),
            (rows, sum_r, t_r, tx_r),
            (columns, sum_c, t_c, tx_c),
        ):
            total[1 + i] += q
            total[4 + 3 * i] += tqx
            total[5 + 3 * i] += tq * dy
            total[6 + 3 * i] += tq


@njit(**COMPILED)
def _add_cuboid(
    low, high, samples, centre, rotation, intrinsics, width, scores, clutter, use_clutter, total
):
    """A cuboid wholly in front of the camera: the sides that face it tile the silhouette, no z-buffer.

    Returns False, with nothing added, when a corner lies behind the near plane.
    """
    for k in range(8):
        depth = 0.0
        for i in range(3):
            depth += rotation[i, 2] * ((high[i] if (k >> i) & 1 else low[i]) - centre[i])
        if not depth >= NEAR:
            return False
    step = (high - low) / (samples - 1)
    quad = np.empty((4, 3))
    first = 0
    for axis in (2, 1, 0):  # the order of the sides in `meshes.cuboid_mesh`
        rows, columns = (1, 0) if axis == 2 else (2, 0) if axis == 1 else (2, 1)
        size = samples[rows] * samples[columns]
        for end in range(2):
            plane = high[axis] if end else low[axis]
            if (centre[axis] > plane) if end else (centre[axis] < plane):
                for k, (i, j) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
                    _corner(
                        i,
                        j,
                        axis,
                        plane,
                        rows,
                        columns,
                        low,
                        high,
                        centre,
                        rotation,
                        intrinsics,
                        quad[k],
                    )
                _add_side(
                    axis,
                    plane,
                    first,
                    quad,
                    low,
                    step,
                    samples,
                    centre,
                    rotation,
                    intrinsics,
                    width,
                    scores,
                    clutter,
                    use_clutter,
                    total,
                )
            first += size
    return True


@njit(**COMPILED)
def _evaluate(
    shape,
    centre,
    rotation,
    intrinsics,
    width,
    scores,
    clutter,
    use_clutter,
    background,
    buffers,
    total,
):
    """Loss of one image; leaves its derivatives in total [13] = (unused, dloss/dcentre [3], dloss/drotation [9]).

    shape: (vertices, faces, low, high, samples, whether it is a cuboid). scores [P, V], clutter [P].
    background: sum over all pixels of relu(-clutter), what an empty picture scores; covered pixels add the difference.
    """
    vertices, faces, low, high, samples, is_cuboid = shape
    total[:] = 0.0
    done = False
    if is_cuboid:
        done = _add_cuboid(
            low,
            high,
            samples,
            centre,
            rotation,
            intrinsics,
            width,
            scores,
            clutter,
            use_clutter,
            total,
        )
    if not done:
        _add_mesh(
            vertices,
            faces,
            centre,
            rotation,
            intrinsics,
            width,
            scores,
            clutter,
            use_clutter,
            buffers,
            total,
        )
    pixels = scores.shape[0]
    loss = 1.0 - (background + total[0]) / pixels
    total[:] *= -1.0 / pixels
    return loss


@njit(**COMPILED)
def _buffers(vertex_count, height, width):
    return (
        np.zeros((vertex_count, 2)),
        np.zeros(vertex_count),
        np.empty((height, width), np.int32),
        np.empty((height, width)),
        np.empty((height, width, 3)),
    )


@njit(**COMPILED)
def _background(clutter, use_clutter):
    total = 0.0
    if use_clutter:
        for value in clutter:
            total += max(-np.float64(value), 0.0)
    return total


@njit(**COMPILED)
def _look_at(centre, theta, rotation):
    """world_from_cam [3, 3] of a camera at `centre` that looks at the origin, as `rendering.look_at`."""
    x, y, z = centre
    distance, level = max(math.sqrt(x * x + y * y + z * z), TINY), math.sqrt(x * x + y * y)
    fx, fy, fz = -x / distance, -y / distance, -z / distance
    rx, ry = (-y / level, x / level) if level > TINY else (1.0, 0.0)
    ux, uy, uz = ry * fz, -rx * fz, rx * fy - ry * fx
    c, s = math.cos(theta), math.sin(theta)
    for i, (r, u, f) in enumerate(((rx, ux, fx), (ry, uy, fy), (0.0, uz, fz))):
        rotation[i, 0] = c * r - s * u
        rotation[i, 1] = -s * r - c * u
        rotation[i, 2] = f


@njit(**COMPILED)
def _look_at_backward(centre, theta, rotation, total, gradient):
    """total [13] of `_evaluate` -> gradient[:4] with respect to (centre, theta): the chain rule through `_look_at`."""
    c, s = math.cos(theta), math.sin(theta)
    x, y, z = centre
    distance, level = max(math.sqrt(x * x + y * y + z * z), TINY), math.sqrt(x * x + y * y)
    grad, f = total[4:].reshape(3, 3), rotation[:, 2].copy()
    g_r, g_u = c * grad[:, 0] - s * grad[:, 1], -s * grad[:, 0] - c * grad[:, 1]
    r = c * rotation[:, 0] - s * rotation[:, 1]
    gradient[3] = 0.0
    for i in range(3):
        gradient[3] += grad[i, 0] * rotation[i, 1] - grad[i, 1] * rotation[i, 0]
    # up = right x forward
    g_rx, g_ry = g_r[0] + f[1] * g_u[2] - f[2] * g_u[1], g_r[1] + f[2] * g_u[0] - f[0] * g_u[2]
    g_fx = grad[0, 2] + g_u[1] * r[2] - g_u[2] * r[1]
    g_fy = grad[1, 2] + g_u[2] * r[0] - g_u[0] * r[2]
    g_fz = grad[2, 2] + g_u[0] * r[1] - g_u[1] * r[0]
    along = f[0] * g_fx + f[1] * g_fy + f[2] * g_fz
    gradient[0] = total[1] - (g_fx - f[0] * along) / distance
    gradient[1] = total[2] - (g_fy - f[1] * along) / distance
    gradient[2] = total[3] - (g_fz - f[2] * along) / distance
    if level > TINY:
        across = r[0] * g_rx + r[1] * g_ry
        gradient[0] += (g_ry - r[1] * across) / level
        gradient[1] -= (g_rx - r[0] * across) / level


@njit(**COMPILED)
def _principal_gradient(rotation, total, focal, gradient):
    """total [13] of `_evaluate` -> gradient[4:6] by the principal point; see `rendering.principal_gradient`."""
    for axis in range(2):
        value = 0.0
        for i in range(3):
            value += rotation[i, axis] * total[6 + 3 * i]
        gradient[4 + axis] = -value / focal


@njit(**COMPILED, parallel=True)
def compare(
    shape,
    centre,
    rotation,
    focal,
    principal,
    width,
    scores,
    clutter,
    use_clutter,
    loss,
    grad_centre,
    grad_rotation,
):
    """Loss and gradients of B images, one pose each, in parallel.

    shape: see `_evaluate`. centre [B, 3], rotation [B, 3, 3], principal [B, 2], scores [B, P, V] float32, clutter [B, P].
    Writes loss [B], grad_centre [B, 3], grad_rotation [B, 3, 3].
    """
    height = scores.shape[1] // width
    for b in prange(scores.shape[0]):
        buffers = _buffers(shape[0].shape[0], height, width)
        total = np.empty(13)
        background = _background(clutter[b], use_clutter)
        intrinsics = (focal, principal[b, 0], principal[b, 1])
        loss[b] = _evaluate(
            shape,
            centre[b],
            rotation[b],
            intrinsics,
            width,
            scores[b],
            clutter[b],
            use_clutter,
            background,
            buffers,
            total,
        )
        grad_centre[b] = total[1:4]
        grad_rotation[b] = total[4:].reshape(3, 3)


@njit(**COMPILED, parallel=True)
def fragments(vertices, faces, centre, rotation, focal, principal, face_of, z_of, bary_of):
    """Rasterise N poses of one mesh in parallel. Writes face_of [N, H, W], z_of [N, H, W], bary_of [N, H, W, 3]."""
    for n in prange(centre.shape[0]):
        uv, depth = np.zeros((vertices.shape[0], 2)), np.zeros(vertices.shape[0])
        _project(vertices, centre[n], rotation[n], (focal, principal[0], principal[1]), uv, depth)
        _rasterize(uv, depth, faces, face_of[n], z_of[n], bary_of[n])


@njit(**COMPILED, parallel=True)
def score_table(corners, bary, picture_width, row, col, width, scores, clutter, use_clutter, loss):
    """Loss [B, N] of N pre-rendered pictures for B images, in parallel over images.

    corners [Q, N, 3]: the vertices that a pixel sees, bary [Q, N, 3]: their weights, all 0 off the mesh. Pixel first,
    so that the row of scores that all pictures read stays in the cache. The image's map, `width` cells wide, is laid
    over the pictures, `picture_width` wide, with its first cell on their cell (row, col).
    """
    pixels, pictures = scores.shape[1], corners.shape[1]
    for b in prange(scores.shape[0]):
        total = np.zeros(pictures)
        for p in range(pixels):
            line, q = scores[b, p], (p // width + row) * picture_width + p % width + col
            for n in range(pictures):
                score = np.float64(bary[q, n, 0]) * line[corners[q, n, 0]]
                score += np.float64(bary[q, n, 1]) * line[corners[q, n, 1]]
                score += np.float64(bary[q, n, 2]) * line[corners[q, n, 2]]
                total[n] += max(score - clutter[b, p], 0.0) if use_clutter else score
        loss[b] = 1.0 - total / pixels


@njit(**COMPILED)
def _turned_back(pose, rotation, i):
    """Component i of the camera's right and up axes without theta."""
    c, s = math.cos(pose[3]), math.sin(pose[3])
    return c * rotation[i, 0] - s * rotation[i, 1], -s * rotation[i, 0] - c * rotation[i, 1]


@njit(**COMPILED)
def _to_local(pose, rotation, gradient):
    """gradient[:4] in (centre, theta) -> in (sideways, up, theta, log distance), in place, as `pose.local_gradient`."""
    distance = math.sqrt(pose[0] ** 2 + pose[1] ** 2 + pose[2] ** 2)
    sideways = up = nearer = 0.0
    for i in range(3):
        r, u = _turned_back(pose, rotation, i)
        sideways += gradient[i] * r
        up += gradient[i] * u
        nearer -= gradient[i] * rotation[i, 2]
    gradient[2] = gradient[3]
    gradient[0], gradient[1], gradient[3] = sideways * distance, up * distance, nearer * distance


@njit(**COMPILED)
def _local_move(pose, rotation, step):
    """Move a pose by step[:4] = (sideways, up, theta, log distance), in place; see `pose.local_move`."""
    distance = math.sqrt(pose[0] ** 2 + pose[1] ** 2 + pose[2] ** 2)
    length = math.sqrt(1.0 + step[0] ** 2 + step[1] ** 2)
    for i in range(3):
        r, u = _turned_back(pose, rotation, i)
        pose[i] = (
            (-rotation[i, 2] + step[0] * r + step[1] * u) * distance * math.exp(step[3]) / length
        )
    pose[3] += step[2]


@njit(**COMPILED)
def _adam_step(gradient, first, second, count, rate, beta1, beta2, step):
    """step [6] of Adam's update number `count` (from 1), `torch.optim.Adam`'s formula; updates both moments."""
    correct1, correct2 = 1.0 - beta1**count, math.sqrt(1.0 - beta2**count)
    for i in range(6):
        first[i] += (1.0 - beta1) * (gradient[i] - first[i])
        second[i] += (1.0 - beta2) * (gradient[i] * gradient[i] - second[i])
        step[i] = -rate / correct1 * first[i] / (math.sqrt(second[i]) / correct2 + ADAM_EPSILON)


@njit(**COMPILED, parallel=True)
def advance(
    shape,
    focal,
    width,
    scores,
    clutter,
    use_clutter,
    poses,
    first,
    second,
    loss,
    best_loss,
    best_poses,
    average,
    since_best,
    evaluations,
    rates,
    done,
    beta1,
    beta2,
    local_scale,
    principal_scale,
    averaging,
    patience,
    finish,
    path,
):
    """Take up to `len(rates)` Adam steps with K candidate poses of each of B images, in parallel over all of them.

    poses [B, K, 6] (centre, theta, principal point), first, second [B, K, 6] (Adam's moments), loss [B, K] (last
    evaluated), best_loss [B, K] and best_poses [B, K, 6], average [B, K, 6], since_best [B, K] (evaluations since the best)
    are read and updated; evaluations [B, K] gets their number in this call. done: steps taken before. local_scale: 0
    for steps in (centre, theta), else steps in the camera's frame, those in log distance multiplied by it.
    principal_scale: cells per unit step of the principal point, 0 to leave it where it is. averaging: share of the newest
    iterate in the average. patience: a candidate whose since_best reaches it takes no more steps. finish: evaluate the
    average, too, and leave it in poses, or the last iterate where averaging is 0. path [B, K, steps (+ 1), 7]: gets
    every pose and its loss; [B, K, 0, 7] for none.
    """
    height, candidates, steps = scores.shape[1] // width, poses.shape[1], len(rates)
    for item in prange(scores.shape[0] * candidates):
        b, k = item // candidates, item % candidates
        pose, background = poses[b, k], _background(clutter[b], use_clutter)
        buffers = _buffers(shape[0].shape[0], height, width)
        total, rotation, gradient, step = np.empty(13), np.empty((3, 3)), np.empty(6), np.empty(6)
        evaluations[b, k] = 0
        for s in range(steps + 1 if finish else steps):
            if s == steps and averaging > 0.0:
                pose[:] = average[b, k]
            if s == steps or since_best[b, k] < patience:
                _look_at(pose[:3], pose[3], rotation)
                intrinsics = (focal, pose[4], pose[5])
                loss[b, k] = _evaluate(
                    shape,
                    pose[:3],
                    rotation,
                    intrinsics,
                    width,
                    scores[b],
                    clutter[b],
                    use_clutter,
                    background,
                    buffers,
                    total,
                )
                evaluations[b, k] += 1
                since_best[b, k] += 1
                if loss[b, k] < best_loss[b, k]:
                    best_loss[b, k] = loss[b, k]
                    best_poses[b, k] = pose
                    since_best[b, k] = 0
            if path.shape[2]:
                path[b, k, s, :6] = pose
                path[b, k, s, 6] = loss[b, k]
            if s == steps or since_best[b, k] >= patience:
                continue
            _look_at_backward(pose[:3], pose[3], rotation, total, gradient)
            _principal_gradient(rotation, total, focal, gradient)
            if local_scale > 0.0:
                _to_local(pose, rotation, gradient)
            count = done + s + 1
            _adam_step(gradient, first[b, k], second[b, k], count, rates[s], beta1, beta2, step)
            if local_scale > 0.0:
                step[3] *= local_scale
                _local_move(pose, rotation, step)
            else:
                for i in range(4):
                    pose[i] += step[i]
            pose[4] += principal_scale * step[4]
            pose[5] += principal_scale * step[5]
            if averaging > 0.0:
                share = averaging / (1.0 - (1.0 - averaging) ** count)
                for i in range(6):
                    average[b, k, i] += share * (pose[i] - average[b, k, i])


def launch(kernel: Callable, threads: int, *arguments: object) -> None:
    """Call one of the parallel kernels on at most so many threads, and at most as many as numba was set to use."""
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, before)))
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)
