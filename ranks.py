"""Several processes at one task, started by `torchrun`: who is who, and what they tell each other.

One process alone is the same code: nothing is sent, and torch.distributed is not even imported.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, NamedTuple

from errors import UserError

# A process that works on while the others wait (decoding a large dataset) must not pass for a dead one. A dead one
# is noticed at once, by its closed connection.
PATIENCE_HOURS = 2
# What gloo and nccl say of a process that has gone
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "remote process exited", "connection refused")


class Ranks(NamedTuple):
    """This process's place among those of the run. The methods are collective: every process must call them."""

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

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """What `work()` gives on each process; the first has done it before the others begin.

        Where it raises UserError on the first, all end: the first with its words, the others in silence.
        """
        if self.size == 1:
            return work()
        done, fault = None, None
        if self.first:
            try:
                done = work()
            except UserError as error:
                fault = error
        failed = self.share(fault is not None)
        if failed:
            raise fault or UserError("")  # the first one says it
        return done if self.first else work()

    def first_does(self, work: Callable[[], Any]) -> None:
        """Let the first process do `work`. Where that fails all end, the others in silence."""
        fault = None
        if self.first:
            try:
                work()
            except (UserError, BrokenPipeError) as error:
                fault = error
        if self.share(fault is not None):
            raise fault or UserError("")

    def common(self, fault: UserError) -> UserError:
        """A `fault` that every process met, to be raised by all: the first one says it."""
        return fault if self.first else UserError("")

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

    Raises UserError where the others cannot be reached, or one of them is lost on the way.
    """
    ranks = rank_of_environment()
    if ranks.size == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, on_terminate)
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(ranks.local_rank % gpus)
    with reporting_loss(ranks), ExitStack() as stack:
        if not ranks.first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo",
                timeout=timedelta(hours=PATIENCE_HOURS),
            )
        except ValueError as error:
            raise UserError(f"the processes cannot find each other ({error}): start them with torchrun") from error
        stack.callback(dist.destroy_process_group)
        yield ranks
        ranks.share(None)  # none may leave while another still needs it


def on_terminate(*_: Any) -> None:
    """What torchrun does to the others when one has failed: end, with a word and without a traceback."""
    print(
        f"error: process {os.environ.get('RANK')} was told to stop: another one failed, or torchrun was stopped. "
        f"What was saved stays; a training goes on with --resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


@contextmanager
def reporting_loss(ranks: Ranks) -> Iterator[None]:
    """Turn the loss of another process into a UserError; every other fault passes through."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not any(sign in text for sign in LOST):
            raise
        raise UserError(
            f"process {ranks.rank} of {ranks.size} has lost another one: it was killed, or it failed. "
            f"What was saved stays; a training goes on with --resume"
        ) from error
