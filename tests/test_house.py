"""The plan of the house: who imports whom, by which door a package comes in, how a room looks."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from helpers.house import (
    CODE,
    COMPREHENSIONS,
    ENTRY_POINTS,
    MODULES,
    PACKAGE,
    compared_with,
    functions_of,
    imports_of,
    is_kernel,
    module_of,
    modules_imported,
    name_of,
    nested,
    packages_needed,
    parameters,
    project_files,
    takes_scalars,
    tree_of,
)

# The packages of neural_mesh from the ground up, and in each its modules in the same order. A
# module imports only what stands before it. A new one gets its place behind all that it imports.
ORDER = """
-            published digests settings categories backbones
geometry     cameras meshes boxes visibility pose_error
storage      files foreign_files npz_files mesh_files pictures records results timings layout
storage      pickled_settings checkpoint_checks checkpoints
machine      devices distributed resources console workers arguments
network      top_down resnets timm_backbone backbone pretrained bank losses
data         kitti archives augmentation crops foreign_sets decoded_crops occluders
data         donor_pictures dataset downloads
data         loading mat_files pascal3d splits textures occlusion occluded_pascal3d
compare      scene kernels_numba steps specification with_pytorch3d rasteriser with_numba
compare      triton_numbers triton_rays triton_loss triton_kernels triton_launch with_triton
solve        plan starts candidates solver choose_renderer halving model batches mesh_solver
solve        shards run
training     tensorboard_log schedule setup step memory validation log state trainer
pictures     canvas captions colours edges manifest mesh_overlay landscape loss_curves
pictures     occluder_map figures contact_sheet film resizing selection solved match pose_files
pictures     comparison result_pictures viewpoints
report       timings cards page_assets scores gallery svg tables level_report charts page
sample       backgrounds car_shapes car_lines shapes parts car_paint cars chairs models
sample       viewpoints looks shading drawing annotations planned_pictures
photographs  calibration framing box_files folders jobs poses crop_solver evidence results
photographs  overlay finder calibration_images predictor
stages       annotate_vertices download_data export_checkpoint list_gpus make_cuboids
stages       make_sample_data networks extract_features occluded_levels make_occluded predict
stages       cropped_images prepare_images list_categories prepare_kitti3d report_accuracy
stages       saved_results other_drawings
stages       draw_results select_azimuths solve_poses train write_report
"""

TRITON_KERNELS = {f"compare.triton_{name}" for name in ("kernels", "loss", "numbers", "rays")}

# Packages of others that are heavy or may be missing, and the modules that import them.
DOORS = {
    "pytorch3d": {"compare.with_pytorch3d"},
    "matplotlib": {"pictures.canvas"},
    "scipy": {"data.mat_files"},
    "torchvision": {"network.resnets", "network.pretrained", "data.augmentation"},
    "timm": {"network.timm_backbone"},
    "numba": {"compare.kernels_numba"},
    "triton": TRITON_KERNELS,
    "safetensors": {"storage.checkpoints"},
    "tensorboard": {"training.tensorboard_log"},
}

# Stages that need no network, and start faster without torch.
WITHOUT_TORCH = (
    *("prepare_images", "make_cuboids", "annotate_vertices", "select_azimuths", "make_occluded"),
    *("make_sample_data", "download_data", "prepare_kitti3d", "report_accuracy", "write_report"),
    "list_categories",
)

# A renderer is chosen by its name in one place.
RENDERERS = {"numba", "triton", "pytorch3d", "pytorch3d-features"}
CHOICE_OF_RENDERERS = "solve.choose_renderer"

COLUMNS = 100
LINES_OF_A_MODULE = 400
# Compiled kernels on disk notice a change of their own file only, so all of them are in one.
LONG_ON_PURPOSE = {"code/neural_mesh/compare/kernels_numba.py"}
LINES_OF_A_FUNCTION = 60
PARAMETERS = 9

LIBRARY = [*MODULES, *ENTRY_POINTS]
PYTHON_FILES = project_files(".py")


def read_order() -> list[str]:
    """Modules in the order of the table, as `geometry.cameras`."""
    modules = []
    for line in ORDER.strip().splitlines():
        package, *names = line.split()
        prefix = "" if package == "-" else f"{package}."
        modules += [prefix + name for name in names]
    return modules


def no(complaints: list[str]) -> None:
    """Fail with all complaints, one a line."""
    assert not complaints, "\n" + "\n".join(complaints)


# ---- who imports whom ----


def test_every_module_has_its_place_in_the_table():
    order = read_order()
    there = [module_of(path) for path in MODULES]
    no([f"{name}.py has no place in ORDER" for name in there if name not in order])
    no([f"{name}.py is in ORDER but not there" for name in order if name not in there])
    assert len(set(order)) == len(order)


def test_a_module_imports_only_what_stands_before_it():
    place = {module: number for number, module in enumerate(read_order())}
    complaints = []
    for path in MODULES:
        here = place.get(module_of(path), 0)
        later = sorted(m for m in modules_imported(path) if place.get(m, 0) >= here)
        complaints += [f"{name_of(path)} imports {module}" for module in later]
    no(complaints)


def test_nothing_imports_an_entry_point():
    entry_points = {path.stem for path in ENTRY_POINTS}
    complaints = []
    for path in PYTHON_FILES:
        wrong = {name.split(".")[0] for name in imports_of(path)} & entry_points
        complaints += [f"{name_of(path)} imports {name}" for name in sorted(wrong)]
    no(complaints)


def test_nothing_imports_a_file_of_tests():
    """What several of them need is in tests/helpers."""
    complaints = []
    for path in PYTHON_FILES:
        wrong = [name for name in imports_of(path) if name.startswith(("test_", "conftest"))]
        complaints += [f"{name_of(path)} imports {name}" for name in sorted(wrong)]
    no(complaints)


def test_a_heavy_dependency_comes_in_by_its_door():
    complaints = []
    for path in LIBRARY:
        here = module_of(path) if PACKAGE in path.parents else path.stem
        foreign = {name.split(".")[0] for name in imports_of(path)} & DOORS.keys()
        wrong = sorted(name for name in foreign if here not in DOORS[name])
        complaints += [f"{name_of(path)} imports {name}" for name in wrong]
    no(complaints)


def test_a_stage_without_network_does_not_import_torch():
    needing = [name for name in WITHOUT_TORCH if "torch" in packages_needed(CODE / f"{name}.py")]
    no([f"code/{name}.py imports torch, through modules that it imports" for name in needing])


def test_the_command_line_ends_in_the_entry_points():
    # the reference's checkpoints hold a Namespace
    allowed = ("machine.arguments", "machine.console", "storage.pickled_settings")
    knowing = [path for path in MODULES if "argparse" in imports_of(path)]
    no([f"{name_of(path)} imports argparse" for path in knowing if module_of(path) not in allowed])
    no([f"{name_of(p)} reads sys.argv" for p in MODULES if "sys.argv" in p.read_text()])


def test_an_entry_point_parses_its_arguments_and_calls_its_stage():
    allowed = {"neural_mesh", *sys.stdlib_module_names}
    complaints = []
    for path in ENTRY_POINTS:
        foreign = {name.split(".")[0] for name in imports_of(path)} - allowed
        complaints += [f"{name_of(path)} imports {name}" for name in sorted(foreign)]
        if f"stages.{path.stem}" not in modules_imported(path):
            complaints.append(f"{name_of(path)} does not call neural_mesh.stages.{path.stem}")
    no(complaints)


def test_no_entry_point_hides_a_module_of_the_standard_library():
    assert not {path.stem for path in ENTRY_POINTS} & sys.stdlib_module_names


def test_a_package_itself_holds_a_sentence_and_no_code():
    for path in PACKAGE.rglob("__init__.py"):
        (only,) = tree_of(path).body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), name_of(path)


def test_no_file_changes_where_modules_are_found():
    pattern = re.compile(r"sys\.path\.(insert|append|extend)|site\.addsitedir")
    no([f"{name_of(p)} changes sys.path" for p in PYTHON_FILES if pattern.search(p.read_text())])


def test_renderers_are_told_apart_in_one_place():
    complaints = []
    for path in LIBRARY:
        if module_of(path) != CHOICE_OF_RENDERERS if PACKAGE in path.parents else True:
            lines = compared_with(path, RENDERERS)
            complaints += [f"{name_of(path)}:{n} compares a renderer's name" for n in lines]
    no(complaints)


# ---- how a room looks ----


def test_lines_fit_on_a_page():
    complaints = []
    for path in PYTHON_FILES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if len(line) > COLUMNS:
                complaints.append(f"{name_of(path)}:{number} has {len(line)} columns")
            if re.search(r"# *fmt: *(skip|off)", line):
                complaints.append(f"{name_of(path)}:{number} is not formatted")
    no(complaints)


def test_no_module_is_too_long():
    lengths = {path: len(path.read_text().splitlines()) for path in LIBRARY}
    bounded = [path for path in LIBRARY if name_of(path) not in LONG_ON_PURPOSE]
    long = [path for path in bounded if lengths[path] > LINES_OF_A_MODULE]
    no([f"{name_of(path)} has {lengths[path]} lines" for path in long])


def test_functions_are_short_and_ask_for_little():
    complaints = []
    for path in LIBRARY:
        for function in functions_of(path):
            where = f"{name_of(path)}:{function.lineno} {function.name}"
            length = function.end_lineno - function.lineno + 1
            if length > LINES_OF_A_FUNCTION and not is_kernel(path, function):
                complaints.append(f"{where} has {length} lines")
            if parameters(function) > PARAMETERS and not takes_scalars(function):
                complaints.append(f"{where} has {parameters(function)} parameters")
    no(complaints)


def test_expressions_are_not_packed():
    complaints = []
    for path in LIBRARY:
        where = name_of(path)
        loops = nested(path, COMPREHENSIONS)
        choices = nested(path, (ast.IfExp,))
        complaints += [f"{where}:{n} has a comprehension in a comprehension" for n in loops]
        complaints += [f"{where}:{n} has a choice in a choice" for n in choices]
    no(complaints)


def test_no_file_names_a_machine():
    pattern = re.compile(r"/(work|home|root|Users)/[a-zA-Z]|/tmp/[a-zA-Z]")
    texts = project_files(".py", ".sh", ".md", ".txt", ".ini", ".toml", ".cff", ".yml", "run")
    named = [path for path in texts if pattern.search(path.read_text())]
    no([f"{name_of(path)} names a path of a machine" for path in named if path != Path(__file__)])
