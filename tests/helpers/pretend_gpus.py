"""GPUs for machines that have none: the host's side of a run on GPUs, without them.

While `pretend_gpus` lasts all numbers are computed on the CPU, but a tensor that is sent to a GPU
says that it lies there, and PyTorch's rules hold: tensors on different devices do not mix, NumPy
does not read a GPU's. Where the host waits for a GPU, in the operations named below and in copies,
is written down. What a GPU computes, and how fast, it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from neural_mesh.compare import with_triton
from neural_mesh.data import dataset
from neural_mesh.solve import choose_renderer
from neural_mesh.solve import run as solve_run

CPU = torch.device("cpu")
MEMORY = 8 << 30  # bytes of each GPU
WAITS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "__format__",
    "__repr__",
    "nonzero",
    "argwhere",
    "masked_select",
    "equal",
    "allclose",
    "unique",
    "is_nonzero",
}
ON_HOST = {"numpy", "__array__"}
NEUTRAL = {"_has_compatible_shallow_copy_type"}  # ask about tensors on different devices
INDEXING = {"__getitem__", "__setitem__", "index_put_"}
DEVICES = (
    WeakTensorKeyDictionary()
)  # of the tensors that are not on the CPU, which may outlive a pretence in a cache
PINNED = WeakTensorKeyDictionary()
FROM_HOST = {"tensor", "as_tensor", "asarray", "new_tensor"}


class PretendGPUs(TorchFunctionMode):
    """While entered in a thread, tensors have a device of their own. log: `wait <function>` and
    `launch <kernel>`, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def device(self, tensor: Tensor) -> torch.device:
        """Where a tensor lies, or says so."""
        with torch._C.DisableTorchFunction():
            return DEVICES.get(tensor, CPU)

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Let a tensor say that it lies on a device."""
        with torch._C.DisableTorchFunction():
            if device == CPU:
                DEVICES.pop(tensor, None)
            else:
                DEVICES[tensor] = device
        return tensor

    def wait(self, name: str) -> None:
        self.log.append(f"wait {name}")

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._attribute(func, args)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in ("to", "cpu", "cuda", "copy_"):
            return self._copied(func, name, args, kwargs)
        here = self._common(name, args, tensors)
        if name == "get_device":
            return -1 if here == CPU else here.index
        if name == "pin_memory":
            if here != CPU:
                raise RuntimeError(
                    f"cannot pin a tensor of {here}, only dense CPU tensors can be pinned"
                )
            if args[0] not in PINNED:
                PINNED[result := args[0].clone()] = True
                return result
            return args[0]
        if here != CPU and name in ON_HOST:
            raise TypeError(
                f"can't convert {here} device type tensor to numpy. Use Tensor.cpu() to copy "
                "the tensor to host memory first."
            )
        if here != CPU and (name in WAITS or (name == "where" and len(args) == 1)):
            self.wait(name)
        if kwargs.get("device") is not None:
            here, kwargs["device"] = _complete(kwargs["device"]), CPU
        if (
            here.type == "cuda"
            and name in FROM_HOST
            and not any(self.device(x) == here for x in tensors if name == "as_tensor")
        ):
            self.wait(name)
        result = func(*args, **kwargs)
        return tree_map_only(
            Tensor,
            lambda x: x if any(x is known for known in tensors) else self.put(x, here),
            result,
        )

    def _attribute(self, func: Callable, args: tuple) -> object:
        """Read or write an attribute of a tensor."""
        attribute, here = func.__self__.__name__, self.device(args[0])
        if attribute == "device":
            return here
        if attribute in ("is_cuda", "is_cpu"):
            return here.type == attribute[3:]
        result = func(*args)
        if func.__name__ == "__set__":
            if attribute == "data":
                self.put(args[0], self.device(args[1]))
            return result
        return self.put(result, here) if isinstance(result, Tensor) else result

    def _common(self, name: str, args: tuple, tensors: list[Tensor]) -> torch.device:
        """The device that an operation takes place on; RuntimeError where its tensors are on
        several.
        """
        if name in INDEXING:
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            here = self.device(args[0])
            if any(self.device(x) not in (here, CPU) for x in indices):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed "
                    f"tensor ({here})"
                )
            if here != CPU and any(x.dtype == torch.bool or self.device(x) == CPU for x in indices):
                self.wait(name)
            tensors = [x for x in tensors if not any(x is index for index in indices)]
        devices = {self.device(x) for x in tensors if x.dim() or self.device(x) != CPU}
        if len(devices) > 1 and name not in NEUTRAL:
            raise RuntimeError(
                "Expected all tensors to be on the same device, found "
                f"{sorted(map(str, devices))} in {name}"
            )
        return devices.pop() if devices else CPU

    def _copied(self, func: Callable, name: str, args: tuple, kwargs: dict) -> Tensor:
        """A copy between devices, or none where it is there already."""
        source = args[0] if name != "copy_" else args[1]
        before = self.device(source)
        after = (
            self.device(args[0])
            if name == "copy_"
            else CPU
            if name == "cpu"
            else torch.device("cuda", 0)
            if name == "cuda"
            else before
        )
        rest = []
        for value in args[1:]:
            if isinstance(value, Tensor) and name == "to":
                after = self.device(value)
            elif isinstance(value, (torch.device, str)) or (
                isinstance(value, int) and not isinstance(value, bool)
            ):
                value, after = CPU, _complete(value)
            rest.append(value)
        if kwargs.get("device") is not None:
            after, kwargs["device"] = _complete(kwargs["device"]), CPU
        if (
            before != after
            and CPU in (before, after)
            and not (before == CPU and source in PINNED and kwargs.get("non_blocking"))
        ):
            self.wait(name)
        result = args[0].clone() if name == "cuda" else func(args[0], *rest, **kwargs)
        if name == "copy_" or (result is args[0] and before == after):
            return result
        return self.put(result.clone() if result is args[0] else result, after)


def _complete(device: torch.device | str | int) -> torch.device:
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


class Kernel:
    """A Triton kernel that checks where its tensors lie, and writes its launches down.

    run: what happens then; the interpreter does a GPU's work.
    """

    def __init__(self, kernel: object, mode: PretendGPUs, run: Callable):
        self.kernel, self.mode, self.run = kernel, mode, run

    def __getitem__(self, grid: tuple) -> Callable:
        def launch(*args: object, **options: object) -> None:
            devices = {self.mode.device(x) for x in args if isinstance(x, Tensor)}
            assert len(devices) == 1 and CPU not in devices, (
                f"tensors of a kernel are on {sorted(map(str, devices))}"
            )
            assert all(x.is_contiguous() for x in args if isinstance(x, Tensor))
            self.mode.log.append("launch")
            with torch._C.DisableTorchFunction():
                self.run(self.kernel, grid, args, options)

        return launch


def interpreted(kernel: object, grid: tuple, args: tuple, options: dict) -> None:
    """Run a kernel in Triton's interpreter, if that is switched on; otherwise it finds no GPU."""
    kernel[grid](*args, **options)


@contextmanager
def pretend_gpus(count: int, run: Callable = interpreted) -> Iterator[PretendGPUs]:
    """Let this machine have `count` GPUs. run: what a launch of Triton does, with the kernel, grid,
    arguments and options.
    """
    mode = PretendGPUs()
    caches = dataset._statistics, choose_renderer.triton_agrees, with_triton.mesh_on_device
    with ExitStack() as stack:
        for cache in caches:
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        stack.enter_context(
            mock.patch.multiple(
                torch.cuda,
                device_count=lambda: count,
                mem_get_info=lambda device=None: (MEMORY, MEMORY),
                get_device_capability=lambda device=None: (9, 0),
                empty_cache=lambda: None,
                synchronize=lambda device=None: None,
                _exchange_device=lambda index: 0,
                _maybe_exchange_device=lambda index: 0,
            )
        )
        in_thread = partial(ThreadPoolExecutor, initializer=mode.__enter__)
        stack.enter_context(mock.patch.object(solve_run, "ThreadPoolExecutor", in_thread))
        if with_triton.has_triton(torch.device("cuda")):
            kernels = with_triton.kernels()
            watched = {
                name: Kernel(getattr(kernels, name), mode, run)
                for name in ("compare_kernel", "advance_kernel")
            }
            stack.enter_context(mock.patch.multiple(kernels, **watched))
        yield stack.enter_context(mode)
