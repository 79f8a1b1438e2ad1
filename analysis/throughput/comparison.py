"""One benchmark: all methods at one batch size, and the rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift import recipe_of
from repshift.analysis.subjects.macs import Work, count_work
from repshift.analysis.subjects.memory import fitting, is_out_of_memory
from repshift.analysis.subjects.methods import DENSE, FEWER_FRAMES, LIMIT
from repshift.analysis.subjects.recipes import measured_columns, pruning_of, schedule_of, whole_recipe
from repshift.analysis.throughput.peak_memory import peak_on_cpu, peak_on_gpu
from repshift.analysis.throughput.roofline import bytes_moved, counted_by_compiler
from repshift.analysis.throughput.runtimes import COMPILE, EAGER, FROM_FILES, check_runtimes, prepared, tells_memory
from repshift.analysis.throughput.setup import Setup
from repshift.analysis.throughput.timing import paired_ratio, spread, time_in_turn
from repshift.errors import AdvisedError, RepshiftError, UnsupportedModelError, first_line

MIB = 2**20
Seconds = Mapping[str, tuple[float, ...]]
Key = tuple[str, str]  # a runtime and a method
# Called with what is going on whenever a method has had its turn
Observe = Callable[[str], object]
# Called with a method that does not run, and why
LeaveOut = Callable[[str, str], object]
ADVICE = (
    "Leave out --attention, --torchcompile, --runtime or --precision, give the model's own image size, or choose other "
    "--methods."
)


class DoesNotRunError(AdvisedError, UnsupportedModelError):
    """A method that does not run."""


@dataclass(frozen=True)
class _Prepared:
    """What is timed, and how many bytes it moves; ``None`` if that is not known."""

    call: Callable[[], object]
    moved: int | None


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how long.

    Attributes:
        setup: How all methods are run.
        models: Models by method, see :func:`repshift.analysis.subjects.methods.choose_methods`.
        rounds: How often each method is timed.
        warm_up: How often each runs before.
        threads: Of torch, on a CPU.
        memory: Whether to measure the peak memory, too.
        runtimes: What runs each method, any of :data:`repshift.analysis.throughput.runtimes.RUNTIMES`; by default what
            the setup says.
        frames: Of the videos that the dense model is shown as ``fewer_frames``.
        count_bytes: Whether to count the bytes that each moves, too, see :mod:`repshift.analysis.throughput.roofline`.
    """

    setup: Setup
    models: Mapping[str, nn.Module]
    rounds: int = 40
    warm_up: int = 10
    threads: int = 1
    memory: bool = True
    runtimes: tuple[str, ...] = ()
    frames: int | None = None
    count_bytes: bool = False

    def __post_init__(self) -> None:
        if not self.runtimes:
            object.__setattr__(self, "runtimes", (COMPILE if self.setup.torchcompile else EAGER,))
        recipes = map(recipe_of, self.models.values())
        check_runtimes(self.setup, self.runtimes, [recipe.attention for recipe in recipes if recipe is not None])

    def turns(self) -> int:
        """Say how often :meth:`run` reports for one batch size."""
        of_memory = sum(self.memory and tells_memory(runtime, self.setup.device) for runtime in self.runtimes)
        return len(self.models) * (len(self.runtimes) * (1 + self.rounds) + of_memory)

    def run(
        self, batch_size: int, observe: Observe = lambda what: None, leave_out: LeaveOut | None = None
    ) -> list[dict[str, Any]]:
        """Measure all methods at one batch size, in turn.

        Args:
            batch_size: Of images or videos.
            observe: Told about the progress.
            leave_out: Told of methods that do not run, whose rows are missing then; by default, and if the dense model
                does not, it is an error.

        Returns:
            A row for each runtime and method, see :meth:`_row`.

        Raises:
            MemoryExhaustedError: If the batch does not fit into memory.
            UnsupportedModelError: If a method does not run so; the message says why.
        """
        with fitting(batch_size, self.setup.device), self._compiling():
            images = self._images(batch_size)
            found = self._prepare(images, partial(observe, f"batch {batch_size}, warming up"), leave_out)
            # a graph compiled anew in the middle would be timed
            with (
                torch._dynamo.config.patch(error_on_recompile=True) if COMPILE in self.runtimes else nullcontext(),
                self.setup.running(),
            ):
                observe_turn = partial(observe, f"batch {batch_size}, timing")
                calls = {(where, name): self._timed(name, each.call, where) for (where, name), each in found.items()}
                seconds = time_in_turn(calls, self.rounds, self.threads, observe=observe_turn)
            peaks = {}
            for key in calls:
                if self.memory and tells_memory(key[0], self.setup.device):
                    peaks[key] = self._peak(key, calls[key], batch_size)
                    observe(f"batch {batch_size}, memory")
        rows = []
        for (runtime, name), each in found.items():
            own = {method: taken for (where, method), taken in seconds.items() if where == runtime}
            row = self._row(name, images[name], own, peaks.get((runtime, name)), runtime)
            rows.append(row | ({"bytes_moved": each.moved} if self.count_bytes else {}))
        return rows

    def _images(self, batch_size: int) -> dict[str, Tensor]:
        """Draw what each method is shown, by its name: all the same, but for fewer frames."""
        dense = self.models[DENSE]
        images = dict.fromkeys(self.models, self.setup.images(dense, batch_size))
        if self.frames is not None:
            images[FEWER_FRAMES] = self.setup.images(dense, batch_size, self.frames)
        return images

    def _prepare(
        self, images: Mapping[str, Tensor], observe: Callable[[], object], leave_out: LeaveOut | None
    ) -> dict[Key, _Prepared]:
        """Prepare all methods for all runtimes, and run each some times."""
        found: dict[Key, _Prepared] = {}
        for runtime in self.runtimes:
            for name, model in self.models.items():
                try:
                    call = partial(prepared(runtime, model, images[name]), images[name])
                    found[runtime, name] = self._ready(name, call, runtime)
                except (RepshiftError, RuntimeError, MemoryError) as error:
                    why = "it does not fit into memory" if is_out_of_memory(error) else told_without_advice(error)
                    if leave_out is None or name == DENSE or why is None:
                        raise
                    leave_out(_told(name, runtime), why)
                observe()
        return found

    def _ready(self, name: str, call: Callable[[], object], runtime: str) -> _Prepared:
        """Run one some times, and count what it moves."""
        with self.setup.running(), self._explained(name, runtime):
            if self.count_bytes and runtime == COMPILE:
                with counted_by_compiler() as counted:
                    self._warm_up(name, call, runtime)
                    return _Prepared(call, counted())
            self._warm_up(name, call, runtime)
            return _Prepared(call, bytes_moved(call) if self.count_bytes and runtime == EAGER else None)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        if COMPILE not in self.runtimes:
            yield
            return
        # all methods share the code of one class, and beyond a few graphs for it dynamo would run the rest eagerly
        limit = max(torch._dynamo.config.recompile_limit, 4 * len(self.models))
        torch._dynamo.reset()
        with torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True):
            yield

    @contextmanager
    def _explained(self, name: str, runtime: str) -> Iterator[None]:
        """Say in one line why a method does not run; what memory lacks is said elsewhere."""
        try:
            yield
        except RepshiftError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = (
                f"{self.setup.model} does not run as {_told(name, runtime)} with these settings "
                f"({type(error).__name__}: {first_line(error)})."
            )
            raise DoesNotRunError(why, ADVICE) from error

    def _warm_up(self, name: str, call: Callable[[], object], runtime: str = EAGER) -> None:
        graphs = _graphs()
        call()
        if runtime == COMPILE and _graphs() == graphs:
            why = f"{self.setup.model} was not compiled as {name}: torch.compile ran it as it is."
            raise DoesNotRunError(why, "Leave --torchcompile out.")
        for _ in range(self.warm_up - 1):
            call()

    def _timed(self, name: str, call: Callable[[], object], runtime: str) -> Callable[[], object]:
        """Explain what fails in a call that is timed: a graph that is compiled anew, which would be timed, too."""

        def explained() -> object:
            try:
                return call()
            except torch._dynamo.exc.RecompileError as error:
                why = f"{self.setup.model} was compiled anew as {_told(name, runtime)} while it was timed."
                raise DoesNotRunError(why, "Leave --torchcompile out, or choose another --attention.") from error

        return explained if runtime == COMPILE else call

    def _peak(self, key: Key, call: Callable[[], object], batch_size: int) -> int | None:
        runtime, name = key
        if torch.device(self.setup.device).type == "cuda":
            with self.setup.running():
                return peak_on_gpu(call, self.setup.device)
        recipe = recipe_of(self.models[name])
        chosen = self.setup.attention if recipe is None or recipe.attention is None else recipe.attention
        setup = replace(self.setup, attention=chosen, torchcompile=runtime == COMPILE)
        return peak_on_cpu(setup, pruning_of(self.models[name]), batch_size, self.threads, self._frames(name))

    def _row(
        self, name: str, images: Tensor, seconds: Seconds, peak: int | None, runtime: str = EAGER
    ) -> dict[str, Any]:
        """Lay out one line: timm's keys first, with its units (milliseconds, millions, billions), then ours."""
        model, batch_size = self.models[name], images.shape[0]
        recipe = pruning_of(model)
        taken, work = spread(seconds[name]), self._work(name)
        speedup = paired_ratio(seconds[DENSE], seconds[name])
        efficiency = paired_ratio(seconds[LIMIT], seconds[name]) if LIMIT in seconds else None
        return {
            "model": self.setup.model,
            "method": name,
            "samples_per_sec": round(batch_size / taken.median, 2),
            "step_time": round(1e3 * taken.median, 3),
            "step_time_low": round(1e3 * taken.low, 3),
            "step_time_high": round(1e3 * taken.high, 3),
            "batch_size": batch_size,
            "img_size": images.shape[-1],
            **({"frames": images.shape[1]} if images.ndim == 5 else {}),
            "param_count": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
            "gmacs": round(work.macs / 1e9, 4),
            "macs_per_sec": round(work.macs * batch_size / taken.median / 1e9, 2),
            "peak_memory": None if peak is None else round(peak / MIB, 1),
            "speedup": round(speedup.median, 3),
            "efficiency": efficiency and round(efficiency.median, 3),
            "speedup_quartiles": [round(speedup.low, 3), round(speedup.high, 3)],
            "efficiency_quartiles": efficiency and [round(efficiency.low, 3), round(efficiency.high, 3)],
            "schedule": schedule_of(recipe) or "",
            **measured_columns(model),
            "kept_tokens": None if work.tokens is None else list(work.tokens),
            "precision": self.setup.precision,
            "attention": self._attention(name, runtime),
            "channels_last": self.setup.channels_last,
            "torchcompile": runtime == COMPILE,
            "runtime": runtime,
            "recipe": whole_recipe(model),
        }

    def _attention(self, name: str, runtime: str) -> str | None:
        """Name the attention of a method; where none was chosen, programs in files choose and do not say which."""
        attention = self.setup.attention_of(self.models[name])
        return None if runtime in FROM_FILES and attention == "sdpa" else attention

    def _work(self, name: str) -> Work:
        size, frames = self.setup.input_size(self.models[DENSE]), self._frames(name)
        return count_work(self.models[name], size if frames is None else (frames, *size[1:]))

    def _frames(self, name: str) -> int | None:
        """Say how many frames a method is shown, if it is another number than the model's."""
        return self.frames if name == FEWER_FRAMES else None


def told_without_advice(error: BaseException) -> str | None:
    """Return what an error says, but for advice on options, if it is one of ours."""
    if isinstance(error, AdvisedError):
        return error.why
    return str(error) if isinstance(error, RepshiftError) else None


def _told(name: str, runtime: str) -> str:
    return name if runtime == EAGER else f"{name} by {runtime}"


def _graphs() -> int:
    """Say how many graphs torch has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
