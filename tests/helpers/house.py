"""The project's files as syntax trees: what they import, where they break a rule of the house."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from helpers.project import ROOT

CODE = ROOT / "code"
PACKAGE = CODE / "neural_mesh"
ENTRY_POINTS = sorted(CODE.glob("*.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")


def project_files(*suffixes: str) -> list[Path]:
    """Files that git knows or would add, with one of these endings."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in sorted(set(listing.stdout.split("\0"))) if name]
    return [path for path in paths if path.name.endswith(suffixes) and path.is_file()]


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """`code/train.py`: how messages name a file."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """`geometry.cameras`: a module's name inside of neural_mesh."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose imports never happen."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def executed(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """All nodes but those for type checkers; functions: also what runs later or never."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types(node):
            continue
        yield node
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from executed(node, functions)


def names_imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Full names of what is imported; `from a import b`: a and a.b, since b may be a module."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports_of(path: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it, but not only for its annotations."""
    return names_imported(executed(tree_of(path), functions=True))


def modules_in(names: set[str]) -> set[str]:
    """The modules of neural_mesh among imported names, as `geometry.cameras`."""
    ours = [name for name in names if name.startswith("neural_mesh.")]
    inside = {name.removeprefix("neural_mesh.") for name in ours}
    return inside & {module_of(path) for path in MODULES}


def modules_imported(path: Path) -> set[str]:
    """The modules of neural_mesh that a file imports, also those for its annotations alone."""
    return modules_in(names_imported(ast.walk(tree_of(path))))


def packages_needed(path: Path) -> set[str]:
    """Packages that come in when a file is imported: by itself and by the modules below it."""
    needed: set[str] = set()
    todo = [path]
    seen = set()
    while todo:
        current = todo.pop()
        seen.add(current)
        names = names_imported(executed(tree_of(current), functions=False))
        needed |= {name.split(".")[0] for name in names}
        paths = {PACKAGE.joinpath(*m.split(".")).with_suffix(".py") for m in modules_in(names)}
        todo += sorted(paths - seen)
    return needed


def functions_of(path: Path) -> list[ast.FunctionDef]:
    """All functions and methods of a file."""
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> int:
    """How many parameters a function has, self and cls left out."""
    every = function.args
    names = [a.arg for a in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_kernel(path: Path, function: ast.FunctionDef) -> bool:
    """Kernels are long: a call inside them costs time, or is not to be had."""
    decorators = " ".join(ast.unparse(decorator) for decorator in function.decorator_list)
    return path.name.startswith("kernels_") or "njit" in decorators or "triton.jit" in decorators


def takes_scalars(function: ast.FunctionDef) -> bool:
    """Functions that CUDA kernels call: the Triton of torch 2.6 has no tuples to pass them."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return "triton.jit" in decorators and not function.name.endswith("kernel")


def strings_of(node: ast.AST) -> set[str]:
    """Texts that stand in an expression by themselves or in a tuple, list or set."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    values = [item.value for item in items if isinstance(item, ast.Constant)]
    return {value for value in values if isinstance(value, str)}


def compared_with(path: Path, words: set[str]) -> list[int]:
    """Lines on which something is compared with one of the words, by an operator or by match."""
    lines = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        if any(strings_of(side) & words for side in sides):
            lines.append(node.lineno)
    return lines


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nested(path: Path, kinds: tuple[type[ast.AST], ...]) -> list[int]:
    """Lines of expressions of these kinds that stand in another one of them."""
    lines = set()
    for outer in ast.walk(tree_of(path)):
        if isinstance(outer, kinds):
            lines |= {n.lineno for n in ast.walk(outer) if n is not outer and isinstance(n, kinds)}
    return sorted(lines)
