"""Settings as other programs pickle them, read as plain values.

They may be numbers of NumPy, paths, or containers of a settings library. What is unpickled here in
the place of those classes keeps plain values and does nothing else; no library is imported for it.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 2**16  # of an array among settings
MOST_LEVELS = 20  # of settings within settings


class _Dtype:
    """numpy.dtype: a letter and a size, and the order of bytes."""

    def __init__(self, code: str = "", *flags: object):
        self.code = code if isinstance(code, str) else ""
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def read(self, content: bytes, count: int) -> np.ndarray:
        """Plain numbers or texts; ValueError for anything else, or where the size is another."""
        if self.code[:1] not in tuple("biufU") or not self.code[1:].isdigit():
            raise ValueError(f"settings hold values of type {self.code[:60]!r}")
        dtype = np.dtype(self.order.strip("|=") + self.code)
        if not isinstance(content, bytes) or count * dtype.itemsize != len(content):
            raise ValueError("settings hold a number of the wrong size")
        if len(content) > MOST_BYTES:
            raise ValueError("settings hold a large array")
        return np.frombuffer(content, dtype)


class _Scalar:
    """numpy's function of this name: one number of Python."""

    def __new__(cls, dtype: _Dtype, content: bytes = b"") -> Any:
        return dtype.read(content, 1)[0].item()


class _Array:
    """numpy.ndarray: its values as lists."""

    def __init__(self, *arguments: object):
        self.values: list = []

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_columns, content = state
        count = int(np.prod(shape, dtype=np.float64))
        flat = dtype.read(content, count)
        self.values = flat.reshape(shape, order="F" if by_columns else "C").tolist()


class _Reconstruct:
    """numpy's function of this name: an array that gets its values later."""

    def __new__(cls, *arguments: object) -> Any:
        return _NAMED["numpy.ndarray"]()


class _Path:
    """A path: its text."""

    def __new__(cls, *parts: str) -> Any:
        return "/".join(map(str, parts)).replace("//", "/")


class _Mapping:
    """A dict of another class: the kind of dict that is filled while nothing is executed."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


class _Node:
    """A node of OmegaConf, or anything beside the values in it."""

    def __init__(self, *arguments: object):
        self.state: dict = {}

    def __new__(cls, *arguments: object) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_NUMBER_TYPES = [f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)]
_NUMBER_TYPES += ["Float16", "Float32", "Float64", "Bool", "Str"]
_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode")

_STANDINS: dict[type, tuple[str, ...]] = {
    _Dtype: ("numpy.dtype", *(f"numpy.dtypes.{name}DType" for name in _NUMBER_TYPES)),
    _Scalar: ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    _Array: ("numpy.ndarray",),
    _Reconstruct: (
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    ),
    _Path: tuple(f"{module}.{n}" for n in _PATHS for module in ("pathlib", "pathlib._local")),
    _Mapping: (
        "collections.defaultdict",
        "types.SimpleNamespace",
        "easydict.EasyDict",
        "yacs.config.CfgNode",
        "fvcore.common.config.CfgNode",
        "munch.Munch",
        "addict.addict.Dict",
        "mmengine.config.config.ConfigDict",
    ),
    _Node: (
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        *(f"omegaconf.nodes.{name}" for name in _NODES),
        "typing.Any",
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
    ),
}


def _named_standin(base: type, full_name: str) -> type:
    """A class that says of itself to be the one that it stands for."""
    module, _, name = full_name.rpartition(".")
    return type(name, (base,), {"__module__": module, "__qualname__": name})


_NAMED = {name: _named_standin(base, name) for base, names in _STANDINS.items() for name in names}
# What files may name beside tensors. The reference stores its arguments as a Namespace.
READABLE = [argparse.Namespace, *_NAMED.values()]


def plain(value: object, levels: int = MOST_LEVELS) -> Any:
    """A value that was read with the stand-ins, as dicts, lists, texts and numbers of Python."""
    if levels == 0:
        return None
    if isinstance(value, _Node):
        return plain(value.state.get("_content", value.state.get("_val")), levels - 1)
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, Tensor):
        return value.item() if _is_number(value) else value
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        # Some containers keep their values as attributes.
        named = {**getattr(value, "__dict__", {}), **value}
        return {str(key): plain(item, levels - 1) for key, item in named.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, levels - 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _is_number(value: Tensor) -> bool:
    """Whether a tensor is one number, which its storage holds."""
    if value.layout != torch.strided or value.numel() != 1:
        return False
    end = (value.storage_offset() + 1) * value.element_size()
    return bool(end <= value.untyped_storage().nbytes())
