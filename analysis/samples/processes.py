"""Several processes that evaluate one model: who they are, what they tell each other, and how they fail together.

Launchers (torchrun, accelerate) number the processes in environment variables. What has to be told are Python objects,
after the work, so that one backend serves CPUs and GPUs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import typer
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from repshift.analysis.output.terminal import interrupted
from repshift.analysis.subjects.devices import choose_device
from repshift.errors import DataError, RepshiftError, first_line

MOST_WORKERS = 8  # beside a GPU; more seldom read any faster
PATIENCE = timedelta(days=7)  # a process may have to wait for a slower one; launchers end those whose peers died


class OtherProcessError(RepshiftError):
    """An error that another process met."""


@dataclass
class Processes:
    """All processes of this evaluation.

    Attributes:
        rank: This one, from zero; only the first one prints and writes results.
        count: How many there are.
        local_rank: This one among those of its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    _store: Any = None
    _stage: int = 0

    @classmethod
    def join(cls) -> Processes:
        """Meet the others that a launcher started; without a launcher there are none.

        Raises:
            DataError: If the launcher's variables are incomplete.
        """
        count = _told("WORLD_SIZE", 1, least=1)
        if count == 1:
            return cls()
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise DataError(
                f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set. Start several processes with torchrun or "
                "accelerate launch; for one process, unset WORLD_SIZE."
            )
        if _told("RANK", 0) >= count:
            raise DataError(f"RANK is {os.environ['RANK']}, and the {count} processes are numbered from 0.")
        _told("MASTER_PORT", 1, least=1, most=65535)
        store, rank, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
        return cls(rank, count, _told("LOCAL_RANK", rank), store)

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def device(self, wanted: str | None) -> torch.device:
        """Choose this process's device.

        Args:
            wanted: Of several GPUs each process takes its own; by default a GPU if there is one.

        Raises:
            DataError: If there is no such device.
        """
        device = choose_device(wanted)
        if device.type == "cpu":
            return device
        number = device.index if device.index is not None else self.local_rank
        if number >= torch.cuda.device_count():
            raise DataError(
                f"There are {torch.cuda.device_count()} CUDA devices, process {self.rank} wants number {number}. Start "
                "one process a device."
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def exchange(self, value: Any) -> list[Any]:
        """Tell all processes a value; returns everybody's, by rank.

        Raises:
            OtherProcessError: If another process ended before its time.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise OtherProcessError(
                f"Another process ended before its time ({first_line(error)}). Its own message says why; --resume goes "
                "on from what was evaluated."
            ) from error
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what is inside in every process; if one fails, all do.

        Raises:
            OtherProcessError: If another process failed.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
            if self._store is not None:
                self._store.set(f"failed-{self._stage}", "1")
        self._stage += 1
        problems = self.exchange(None if error is None else _problem(error))
        if error is not None:
            raise error
        if other := next(filter(None, problems), None):
            raise OtherProcessError(other)

    @property
    def failing(self) -> bool:
        """Whether another process has failed in this stage, so that there is no use in going on."""
        return self._store is not None and bool(self._store.check([f"failed-{self._stage}"]))

    def leave(self) -> None:
        """Part from the others."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def as_one_command(resumable: bool) -> Iterator[Processes]:
    """Join the processes of a command; only the first one says what went wrong, and that it was interrupted.

    Args:
        resumable: Whether the same command goes on with ``--resume``.
    """
    processes = Processes.join()
    try:
        yield processes
    except RepshiftError:
        if not processes.first:
            time.sleep(2)  # the first process says why, and launchers end all when one has ended
            raise typer.Exit(1) from None
        raise
    except KeyboardInterrupt:
        again = "with --resume " if resumable else ""
        raise interrupted(f"run the same command again {again}to go on", shown=processes.first) from None
    finally:
        processes.leave()


def _problem(error: Exception) -> str:
    return str(error) if isinstance(error, RepshiftError) else f"{type(error).__name__}: {first_line(error)}"


def usual_workers(beside_gpu: bool) -> int:
    """Say how many processes should read, where nobody said it.

    A model on a CPU has all processors busy, and processes that read would take them away. Beside a GPU they are idle:
    then each process that computes gets its share of those that this one may use, at most 8, and keeps one itself.

    Args:
        beside_gpu: Whether the model runs on a GPU.
    """
    if not beside_gpu:
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, usable // _told("LOCAL_WORLD_SIZE", 1, least=1) - 1))


def _told(name: str, usual: int, least: int = 0, most: int = sys.maxsize) -> int:
    """Read a number that a launcher sets.

    Raises:
        DataError: If it is none.
    """
    told = os.environ.get(name, str(usual))
    if not (told.isascii() and told.isdecimal()) or not least <= int(told) <= most:
        up_to = f" to {most}" if most < sys.maxsize else ""
        raise DataError(
            f"{name} is {told!r}, expected a whole number from {least}{up_to}, as torchrun and accelerate launch set "
            "it. Unset it for one process."
        )
    return int(told)
