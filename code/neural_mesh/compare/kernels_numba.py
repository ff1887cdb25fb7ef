"""CPU kernels: a triangle rasteriser, and render-and-compare with its optimiser.

This is the only module that imports numba. All kernels are in one module on purpose: numba keeps
compiled functions on disk and notices a change of a function's own file, but not of another file
into which the function calls.

Frames and units as in `scene`, whose named tuples are the arguments here: the camera is x right, y
down, z forward; `rotation` is object_from_cv_cam; the map is measured in cells. A pixel's ray is
d = ((x - principal_x) / focal, (y - principal_y) / focal, 1) in the camera's frame, so the length
along a ray is the depth. Sums over pixels run in float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange
from numba.core.caching import FunctionCache
from numpy.typing import NDArray

# `scene` also has these three, and a test compares them. They are not imported for the reason
# above.
NEAR = 1e-3
TINY = 1e-9
ADAM_EPSILON = 1e-8


def _can_keep() -> bool:
    """Whether numba finds a folder for what it compiles; it refuses to compile where it does not.

    That is the code's own, or one of the user's, unless both are read-only.
    """
    try:
        FunctionCache(_can_keep)
    except RuntimeError:
        print(
            "note: the code and your home cannot be written, so its kernels are compiled anew by "
            "every run, which takes half a minute; set NUMBA_CACHE_DIR to a folder of your own",
            file=sys.stderr,
        )
        return False
    return True


# Division by zero gives infinity, and other threads can run during a kernel.
COMPILED = {"cache": _can_keep(), "error_model": "numpy", "nogil": True}
# Lets the compiler reorder sums, and keeps infinities and NaN.
REASSOCIATE = {"contract", "reassoc", "arcp", "nsz"}


class View(NamedTuple):
    """One camera: centre [3], rotation [3, 3], and focal length and principal point in cells."""

    centre: NDArray
    rotation: NDArray
    focal: float
    px: float
    py: float


class Image(NamedTuple):
    """Scores [P, V] and clutter [P] of one image, whose map is `width` cells wide.

    background: sum over all pixels of relu(-clutter), which is the score of an empty picture; each
    covered pixel adds its difference from that.
    """

    width: int
    scores: NDArray
    clutter: NDArray
    use_clutter: bool
    background: float


class Fragments(NamedTuple):
    """Face [H, W] (-1 off the mesh), depth z [H, W] (infinite off it), barycentrics [H, W, 3]."""

    face: NDArray
    z: NDArray
    bary: NDArray


class Buffers(NamedTuple):
    """Memory for one picture: vertices uv [V, 2] in cells, their depth [V], and the fragments."""

    uv: NDArray
    depth: NDArray
    fragments: Fragments


class Box(NamedTuple):
    """A cuboid: corners low, high [3], spacing of vertices step [3], their number samples [3]."""

    low: NDArray
    high: NDArray
    step: NDArray
    samples: NDArray


class Side(NamedTuple):
    """A cuboid's side where the coordinate on `axis` is `plane`; first: its first vertex."""

    axis: int
    plane: float
    first: int


# ---- any triangle mesh ----


@njit(**COMPILED)
def rasterise_triangles(uv, depth, faces, fragments):
    """Draw triangles [F, 3] with projected vertices uv [V, 2] in cells and depth [V], in place."""
    height, width = fragments.face.shape
    for f in range(faces.shape[0]):
        a = faces[f, 0]
        b = faces[f, 1]
        c = faces[f, 2]
        za = depth[a]
        zb = depth[b]
        zc = depth[c]
        if not min(za, zb, zc) >= NEAR:
            continue
        ax = uv[a, 0]
        ay = uv[a, 1]
        bx = uv[b, 0]
        by = uv[b, 1]
        cx = uv[c, 0]
        cy = uv[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        # Find the cells whose centres lie in the triangle's bounding box.
        left = min(ax, bx, cx)
        right = max(ax, bx, cx)
        top = min(ay, by, cy)
        bottom = max(ay, by, cy)
        if right < 0 or bottom < 0 or left > width or top > height:
            continue
        first_row = int(max(0.0, np.ceil(top - 0.5)))
        last_row = int(min(height - 1.0, np.floor(bottom - 0.5)))
        first_col = int(max(0.0, np.ceil(left - 0.5)))
        last_col = int(min(width - 1.0, np.floor(right - 0.5)))
        for row in range(first_row, last_row + 1):
            y = row + 0.5
            for col in range(first_col, last_col + 1):
                # Barycentric coordinates on the map; a pixel outside has a negative one.
                x = col + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                # The inverse depth is linear on the map, which makes them perspective-correct.
                inverse = wa / za + wb / zb + wc / zc
                z = 1.0 / inverse
                if z < fragments.z[row, col]:
                    fragments.z[row, col] = z
                    fragments.face[row, col] = f
                    fragments.bary[row, col, 0] = wa / za * z
                    fragments.bary[row, col, 1] = wb / zb * z
                    fragments.bary[row, col, 2] = wc / zc * z


def rasterise(
    uv: NDArray, depth: NDArray, faces: NDArray, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray, NDArray]:
    """Find the triangle that each pixel sees, with hard visibility and without culling.

    uv [V, 2]: projected vertices as (x right, y down); pixel (row, col) is sampled at (col + 0.5,
    row + 0.5). depth [V]: distance along the viewing axis, positive in front. faces [F, 3].
    Returns each pixel's face int32 [H, W] (-1 off the mesh), depth [H, W] (infinite off it), and
    the perspective-correct barycentric coordinates [H, W, 3] (0 off it).
    """
    fragments = empty_fragments((height, width))
    rasterise_triangles(
        np.ascontiguousarray(uv, np.float64),
        np.ascontiguousarray(depth, np.float64),
        np.ascontiguousarray(faces, np.int32),
        fragments,
    )
    return fragments.face, fragments.z, fragments.bary


def empty_fragments(shape: tuple[int, ...]) -> Fragments:
    """Fragments of pixels [...] on which nothing is drawn."""
    face = np.full(shape, -1, np.int32)
    return Fragments(face, np.full(shape, np.inf), np.zeros((*shape, 3)))


@njit(**COMPILED)
def _project(vertices, view, uv, depth):
    """Project vertices [V, 3] to uv [V, 2] in cells and depth [V].

    uv is left as it was behind the near plane, where it is not read.
    """
    rotation = view.rotation
    for v in range(vertices.shape[0]):
        x = vertices[v, 0] - view.centre[0]
        y = vertices[v, 1] - view.centre[1]
        z = vertices[v, 2] - view.centre[2]
        depth[v] = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z
        if depth[v] >= NEAR:
            right = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
            down = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
            uv[v, 0] = view.px + view.focal * right / depth[v]
            uv[v, 1] = view.py + view.focal * down / depth[v]


@njit(**COMPILED)
def _add_mesh(vertices, faces, view, image, buffers, total):
    """Add any triangle mesh to total: z-buffer, then each pixel's score and derivative."""
    rotation = view.rotation
    scores = image.scores
    clutter = image.clutter
    fragments = buffers.fragments
    _project(vertices, view, buffers.uv, buffers.depth)
    fragments.face[:] = -1
    fragments.z[:] = np.inf
    rasterise_triangles(buffers.uv, buffers.depth, faces, fragments)
    for p in range(scores.shape[0]):
        row = p // image.width
        col = p % image.width
        face = fragments.face[row, col]
        if face < 0:
            continue
        # Interpolate the score between the corners of the triangle.
        a = faces[face, 0]
        b = faces[face, 1]
        c = faces[face, 2]
        sa = np.float64(scores[p, a])
        sb = np.float64(scores[p, b])
        sc = np.float64(scores[p, c])
        bary = fragments.bary[row, col]
        score = bary[0] * sa + bary[1] * sb + bary[2] * sc
        if image.use_clutter:
            total[0] += max(score - clutter[p], 0.0) - max(-clutter[p], 0.0)
            if score <= clutter[p]:
                continue
        else:
            total[0] += score
        # Turn the pixel's ray into the object frame.
        dx = (col + 0.5 - view.px) / view.focal
        dy = (row + 0.5 - view.py) / view.focal
        wx = rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2]
        wy = rotation[1, 0] * dx + rotation[1, 1] * dy + rotation[1, 2]
        wz = rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2]
        # The score's derivative by the camera's centre, for edges e1, e2 from corner a and the ray
        # D: q = ((sb - sa) e2 x D + (sc - sa) D x e1) / (e1 . e2 x D)
        ax, ay, az = vertices[a]
        e1x = vertices[b, 0] - ax
        e1y = vertices[b, 1] - ay
        e1z = vertices[b, 2] - az
        e2x = vertices[c, 0] - ax
        e2y = vertices[c, 1] - ay
        e2z = vertices[c, 2] - az
        kx = e2y * wz - e2z * wy
        ky = e2z * wx - e2x * wz
        kz = e2x * wy - e2y * wx
        determinant = e1x * kx + e1y * ky + e1z * kz
        if determinant == 0.0:
            continue
        u = (sb - sa) / determinant
        v = (sc - sa) / determinant
        qx = u * kx + v * (wy * e1z - wz * e1y)
        qy = u * ky + v * (wz * e1x - wx * e1z)
        qz = u * kz + v * (wx * e1y - wy * e1x)
        # Add dO/dcentre = q and dO/drotation = t q d^T.
        t = fragments.z[row, col]
        for i, q in enumerate((qx, qy, qz)):
            total[1 + i] += q
            total[4 + 3 * i] += t * q * dx
            total[5 + 3 * i] += t * q * dy
            total[6 + 3 * i] += t * q


# ---- cuboids, without a z-buffer ----


@njit(**COMPILED)
def _side_axes(axis):
    """The axes along which rows and columns of vertices run on the sides across `axis`."""
    if axis == 2:
        return 1, 0
    if axis == 1:
        return 2, 0
    return 2, 1


@njit(**COMPILED)
def _project_corner(i, j, side, box, view, out):
    """Project a corner of a side (i, j: 0 low, 1 high along rows, columns) to out: x, y, depth."""
    rows, columns = _side_axes(side.axis)
    rotation = view.rotation
    offset = np.empty(3)
    offset[side.axis] = side.plane - view.centre[side.axis]
    offset[rows] = (box.high[rows] if i else box.low[rows]) - view.centre[rows]
    offset[columns] = (box.high[columns] if j else box.low[columns]) - view.centre[columns]
    x, y, z = offset
    right = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
    down = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
    out[2] = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z
    out[0] = view.px + view.focal * right / out[2]
    out[1] = view.py + view.focal * down / out[2]


@njit(**COMPILED)
def _span(quad, y, width):
    """Columns, from the first to one past the last, whose centres a quad covers on the line y.

    quad [4, 2+]: corners of a convex quadrilateral. The interval is half-open, and an edge that two
    sides share gives the same number for both, so that no pixel is counted twice.
    """
    left = np.inf
    right = -np.inf
    for k in range(4):
        x0 = quad[k, 0]
        y0 = quad[k, 1]
        x1 = quad[(k + 1) % 4, 0]
        y1 = quad[(k + 1) % 4, 1]
        if y0 > y1:
            x0, x1 = x1, x0
            y0, y1 = y1, y0
        if y0 <= y < y1:
            x = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
            left = min(left, x)
            right = max(right, x)
    if not right > left:
        return 0, 0
    begin = int(max(0.0, math.ceil(min(left, width) - 0.5)))
    end = int(min(float(width), math.ceil(max(right, 0.0) - 0.5)))
    return begin, end


@njit(**COMPILED, fastmath=REASSOCIATE)
def _add_side(side, quad, box, view, image, total):
    """Add a cuboid's side that faces the camera to total.

    Each pixel's hit point gives a cell of the grid, the cell's diagonal one of its two triangles,
    and that triangle the score and its derivative. Suffixes _a, _r and _c mean along the side's
    axis, its rows and its columns.
    """
    # Sums are reordered here (REASSOCIATE), and LLVM decides how by the order in which values
    # appear: that of g_c before g_r below, and that of the fields of the named tuples. Another
    # order changes the last bit of losses and gradients. It is kept so that results stay the same.
    scores = image.scores
    clutter = image.clutter
    use_clutter = image.use_clutter
    width = image.width
    focal = view.focal
    px = view.px
    py = view.py
    # The grid of vertices, and the camera in the side's axes.
    axis = side.axis
    rows, columns = _side_axes(axis)
    first = side.first
    stride = box.samples[columns]
    last_r = box.samples[rows] - 2
    last_c = box.samples[columns] - 2
    per_r = 1.0 / box.step[rows]
    per_c = 1.0 / box.step[columns]
    distance = side.plane - view.centre[axis]
    start_r = view.centre[rows] - box.low[rows]
    start_c = view.centre[columns] - box.low[columns]
    ax = view.rotation[axis, 0]
    ay = view.rotation[axis, 1]
    az = view.rotation[axis, 2]
    rx = view.rotation[rows, 0]
    ry = view.rotation[rows, 1]
    rz = view.rotation[rows, 2]
    cx = view.rotation[columns, 0]
    cy = view.rotation[columns, 1]
    cz = view.rotation[columns, 2]
    # Find the lines of the map that the side covers.
    height = scores.shape[0] // width
    top = quad[:, 1].min()
    bottom = quad[:, 1].max()
    first_line = int(max(0.0, math.ceil(top - 0.5)))
    last_line = int(min(height - 1.0, math.floor(bottom - 0.5)))
    for row in range(first_line, last_line + 1):
        begin, end = _span(quad, row + 0.5, width)
        dy = (row + 0.5 - py) / focal
        a0 = ay * dy + az
        r0 = ry * dy + rz
        c0 = cy * dy + cz
        # dy is the same on the whole line, so its products are taken once, after the line.
        gain = sum_a = sum_r = sum_c = t_a = t_r = t_c = tx_a = tx_r = tx_c = 0.0
        for col in range(begin, end):
            p = row * width + col
            # Find where the ray meets the plane, in cells of the grid.
            dx = (col + 0.5 - px) / focal
            ray_a = a0 + ax * dx
            ray_r = r0 + rx * dx
            ray_c = c0 + cx * dx
            per_a = 1.0 / ray_a
            t = distance * per_a
            at_r = (start_r + t * ray_r) * per_r
            at_c = (start_c + t * ray_c) * per_c
            i = min(max(int(at_r), 0), last_r)
            j = min(max(int(at_c), 0), last_c)
            at_r -= i
            at_c -= j
            # Interpolate the score on one half of the cell, and find its slopes.
            corner = first + i * stride + j
            s01 = np.float64(scores[p, corner + 1])
            s10 = np.float64(scores[p, corner + stride])
            if at_r + at_c <= 1.0:
                s00 = np.float64(scores[p, corner])
                g_c = s01 - s00
                g_r = s10 - s00
                score = s00 + at_r * g_r + at_c * g_c
            else:
                s11 = np.float64(scores[p, corner + stride + 1])
                g_c = s11 - s10
                g_r = s11 - s01
                score = s11 - (1.0 - at_r) * g_r - (1.0 - at_c) * g_c
            if use_clutter:
                gain += max(score - clutter[p], 0.0) - max(-clutter[p], 0.0)
                if score <= clutter[p]:
                    continue
            else:
                gain += score
            # The score's derivative by the camera's centre, with the normal n along the axis:
            # q = g - (g . D) / (n . D) n
            q_r = g_r * per_r
            q_c = g_c * per_c
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
        # Sort the sums by the axes of the object frame.
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
def _add_cuboid(mesh, view, image, total):
    """Add a cuboid in front of the camera to total: the sides that face it tile the silhouette.

    Returns False, and adds nothing, when a corner lies behind the near plane.
    """
    low = mesh.low
    high = mesh.high
    samples = mesh.samples
    centre = view.centre
    # All eight corners have to be in front of the near plane.
    for k in range(8):
        depth = 0.0
        for i in range(3):
            corner = high[i] if (k >> i) & 1 else low[i]
            depth += view.rotation[i, 2] * (corner - centre[i])
        if not depth >= NEAR:
            return False
    box = Box(low, high, (high - low) / (samples - 1), samples)
    quad = np.empty((4, 3))
    first = 0
    # The sides are in the order of `meshes.cuboid_mesh`.
    for axis in (2, 1, 0):
        rows, columns = _side_axes(axis)
        for end in range(2):
            plane = high[axis] if end else low[axis]
            faces_camera = (centre[axis] > plane) if end else (centre[axis] < plane)
            if faces_camera:
                side = Side(axis, plane, first)
                for k, (i, j) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
                    _project_corner(i, j, side, box, view, quad[k])
                _add_side(side, quad, box, view, image, total)
            first += samples[rows] * samples[columns]
    return True


# ---- loss and gradient ----


@njit(**COMPILED)
def _evaluate(mesh, view, image, buffers, total):
    """Loss of one view of one image, and its derivatives in total [13].

    total: the first number is not used afterwards, then dloss/dcentre [3] and dloss/drotation [9].
    """
    # The quick way serves a cuboid in front of the camera, the z-buffer everything else.
    total[:] = 0.0
    done = False
    if mesh.is_cuboid:
        done = _add_cuboid(mesh, view, image, total)
    if not done:
        _add_mesh(mesh.vertices, mesh.faces, view, image, buffers, total)
    pixels = image.scores.shape[0]
    loss = 1.0 - (image.background + total[0]) / pixels
    # total holds the gradient of the summed score; the loss is 1 minus its mean.
    total[:] *= -1.0 / pixels
    return loss


@njit(**COMPILED)
def _buffers(vertex_count, height, width):
    """Memory for a picture of height x width cells."""
    face = np.empty((height, width), np.int32)
    z = np.empty((height, width))
    bary = np.empty((height, width, 3))
    fragments = Fragments(face, z, bary)
    return Buffers(np.zeros((vertex_count, 2)), np.zeros(vertex_count), fragments)


@njit(**COMPILED)
def _image(scores, b):
    """The `Image` of number b, from `MapScores`."""
    clutter = scores.clutter[b]
    background = 0.0
    if scores.use_clutter:
        for value in clutter:
            background += max(-np.float64(value), 0.0)
    return Image(scores.width, scores.scores[b], clutter, scores.use_clutter, background)


@njit(**COMPILED, parallel=True)
def compare(mesh, focal, scores, views, loss, grad_centre, grad_rotation):
    """Loss and gradients of B images, one view each, in parallel.

    mesh: `MeshArrays`. scores: `MapScores`. views: `Views`. Writes loss [B], grad_centre [B, 3] and
    grad_rotation [B, 3, 3]. They are not a named tuple because numba drops a parallel loop that
    writes only to the fields of one.
    """
    height = scores.scores.shape[1] // scores.width
    # Threads do not share buffers.
    for b in prange(scores.scores.shape[0]):
        buffers = _buffers(mesh.vertices.shape[0], height, scores.width)
        total = np.empty(13)
        px = views.principal_xy[b, 0]
        py = views.principal_xy[b, 1]
        view = View(views.centre[b], views.rotation[b], focal, px, py)
        loss[b] = _evaluate(mesh, view, _image(scores, b), buffers, total)
        grad_centre[b] = total[1:4]
        grad_rotation[b] = total[4:].reshape(3, 3)


# ---- pictures ----


@njit(**COMPILED, parallel=True)
def rasterise_views(vertices, faces, focal, views, fragments):
    """Draw N views (`Views`) of one mesh in parallel into `Fragments` [N, H, W, ...]."""
    for n in prange(views.centre.shape[0]):
        uv = np.zeros((vertices.shape[0], 2))
        depth = np.zeros(vertices.shape[0])
        px = views.principal_xy[n, 0]
        py = views.principal_xy[n, 1]
        view = View(views.centre[n], views.rotation[n], focal, px, py)
        _project(vertices, view, uv, depth)
        picture = Fragments(fragments.face[n], fragments.z[n], fragments.bary[n])
        rasterise_triangles(uv, depth, faces, picture)


@njit(**COMPILED, parallel=True)
def score_table(pictures, scores, loss):
    """Loss [B, N] of N rendered pictures (`TableArrays`) for B images, in parallel over images."""
    # Pixels are in the outer loop, so that the row of scores that all pictures read stays in the
    # cache.
    corners = pictures.corners
    bary = pictures.bary
    clutter = scores.clutter
    use_clutter = scores.use_clutter
    width = scores.width
    pixels = scores.scores.shape[1]
    count = corners.shape[1]
    for b in prange(scores.scores.shape[0]):
        total = np.zeros(count)
        for p in range(pixels):
            line = scores.scores[b, p]
            q = (p // width + pictures.row) * pictures.width + p % width + pictures.col
            for n in range(count):
                score = np.float64(bary[q, n, 0]) * line[corners[q, n, 0]]
                score += np.float64(bary[q, n, 1]) * line[corners[q, n, 1]]
                score += np.float64(bary[q, n, 2]) * line[corners[q, n, 2]]
                total[n] += max(score - clutter[b, p], 0.0) if use_clutter else score
        loss[b] = 1.0 - total / pixels


# ---- the optimiser ----


@njit(**COMPILED)
def _look_at(centre, theta, rotation):
    """object_from_cv_cam [3, 3] of a camera that looks at the origin, as `scene.look_at`."""
    x, y, z = centre
    distance = max(math.sqrt(x * x + y * y + z * z), TINY)
    level = math.sqrt(x * x + y * y)
    fx = -x / distance
    fy = -y / distance
    fz = -z / distance
    rx = 1.0
    ry = 0.0
    # A camera on the vertical axis keeps +x as its right.
    if level > TINY:
        rx = -y / level
        ry = x / level
    ux = ry * fz
    uy = -rx * fz
    uz = rx * fy - ry * fx
    c = math.cos(theta)
    s = math.sin(theta)
    for i, (r, u, f) in enumerate(((rx, ux, fx), (ry, uy, fy), (0.0, uz, fz))):
        rotation[i, 0] = c * r - s * u
        rotation[i, 1] = -s * r - c * u
        rotation[i, 2] = f


@njit(**COMPILED)
def _look_at_backward(centre, theta, rotation, total, gradient):
    """Turn total [13] of `_evaluate` into gradient[:4] by (centre, theta), through `_look_at`."""
    c = math.cos(theta)
    s = math.sin(theta)
    x, y, z = centre
    distance = max(math.sqrt(x * x + y * y + z * z), TINY)
    level = math.sqrt(x * x + y * y)
    grad = total[4:].reshape(3, 3)
    f = rotation[:, 2].copy()
    # From the rotation's columns x and y to right and up without theta.
    g_r = c * grad[:, 0] - s * grad[:, 1]
    g_u = -s * grad[:, 0] - c * grad[:, 1]
    r = c * rotation[:, 0] - s * rotation[:, 1]
    gradient[3] = 0.0
    for i in range(3):
        gradient[3] += grad[i, 0] * rotation[i, 1] - grad[i, 1] * rotation[i, 0]
    # From up to right and forward, since up = right x forward.
    g_rx = g_r[0] + f[1] * g_u[2] - f[2] * g_u[1]
    g_ry = g_r[1] + f[2] * g_u[0] - f[0] * g_u[2]
    g_fx = grad[0, 2] + g_u[1] * r[2] - g_u[2] * r[1]
    g_fy = grad[1, 2] + g_u[2] * r[0] - g_u[0] * r[2]
    g_fz = grad[2, 2] + g_u[0] * r[1] - g_u[1] * r[0]
    # From forward and right to the centre.
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
    """Turn total [13] of `_evaluate` into gradient[4:6], see `scene.principal_gradient`."""
    for axis in range(2):
        value = 0.0
        for i in range(3):
            value += rotation[i, axis] * total[6 + 3 * i]
        gradient[4 + axis] = -value / focal


@njit(**COMPILED)
def _turned_back(pose, rotation, i):
    """Component i of the camera's right and up axes without theta."""
    c = math.cos(pose[3])
    s = math.sin(pose[3])
    right = c * rotation[i, 0] - s * rotation[i, 1]
    up = -s * rotation[i, 0] - c * rotation[i, 1]
    return right, up


@njit(**COMPILED)
def _to_local(pose, rotation, gradient):
    """Turn gradient[:4] by (centre, theta) into one in the camera's own frame, in place.

    Its variables are (sideways, up, theta, log distance), see `steps.local_gradient`.
    """
    distance = math.sqrt(pose[0] ** 2 + pose[1] ** 2 + pose[2] ** 2)
    sideways = up = nearer = 0.0
    for i in range(3):
        r, u = _turned_back(pose, rotation, i)
        sideways += gradient[i] * r
        up += gradient[i] * u
        nearer -= gradient[i] * rotation[i, 2]
    gradient[2] = gradient[3]
    gradient[0] = sideways * distance
    gradient[1] = up * distance
    gradient[3] = nearer * distance


@njit(**COMPILED)
def _local_move(pose, rotation, step):
    """Move a pose by step[:4] = (sideways, up, theta, log distance), in place.

    It does the same as `steps.local_move`.
    """
    distance = math.sqrt(pose[0] ** 2 + pose[1] ** 2 + pose[2] ** 2)
    length = math.sqrt(1.0 + step[0] ** 2 + step[1] ** 2)
    for i in range(3):
        r, u = _turned_back(pose, rotation, i)
        direction = -rotation[i, 2] + step[0] * r + step[1] * u
        pose[i] = direction * distance * math.exp(step[3]) / length
    pose[3] += step[2]


@njit(**COMPILED)
def _adam_step(gradient, first, second, count, rate, rules, step):
    """Write step [6] of Adam's update `count` (from 1), by the formula of `torch.optim.Adam`.

    Both moments are updated.
    """
    correct1 = 1.0 - rules.beta1**count
    correct2 = math.sqrt(1.0 - rules.beta2**count)
    # Update the moments, and correct them for their start at 0.
    for i in range(6):
        first[i] += (1.0 - rules.beta1) * (gradient[i] - first[i])
        second[i] += (1.0 - rules.beta2) * (gradient[i] * gradient[i] - second[i])
        step[i] = -rate / correct1 * first[i] / (math.sqrt(second[i]) / correct2 + ADAM_EPSILON)


@njit(**COMPILED)
def _record(candidates, at, pose, loss):
    """Record the loss of the candidate `at` (image, candidate)."""
    candidates.loss[at] = loss
    candidates.evaluations[at] += 1
    candidates.since_best[at] += 1
    if loss < candidates.best_loss[at]:
        candidates.best_loss[at] = loss
        candidates.best_poses[at] = pose
        candidates.since_best[at] = 0


@njit(**COMPILED)
def _move(pose, rotation, step, rules):
    """Move a pose [6] by a step [6], in place."""
    if rules.local_scale > 0.0:
        step[3] *= rules.local_scale
        _local_move(pose, rotation, step)
    else:
        for i in range(4):
            pose[i] += step[i]
    pose[4] += rules.principal_scale * step[4]
    pose[5] += rules.principal_scale * step[5]


@njit(**COMPILED)
def _advance_candidate(mesh, focal, image, candidates, at, rules, stage, path):
    """Take a stage's steps with the candidate `at` (image, candidate); see `advance`."""
    steps = len(stage.rates)
    pose = candidates.poses[at]
    average = candidates.average[at]
    buffers = _buffers(mesh.vertices.shape[0], image.scores.shape[0] // image.width, image.width)
    total = np.empty(13)
    rotation = np.empty((3, 3))
    gradient = np.empty(6)
    step = np.empty(6)
    candidates.evaluations[at] = 0
    for s in range(steps + 1 if stage.finish else steps):
        # Evaluate this iterate, or the average at the end.
        if s == steps and rules.averaging > 0.0:
            pose[:] = average
        if s == steps or candidates.since_best[at] < rules.patience:
            _look_at(pose[:3], pose[3], rotation)
            view = View(pose[:3], rotation, focal, pose[4], pose[5])
            loss = _evaluate(mesh, view, image, buffers, total)
            _record(candidates, at, pose, loss)
        if path.shape[0]:
            path[s, :6] = pose
            path[s, 6] = candidates.loss[at]
        if s == steps or candidates.since_best[at] >= rules.patience:
            continue
        # Take Adam's step along the gradient by the pose.
        _look_at_backward(pose[:3], pose[3], rotation, total, gradient)
        _principal_gradient(rotation, total, focal, gradient)
        if rules.local_scale > 0.0:
            _to_local(pose, rotation, gradient)
        count = stage.done + s + 1
        first = candidates.first[at]
        second = candidates.second[at]
        _adam_step(gradient, first, second, count, stage.rates[s], rules, step)
        _move(pose, rotation, step, rules)
        if rules.averaging > 0.0:
            share = rules.averaging / (1.0 - (1.0 - rules.averaging) ** count)
            for i in range(6):
                average[i] += share * (pose[i] - average[i])


@njit(**COMPILED, parallel=True)
def advance(mesh, focal, scores, candidates, rules, stage, path):
    """Take a stage's steps with K candidates of each of B images, in parallel over all of them.

    mesh: `MeshArrays`. scores: `MapScores`. candidates: `CandidateStates`, changed in place. rules:
    `StepRules`. stage: `Stage`. path [B, K, rows, 7]: receives every pose and its loss, or nothing
    where it is [B, K, 0, 7].
    """
    count = candidates.loss.shape[1]
    for item in prange(scores.scores.shape[0] * count):
        b = item // count
        k = item % count
        image = _image(scores, b)
        _advance_candidate(mesh, focal, image, candidates, (b, k), rules, stage, path[b, k])


def launch(kernel: Callable, threads: int, *arguments: object) -> None:
    """Call one of the parallel kernels on at most `threads` threads.

    numba's own limit on the number of threads also holds.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, before)))
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)
