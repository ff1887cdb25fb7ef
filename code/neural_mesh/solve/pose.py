"""The pose solver: which camera explains a feature map best (paper section 3.3, reference `MeshPoseSolveAll`).

A pose is (camera centre, theta, principal point): the camera sits anywhere, looks at the object's origin with z up, and
is turned by theta about its viewing direction; the principal point is where the origin falls on the map, in cells. It
stays where the camera has it unless `SolveConfig.six_d`. Frames as in `rendering`; angles are radians.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from neural_mesh import settings
from neural_mesh.categories import category_settings
from neural_mesh.compare import kernels_numba, rendering
from neural_mesh.compare.rendering import PictureTable, Scene, Target
from neural_mesh.digests import short_digest
from neural_mesh.geometry.cameras import (
    MapCamera,
    camera_centre,
    consistent_camera,
    paper_camera,
    spherical_from_centre,
)
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.machine.resources import free_memory
from neural_mesh.settings import SolveConfig

MEMORY_BUDGET = 2 << 30  # bytes of score volumes held at a time on the CPU, at most
FREE_SHARE = 0.25  # of the memory that is free, what score volumes may take
TRIAL_STEPS = 6  # of the optimiser
TRIAL_MAP_HW = (24, 40)  # more cells than a kernel takes at once, and not a multiple of them
TRIAL_IMAGES = 3
TRIAL_TOLERANCE = 1e-3  # of losses, and of camera centres in CAD units; float32 gives 1e-6


@dataclass(frozen=True)
class Poses:
    """Solved poses of B images, NumPy.

    azimuth in [0, 2 pi), elevation, theta [B] in radians, distance [B] and centre [B, 3] (camera centre, object frame)
    in CAD units, principal_xy [B, 2]: where the object's origin falls on the map, in cells, loss [B] of this pose, start
    [B]: index into the start grid, start_losses [B, N] of the whole grid, evaluations [B]: renderings compared with the
    image after the grid, of all candidates.
    path [B, steps + 1, 4] (centre, theta), path_principal_xy [B, steps + 1, 2] and path_losses [B, steps + 1]: every
    iterate, the last repeated where a plan stopped early; None unless traced.
    """

    azimuth: NDArray[np.float64]
    elevation: NDArray[np.float64]
    theta: NDArray[np.float64]
    distance: NDArray[np.float64]
    loss: NDArray[np.float64]
    start: NDArray[np.int64]
    evaluations: NDArray[np.int64]
    centre: NDArray[np.float64]
    principal_xy: NDArray[np.float64]
    start_losses: NDArray[np.float64]
    path: NDArray[np.float64] | None = None
    path_principal_xy: NDArray[np.float64] | None = None
    path_losses: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def joined(cls, parts: Sequence[Poses]) -> Poses:
        """The images of all parts, in order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(
            **{
                name: None if values[0] is None else np.concatenate(values)
                for name, values in columns.items()
            }
        )


@dataclass(frozen=True)
class Starts:
    """The start grid, shared by all images.

    poses [S D A, 6]: S shifts over the map of D distances of A views, the views last. table: pictures of the D A poses
    that are not shifted. shifts_rc: S pairs of whole cells.
    """

    poses: Tensor
    table: PictureTable
    shifts_rc: list[tuple[int, int]]
    views: int


def start_poses(config: SolveConfig, distance: float) -> NDArray[np.float64]:
    """Poses [N, 4] (camera centre, theta) of the start grid: azimuth, elevation, theta, last fastest (reference)."""
    azimuth = np.linspace(0, 2 * np.pi, config.azimuths, endpoint=False)
    grid = np.meshgrid(
        azimuth, np.linspace(*config.elevations), np.linspace(*config.thetas), indexing="ij"
    )
    azimuth, elevation, theta = (g.ravel() for g in grid)
    return np.concatenate([camera_centre(azimuth, elevation, distance), theta[:, None]], axis=1)


@dataclass(frozen=True)
class Plan:
    """How starts become poses.

    stages: (candidates, steps) in turn; each stage goes on with the best candidates of the one before.
    rates [all steps]: learning rate of each step, the same for all candidates. betas: Adam's.
    local_scale: 0 to step in (centre, theta) as the reference does; otherwise steps are (sideways, up, theta, log
    distance) in the camera's own frame, all in radians but the last, which is multiplied by it.
    principal_scale: focal lengths that a unit step moves the principal point by; 0 leaves it where it is.
    separation: radians; of the starts, those nearer than this to a better one come last.
    averaging: share of the newest iterate in a running average of the iterates, which is what is returned; 0 to return the
    last iterate. keep_best: return the best iterate, instead.
    patience: evaluations in a row without a new lowest loss after which a candidate is done; 0 for never.
    """

    stages: tuple[tuple[int, int], ...]
    rates: NDArray[np.float64]
    betas: tuple[float, float]
    local_scale: float = 0.0
    principal_scale: float = 0.0
    separation: float = 0.0
    averaging: float = 0.0
    keep_best: bool = False
    patience: int = 0

    @property
    def evaluations(self) -> int:
        """Renderings compared with an image after the start grid, at most; what is returned is evaluated once more."""
        return sum(candidates * steps for candidates, steps in self.stages) + self.stages[-1][0]

    @property
    def fingerprint(self) -> str:
        """Short name of everything in the plan: other plans, other poses."""
        values = [
            value.tolist() if isinstance(value, np.ndarray) else value
            for value in (getattr(self, f.name) for f in fields(self))
        ]
        return short_digest(repr(values).encode())


# Chosen by benchmarks/solvers.py on one half of its photographs, under several draws of occluders, and on sample data that
# the demo does not make. Secant and sign-based steps (BFGS, Rprop) came out worse than Adam's: the score is linear within a
# triangle and has kinks between them. For the same reason the best iterate is a worse pose than an average: it sits in a
# kink. Starts moved to the minimum of a parabola through the grid's losses did not help.
BEST_STAGES = ((3, 3), (2, 5), (1, 20))
BEST_STAGES_6D = (
    (8, 5),
    (3, 10),
    (1, 24),
)  # to their end, and then the best iterate: place and distance come out better
BEST_RATES = (0.1, 0.03)  # radians, first and last step, geometric between them
BEST_RATES_6D = (0.15, 0.01)
BEST_AVERAGING = 0.25
BEST_PATIENCE = 6
BEST_BETAS = (0.7, 0.7)
BEST_LOCAL_SCALE = 0.1  # crops have their objects at about the start distance; more freedom costs accuracy under occlusion
BEST_LOCAL_SCALE_6D = 0.5
PRINCIPAL_SCALE = 0.1  # a unit step then moves the picture as a turn by one radian moves its parts: 0.5 CAD units of 5
BEST_SEPARATION = np.radians(
    35.0
)  # just passes over the neighbours in the grid, which lead to the same pose


def make_plan(config: SolveConfig, stages: tuple[tuple[int, int], ...] | None = None) -> Plan:
    """The plan of a solver: "paper" follows `config`; "best" ignores its schedule and uses `stages`, or its own.

    Raises ValueError for a solver that does not exist.
    """
    scale = PRINCIPAL_SCALE if config.six_d else 0.0
    if config.solver == "paper":
        steps = np.arange(config.total_epochs)
        rates = config.learning_rate * config.drop_factor ** (steps // config.step_drop)
        return Plan(((1, config.total_epochs),), rates, config.adam_betas, principal_scale=scale)
    if config.solver == "best":
        stages = stages or (BEST_STAGES_6D if config.six_d else BEST_STAGES)
        steps = sum(steps for _, steps in stages)
        if config.six_d:
            rates = np.geomspace(*BEST_RATES_6D, steps)
            return Plan(
                stages,
                rates,
                BEST_BETAS,
                BEST_LOCAL_SCALE_6D,
                scale,
                BEST_SEPARATION,
                keep_best=True,
            )
        rates = np.geomspace(*BEST_RATES, steps)
        return Plan(
            stages,
            rates,
            BEST_BETAS,
            BEST_LOCAL_SCALE,
            scale,
            BEST_SEPARATION,
            BEST_AVERAGING,
            patience=BEST_PATIENCE,
        )
    raise ValueError(f"SOLVER must be paper or best, found {config.solver!r}")


def choose_camera(
    config: SolveConfig, category: str, map_hw: tuple[int, int], image_scale: float = 1.0
) -> tuple[MapCamera, float]:
    """The camera that a solver renders with, and the distance of its start grid.

    paper: the reference's 12 degree camera with the category's tuned distance. best: the camera that the crops were
    made with.
    """
    if config.solver == "paper":
        return paper_camera(map_hw), category_settings(category).paper_distance
    return consistent_camera(map_hw, image_scale), settings.NORMALISED_DISTANCE


def start_placements(
    config: SolveConfig, map_hw: tuple[int, int]
) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """Factors [D] of the start distance and S shifts (rows, columns) in whole cells of the start grid."""
    if not config.six_d:
        return np.ones(1), [(0, 0)]
    rows, columns = (
        np.unique(np.round(np.linspace(*config.shifts) * cells).astype(int)).tolist()
        for cells in map_hw
    )
    return np.geomspace(*config.distance_factors), [(r, c) for r in rows for c in columns]


def make_starts(
    scene: Scene, config: SolveConfig, distance: float, renderer: str, device: torch.device
) -> Starts:
    """Render the start grid at a distance in CAD units."""
    factors, shifts_rc = start_placements(config, scene.camera.map_hw)
    margin_rc = tuple(max(abs(shift[axis]) for shift in shifts_rc) for axis in range(2))
    views = start_poses(config, distance)
    poses = np.concatenate([views * [f, f, f, 1] for f in factors])
    poses = torch.as_tensor(poses, device=device)
    rotation = rendering.look_at(poses[:, :3], poses[:, 3])
    table = rendering.render_table(scene, poses[:, :3], rotation, renderer, margin_rc)
    principals = poses.new_tensor(scene.camera.principal_xy) + poses.new_tensor(shifts_rc).flip(1)
    placed = [torch.cat([poses, xy.expand(len(poses), 2)], 1) for xy in principals]
    return Starts(torch.cat(placed), table, shifts_rc, len(views))


def starts_of(
    mesh: Mesh,
    config: SolveConfig,
    camera: MapCamera,
    start_distance: float,
    renderer: str,
    device: torch.device,
) -> Starts:
    """The start grid of `solve`, for several calls with the same arguments. device: of the features."""
    device = torch.device("cpu") if renderer == "numba" else device
    return make_starts(rendering.make_scene(mesh, camera), config, start_distance, renderer, device)


def memory_budget(device: torch.device) -> int:
    """Bytes that score volumes may take on a device: a quarter of what is free, on the CPU no more than `MEMORY_BUDGET`."""
    if device.type == "cuda":
        return int(FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return MEMORY_BUDGET if free is None else min(MEMORY_BUDGET, int(FREE_SHARE * free))


def solve(
    mesh: Mesh,
    features: Tensor,
    bank: Tensor,
    clutter: Tensor,
    config: SolveConfig,
    camera: MapCamera,
    start_distance: float,
    renderer: str | None = None,
    starts: Starts | None = None,
    *,
    plan: Plan | None = None,
    trace: bool = False,
    budget_bytes: int | None = None,
) -> Poses:
    """Find the pose of the mesh in every feature map.

    features [B, C, H, W]: unit feature maps, of any float type; scores are computed in float32 on their device.
    bank [V, C]: unit vertex features. clutter [C]: unit clutter feature, used if config.clutter. config: the solver and
    its settings. camera, start_distance (CAD units, of the start grid): see `choose_camera`. renderer: see
    `resolve_renderer`, default config.renderer. starts: what `starts_of` makes of the same arguments, to make it
    once only. plan: in place of the solver's own. trace: also return every iterate. budget_bytes: for the score volumes
    held at a time, by default `memory_budget`.

    Returns `Poses` in the order of the images; an image's result does not depend on the others in the call.
    Raises ValueError when shapes do not fit together, or the solver or the renderer does not exist.
    """
    if tuple(features.shape[2:]) != tuple(camera.map_hw):
        raise ValueError(
            f"the camera is for maps of {camera.map_hw} cells, the features are {tuple(features.shape)}"
        )
    if len(bank) != len(mesh.vertices):
        raise ValueError(
            f"the bank has {len(bank)} vertex features, the mesh {len(mesh.vertices)} vertices"
        )
    plan = plan or make_plan(config)
    renderer = resolve_renderer(renderer or config.renderer, features.device)
    device = torch.device("cpu") if renderer == "numba" else features.device
    scene = rendering.make_scene(mesh, camera)
    starts = starts or starts_of(mesh, config, camera, start_distance, renderer, features.device)
    bank, clutter = (
        bank.to(device, torch.float32),
        clutter.to(device, torch.float32) if config.clutter else None,
    )
    budget_bytes = memory_budget(device) if budget_bytes is None else budget_bytes
    parts = []
    for chunk in features.split(rendering.images_that_fit(scene, features.shape[1], budget_bytes)):
        target = rendering.make_target(chunk.to(device, torch.float32), bank, clutter, renderer)
        parts.append(solve_target(scene, target, starts, plan, renderer, trace))
    return Poses.joined(parts)


def resolve_renderer(name: str, device: torch.device) -> str:
    """RENDERER as asked for -> the one to use on a device; auto is triton on a GPU where `triton_agrees`, otherwise numba.

    Raises ValueError for a name that does not exist, and for a renderer that cannot run there.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and rendering.has_triton(device)
        return "triton" if on_gpu and triton_agrees(device) else "numba"
    rendering.check_renderer(name, device)
    return name


@lru_cache
def triton_agrees(device: torch.device) -> bool:
    """Whether Triton's kernels give on a GPU what numba's give on the CPU, found by solving small problems.

    They are compiled for each GPU by the Triton that is installed, which may lack a C compiler, or fail. Where they do
    not agree, that is told. Raises ValueError when they leave the GPU unusable.
    """
    trials = [
        _trial_problem(cuboid, solver) for cuboid in (True, False) for solver in ("paper", "best")
    ]
    on_cpu = [_try(trial, "numba", torch.device("cpu")) for trial in trials]
    try:
        with redirect_stdout(sys.stderr):  # where Triton writes what its assembler refuses
            found = [_try(trial, "triton", device) for trial in trials]
    except Exception as error:  # a compiler's, a driver's, a GPU's; told below
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            "no reason given"
        ]
        reason = f"they failed with {type(error).__name__}: {' ... '.join(dict.fromkeys((lines[0], lines[-1])))}"
    else:
        # of most images: at a cell that lies on an edge to rounding, one that sees the other triangle goes another way
        difference = np.max(
            np.median([np.abs(a - b).max(1) for a, b in zip(found, on_cpu, strict=True)], axis=1)
        )
        if difference <= TRIAL_TOLERANCE:
            return True
        reason = f"they differ by {difference:.1g}"
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise ValueError(
                f"Triton's kernels have left {device} unusable, {reason}; set RENDERER=numba, or for training VALIDATE_EVERY=0"
            ) from error
    print(
        f"note: RENDERER=auto uses numba; on {device} Triton's kernels do not solve a trial as it does: {reason}",
        file=sys.stderr,
    )
    return False


def _trial_problem(cuboid: bool, solver: str) -> tuple[Mesh, list[Tensor], SolveConfig]:
    """Images of noise, with a bank and clutter, to solve with a cuboid or with a mesh that is none."""
    random = np.random.default_rng(0)
    mesh = cuboid_mesh(
        CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (2, 3, 2))
    )
    if not cuboid:
        mesh = Mesh(mesh.vertices * (1 + 0.1 * mesh.vertices[:, :1]), mesh.faces)
    shapes = (TRIAL_IMAGES, 8, *TRIAL_MAP_HW), (len(mesh.vertices), 8), (1, 8)
    features, bank, clutter = (
        functional.normalize(torch.as_tensor(random.standard_normal(shape)).float(), dim=1)
        for shape in shapes
    )
    return mesh, [features, bank, clutter[0]], SolveConfig(solver=solver, total_epochs=TRIAL_STEPS)


def _try(
    trial: tuple[Mesh, list[Tensor], SolveConfig], renderer: str, device: torch.device
) -> NDArray[np.float64]:
    """Start losses, final loss and camera centre that a renderer finds for each image of a trial, a row each."""
    mesh, tensors, config = trial
    plan = make_plan(config, ((2, 2), (1, TRIAL_STEPS - 2)))
    poses = solve(
        mesh,
        *(x.to(device) for x in tensors),
        config,
        *choose_camera(config, "car", TRIAL_MAP_HW),
        renderer,
        plan=plan,
    )
    return np.concatenate([poses.start_losses, poses.loss[:, None], poses.centre], 1)


def solve_target(
    scene: Scene, target: Target, starts: Starts, plan: Plan, renderer: str, trace: bool = False
) -> Poses:
    """`solve` for images whose scores are at hand: the grid, the plan's stages, the candidate that comes out best."""
    losses = [
        rendering.compare_table(starts.table, target, renderer, shift) for shift in starts.shifts_rc
    ]
    start_losses = torch.cat(losses, 1)
    view_losses, placement = start_losses.unflatten(1, (-1, starts.views)).min(
        1
    )  # of every view, where it fits best
    chosen = choose_starts(
        starts.poses[: starts.views], view_losses, plan.stages[0][0], plan.separation
    )
    chosen = placement.gather(1, chosen) * starts.views + chosen
    state = _State.begin(starts.poses[chosen], chosen)
    evaluations = torch.zeros_like(chosen[:, 0])
    advance = {"numba": _advance_numba, "triton": _advance_triton}.get(renderer, _advance)
    done = 0
    for number, (candidates, steps) in enumerate(plan.stages):
        state = state.select(state.best_loss.argsort(dim=1, stable=True)[:, :candidates])
        rates, finish = plan.rates[done : done + steps], number == len(plan.stages) - 1
        path = advance(scene, target, state, rates, done, plan, finish, renderer, trace)
        state.path = torch.cat([state.path, path], 2)
        evaluations += state.evaluations.sum(1)
        done += steps
    loss, poses = (
        (state.best_loss, state.best_poses) if plan.keep_best else (state.loss, state.poses)
    )
    winner = loss.argmin(1, keepdim=True)
    loss, poses, path = (_take(x, winner)[:, 0].cpu().numpy() for x in (loss, poses, state.path))
    azimuth, elevation, distance = spherical_from_centre(poses[:, :3])
    return Poses(
        azimuth,
        elevation,
        poses[:, 3].copy(),
        distance,
        loss,
        _take(state.start, winner)[:, 0].cpu().numpy(),
        evaluations.cpu().numpy(),
        poses[:, :3].copy(),
        poses[:, 4:].copy(),
        start_losses.cpu().numpy(),
        *((path[..., :4], path[..., 4:6], path[..., 6]) if trace else ()),
    )


def choose_starts(poses: Tensor, losses: Tensor, count: int, separation: float) -> Tensor:
    """Indices [B, count] of the best starts by losses [B, N], best first.

    Starts whose rotation (of poses [N, 4+]) is nearer than `separation` radians to a better one come after all others.
    """
    rotation = rendering.look_at(poses[:, :3], poses[:, 3])
    cosine = (torch.einsum("aij,bij->ab", rotation, rotation) - 1) / 2
    near = (
        (cosine > np.cos(separation)) if separation else torch.zeros_like(cosine, dtype=torch.bool)
    )
    near.fill_diagonal_(True)
    losses, chosen = losses.clone(), []
    for _ in range(min(count, len(poses))):
        best = losses.argmin(1)
        chosen.append(best)
        losses = losses + near[best] * 1e3  # beyond any loss, and still in order among themselves
        losses.scatter_(1, best[:, None], torch.inf)
    return torch.stack(chosen, 1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, K, ...] at index [B, k] -> [B, k, ...]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


@dataclass
class _State:
    """K candidates of each of B images on their way: changed in place by `advance`.

    poses [B, K, 6] (centre, theta, principal point); first, second [B, K, 6]: Adam's moments; loss [B, K]: last
    evaluated; best_loss [B, K] and best_poses [B, K, 6]: of all iterates; average [B, K, 6]: of all iterates, if
    `Plan.averaging`; since_best [B, K]: evaluations since the best; evaluations [B, K]: in the last stage; start [B, K]:
    grid index; path [B, K, steps so far, 7].
    """

    poses: Tensor
    first: Tensor
    second: Tensor
    loss: Tensor
    best_loss: Tensor
    best_poses: Tensor
    average: Tensor
    since_best: Tensor
    evaluations: Tensor
    start: Tensor
    path: Tensor

    @classmethod
    def begin(cls, poses: Tensor, start: Tensor) -> _State:
        poses = poses.double()
        infinite, none = torch.full_like(poses[..., 0], torch.inf), torch.zeros_like(start)
        zero = torch.zeros_like(poses)
        path = poses.new_zeros(*start.shape, 0, 7)
        return cls(
            poses,
            zero,
            zero.clone(),
            infinite,
            infinite.clone(),
            poses.clone(),
            zero.clone(),
            none,
            none.clone(),
            start,
            path,
        )

    def arrays(self) -> tuple[Tensor, ...]:
        return (
            self.poses,
            self.first,
            self.second,
            self.loss,
            self.best_loss,
            self.best_poses,
            self.average,
            self.since_best,
            self.evaluations,
        )

    def select(self, index: Tensor) -> _State:
        return _State(*(_take(getattr(self, f.name), index).contiguous() for f in fields(self)))


def local_gradient(poses: Tensor, rotation: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [B, 4] in (centre, theta) -> in (sideways, up, theta, log distance) of the camera's own frame.

    poses [B, 4+], rotation [B, 3, 3]: their look-at. Sideways and up are angles: the camera moves on its sphere.
    """
    distance = poses[:, :3].norm(dim=1, keepdim=True)
    along = (gradient[:, None, :3] @ _turned_back(poses, rotation))[
        :, 0
    ] * distance  # right, up, forward
    return torch.stack([along[:, 0], along[:, 1], gradient[:, 3], -along[:, 2]], 1)


def local_move(poses: Tensor, rotation: Tensor, step: Tensor) -> Tensor:
    """Poses [B, 4] after step [B, 4+] = (sideways, up, theta, log distance) in the camera's own frame."""
    distance = poses[:, :3].norm(dim=1, keepdim=True) * step[:, 3:4].exp()
    towards = torch.stack([step[:, 0], step[:, 1], -torch.ones_like(step[:, 0])], 1)
    direction = (_turned_back(poses, rotation) @ towards[..., None])[..., 0]
    centre = distance * direction / towards.norm(dim=1, keepdim=True)
    return torch.cat([centre, poses[:, 3:4] + step[:, 2:3]], 1)


def _turned_back(poses: Tensor, rotation: Tensor) -> Tensor:
    """The camera's right, up and forward axes without theta, as columns [B, 3, 3]."""
    cos, sin = torch.cos(poses[:, 3:4]), torch.sin(poses[:, 3:4])
    x, y, z = rotation.unbind(2)
    return torch.stack([cos * x - sin * y, -sin * x - cos * y, z], 2)


def pose_gradient(
    scene: Scene, target: Target, poses: Tensor, renderer: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], gradient [B, 6], and the look-at [B, 3, 3] of poses [B, 6], one per image."""
    with torch.enable_grad():
        poses = poses.detach().requires_grad_()
        rotation = rendering.look_at(poses[:, :3], poses[:, 3])
        loss, grad_centre, grad_rotation = rendering.compare(
            scene, target, poses[:, :3], rotation, renderer, poses[:, 4:]
        )
        (gradient,) = torch.autograd.grad(rotation, poses, grad_rotation)
    rotation = rotation.detach()
    gradient[:, :3] += grad_centre
    gradient[:, 4:] = rendering.principal_gradient(scene.camera, rotation, grad_rotation)
    return loss, gradient, rotation


def _advance(
    scene: Scene,
    target: Target,
    state: _State,
    rates: NDArray,
    done: int,
    plan: Plan,
    finish: bool,
    renderer: str,
    trace: bool,
) -> Tensor:
    """Take Adam steps with every candidate, one by one in PyTorch; returns the path [B, K, steps, 7] or [B, K, 0, 7].

    The plain twin of `kernels_numba.advance`, for renderers that have no compiled optimiser.
    """
    path = []
    state.evaluations.zero_()
    for s in range(len(rates) + finish):
        last = s == len(rates)
        for k in range(state.poses.shape[1]):
            if last and plan.averaging:
                state.poses[:, k] = state.average[:, k]
            poses, going = state.poses[:, k].clone(), state.since_best[:, k] < _patience(plan)
            loss, gradient, rotation = pose_gradient(scene, target, poses, renderer)
            _record(state, k, going | last, poses, loss)
            path.append(torch.cat([poses, state.loss[:, k : k + 1]], 1))
            if last:
                continue
            going &= state.since_best[:, k] < _patience(plan)
            moved = _adam_move(
                scene, state, k, poses, gradient, rotation, rates[s], done + s + 1, plan
            )
            state.poses[:, k] = torch.where(going[:, None], moved, poses)
            share = _share(plan, done + s + 1)
            state.average[:, k] = torch.where(
                going[:, None], state.average[:, k].lerp(moved, share), state.average[:, k]
            )
    if not trace:
        return state.path[:, :, :0]
    return torch.stack(path, 1).unflatten(1, (-1, state.poses.shape[1])).transpose(1, 2)


def _patience(plan: Plan) -> int:
    """Evaluations without a new lowest loss after which a candidate is done; more than there are where there is no end."""
    return plan.patience or plan.evaluations + 1


def _share(plan: Plan, count: int) -> float:
    """What iterate number `count` (from 1) gets of the running average, in which the start has none."""
    return plan.averaging / (1 - (1 - plan.averaging) ** count) if plan.averaging else 0.0


def _record(state: _State, k: int, seen: Tensor, poses: Tensor, loss: Tensor) -> None:
    """Write down candidate k's evaluation of the images [B] that were seen."""
    better = seen & (loss < state.best_loss[:, k])
    state.loss[:, k] = torch.where(seen, loss, state.loss[:, k])
    state.best_loss[:, k] = torch.where(better, loss, state.best_loss[:, k])
    state.best_poses[:, k] = torch.where(better[:, None], poses, state.best_poses[:, k])
    state.since_best[:, k] = torch.where(better, 0, state.since_best[:, k] + seen)
    state.evaluations[:, k] += seen


def _adam_move(
    scene: Scene,
    state: _State,
    k: int,
    poses: Tensor,
    gradient: Tensor,
    rotation: Tensor,
    rate: float,
    count: int,
    plan: Plan,
) -> Tensor:
    """Poses [B, 6] of candidate k after Adam's update number `count` (from 1) at `poses`."""
    beta1, beta2 = plan.betas
    if plan.local_scale:
        gradient[:, :4] = local_gradient(poses, rotation, gradient)
    first = state.first[:, k].lerp_(gradient, 1 - beta1) / (1 - beta1**count)
    second = state.second[:, k].lerp_(gradient**2, 1 - beta2) / (1 - beta2**count)
    step = -rate * first / (second.sqrt() + kernels_numba.ADAM_EPSILON)
    step[:, 4:] *= plan.principal_scale * scene.camera.focal
    moved = poses + step
    if plan.local_scale:
        step[:, 3] *= plan.local_scale
        moved[:, :4] = local_move(poses, rotation, step)
    return moved


def _scales(scene: Scene, plan: Plan) -> tuple[float, float]:
    """local_scale, and the cells that a unit step moves the principal point by."""
    return float(plan.local_scale), float(plan.principal_scale * scene.camera.focal)


def _advance_numba(
    scene: Scene,
    target: Target,
    state: _State,
    rates: NDArray,
    done: int,
    plan: Plan,
    finish: bool,
    renderer: str,
    trace: bool,
) -> Tensor:
    """As `_advance`, compiled."""
    path = np.empty((*state.loss.shape, len(rates) + finish if trace else 0, 7))
    arrays = [x.numpy() for x in state.arrays()]
    rendering.run_kernel(
        kernels_numba.advance,
        rendering.numba_shape(scene),
        float(scene.camera.focal),
        scene.camera.map_hw[1],
        *rendering.numba_target(target),
        *arrays,
        rates,
        done,
        *plan.betas,
        *_scales(scene, plan),
        plan.averaging,
        _patience(plan),
        finish,
        path,
    )
    return torch.as_tensor(path)


def _advance_triton(
    scene: Scene,
    target: Target,
    state: _State,
    rates: NDArray,
    done: int,
    plan: Plan,
    finish: bool,
    renderer: str,
    trace: bool,
) -> Tensor:
    """As `_advance`, in one kernel on the GPU."""
    path = state.path.new_empty(*state.loss.shape, len(rates) + finish if trace else 0, 7)
    rendering.triton_kernels().advance(
        rendering.triton_shape(scene, target.scores.device),
        float(scene.camera.focal),
        scene.camera.map_hw[1],
        *rendering.triton_target(target),
        state.arrays(),
        rates,
        done,
        *plan.betas,
        *_scales(scene, plan),
        plan.averaging,
        _patience(plan),
        finish,
        path,
    )
    return path
