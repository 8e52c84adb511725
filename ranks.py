"""Several processes at one task, started by `torchrun`: who is who, and what they exchange.

One process alone is the same code: nothing is sent, and torch.distributed is not even imported.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from errors import UserError

# A process that works while the others wait (it decodes a large dataset) must not be taken for a lost one. A lost one
# is noticed at once, by its closed connection.
TIMEOUT_HOURS = 2
LEAVE_SECONDS = 30.0  # how long the first process waits, after an error, until the others know of it
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
        """Raise UserError where the processes cannot share the work on this kind of device."""
        if self.size == 1 or device == "cpu":
            return
        import torch

        if device != "cuda":
            raise UserError(f"several processes cannot train on {device}: use --device cpu, or one process")
        if self.local_rank >= (count := torch.cuda.device_count()):
            raise UserError(
                f"process {self.rank} finds no GPU of its own: there are {count}; start with "
                f"torchrun --nproc_per_node={count}, or use --device cpu"
            )

    def part(self, count: int) -> slice:
        """This process's part of `count` things in a row: near-equal parts, in the order of ranks."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


def rank_of_environment() -> Ranks:
    """The place that torchrun's variables give this process; without them it is alone. Raises UserError."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        ranks = Ranks(int(os.environ.get("RANK", "0")), size, int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE, RANK and LOCAL_RANK must be numbers ({error}): start with torchrun") from error
    if not 0 <= ranks.rank < ranks.size:
        raise UserError(f"RANK {ranks.rank} does not fit WORLD_SIZE {ranks.size}: start with torchrun")
    return ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, or the only one; of several only the first writes to stdout.

    A UserError of one process, wherever it is raised, ends them all: that one reports it, the others raise an empty
    UserError. Raises UserError too where the others cannot be reached, or one of them is lost on the way.
    """
    ranks = rank_of_environment()
    if ranks.size == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    signal.signal(signal.SIGTERM, on_terminate)
    gpus, store = torch.cuda.device_count(), None
    if gpus:
        torch.cuda.set_device(ranks.local_rank % gpus)
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if ranks.first else nowhere):
        try:
            store, _, _ = next(rendezvous("env://"))
            backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
            place = {"store": store, "rank": ranks.rank, "world_size": ranks.size}
            dist.init_process_group(backend, timeout=timedelta(hours=TIMEOUT_HOURS), **place)
            yield ranks
            ranks.share(None)  # none may leave while another still needs it
        except ValueError as error:
            if store:
                raise
            raise UserError(f"the processes cannot find each other ({error}): start them with torchrun") from error
        except (UserError, BrokenPipeError):
            leave(store, ranks, failed=True)
            raise
        except RuntimeError as error:
            if not any(sign in str(error).lower() for sign in LOST):
                raise
            if leave(store, ranks, failed=False):
                raise UserError("") from error  # the one that failed reports it
            raise UserError(
                f"process {ranks.rank} of {ranks.size} has lost another one: it was killed, or it failed. "
                f"What was saved stays; a training goes on with --resume"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def leave(store: Any, ranks: Ranks, *, failed: bool) -> bool:
    """Leave the others after an error; whether it is one that a process reports (`failed`: this one) and not a loss.

    The others notice that the connections close, then read here why. The first process keeps the store for them, so it
    leaves last.
    """
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when the first of them has ended
    with suppress(RuntimeError):  # the store is gone with the first process
        if failed:
            store.set("failed", "yes")
        dist.destroy_process_group()
        failed = store.check(["failed"])
        left, deadline = store.add("left", 1), time.monotonic() + LEAVE_SECONDS
        while failed and ranks.first and left < ranks.size and time.monotonic() < deadline:
            time.sleep(0.02)
            left = store.add("left", 0)
    return failed


def on_terminate(*_: Any) -> None:
    """What torchrun does to the others when one has failed: end, with a word and without a traceback."""
    print(
        f"error: process {os.environ.get('RANK')} was told to stop: another one failed, or torchrun was stopped. "
        f"What was saved stays; a training goes on with --resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
