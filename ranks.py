"""Several processes at one task, started by `torchrun`: who is who, and what they exchange.

One process alone is the same code: nothing is sent, and torch.distributed is not even imported.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from errors import UserError

# A process that works while the others wait (it decodes a large dataset) must not be taken for a lost one. A lost one
# is noticed at once, by its closed connection.
TIMEOUT_HOURS = 2
# What gloo and nccl say of a process that has gone
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "remote process exited", "connection refused")
T = TypeVar("T")


class Ranks(NamedTuple):
    """This process's place among those of the run. The methods but `part` are collective: every process calls them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine: the number of its GPU

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any] | None:
        """Every process's `value` in the order of ranks, on the first process; None on the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values

    def share(self, value: Any) -> Any:
        """The first process's `value`, on all."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def sum(self, values: Any) -> Any:
        """`values`, a tensor on the CPU, summed over the processes in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def in_turn(self, work: Callable[..., T], *args: Any) -> T:
        """What `work(*args)` returns on each process; the others begin when the first has done it."""
        if self.first:
            done = work(*args)
            self.share(None)
            return done
        self.share(None)
        return work(*args)

    def check(self, device: str) -> None:
        """Raise UserError where a process has no GPU of its own."""
        if self.size == 1 or device != "cuda":
            return
        import torch

        if self.local_rank >= (count := torch.cuda.device_count()):
            raise UserError(
                f"process {self.rank} finds no GPU of its own: there are {count}; start with "
                f"torchrun --nproc_per_node={count}, or use --device cpu"
            )

    def part(self, count: int) -> slice:
        """This process's part of `count` things in a row: near-equal parts, in the order of ranks."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, or the only one; of several only the first writes to stdout.

    An error of one process ends them all: the others raise a UserError, since they have lost it.
    """
    rank, size, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size <= 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=TIMEOUT_HOURS))
    ranks = Ranks(rank, size, local_rank)
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if ranks.first else nowhere):
        try:
            yield ranks
            ranks.share(None)  # none may leave while another still needs it
        except RuntimeError as error:
            if not any(sign in str(error).lower() for sign in LOST):
                raise
            raise UserError(
                f"process {rank} of {size} has lost another one, which was killed or names its own error. "
                f"What was saved stays; a training goes on with --resume"
            ) from error
        finally:
            dist.destroy_process_group()
