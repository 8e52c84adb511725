"""The operations of a training step: recorded as torch dispatches them, then timed alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from bench.common import median_seconds

REPEATS = 7  # of every operation, after two to warm up
WRITTEN_ONLY = ("fill_", "zero_", "copy_", "bernoulli_", "uniform_", "random_")  # their first argument is not read


@dataclass
class Call:
    """An operation of the step on arguments of one kind: copies of them, and how often it occurs."""

    operation: Any
    args: Any
    named: Any
    count: int = 0

    def __call__(self) -> Any:
        return self.operation(*self.args, **self.named)


class Recorder(TorchDispatchMode):
    """Keeps every different operation that is dispatched while inside, told apart by shapes, strides, dtypes and
    the arguments that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:  # a view costs nothing
            described = tree_map_only(torch.Tensor, describe, (args, kwargs))
            key = f"{func} {described}"
            if key not in self.calls:
                self.calls[key] = Call(func, *tree_map_only(torch.Tensor, copied, (args, kwargs)))
            self.calls[key].count += 1
        return func(*args, **kwargs)


def describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device.type}"


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same values, shape and strides in memory of its own."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.shape, tensor.stride())


@dataclass(frozen=True)
class Row:
    """A line of the table: an operation's seconds in a step, with the FLOPs or the bytes that it takes."""

    name: str
    shapes: str
    dtype: torch.dtype
    count: int
    seconds: float
    flops: float
    bytes: float


def timed(call: Call, device: torch.device) -> Row:
    """The Row of an operation, timed alone on its recorded arguments."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    seconds = median_seconds(call, repeats=REPEATS, device=device)
    tensors = [leaf for leaf in tree_leaves((call.args, call.named)) if isinstance(leaf, torch.Tensor)]
    name = call.operation.overloadpacket.__name__
    return Row(
        name,
        " ".join(short(tensor) for tensor in tensors[:2]),
        next((tensor.dtype for tensor in tensors), torch.float32),
        call.count,
        call.count * seconds,
        call.count * counter.get_total_flops(),
        call.count * moved(call, result),
    )


def short(tensor: torch.Tensor) -> str:
    """Shape and dtype in a few letters: 128x64x48x48:bf16."""
    dtype = str(tensor.dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "f").replace("int", "i")
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'}:{dtype}"


def moved(call: Call, result: Any) -> float:
    """Bytes that an operation reads and writes at least: its arguments, what it changes in place, its results."""
    read, written = {}, {}
    named = {argument.name: argument for argument in call.operation._schema.arguments}
    values = dict(zip(named, call.args, strict=False)) | call.named
    for place, (name, value) in enumerate(values.items()):
        tensors = {leaf.data_ptr(): leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)}
        changed = named[name].alias_info is not None and named[name].alias_info.is_write
        written |= tensors if changed else {}
        if place or call.operation.overloadpacket.__name__ not in WRITTEN_ONLY:
            read |= tensors
    written |= {leaf.data_ptr(): leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
    return sum(size_of(tensor) for tensors in (read, written) for tensor in tensors.values())


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of memory behind a tensor; a dimension that only repeats them (stride 0) does not count."""
    places = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places *= length if stride else 1
    return places * tensor.element_size()
