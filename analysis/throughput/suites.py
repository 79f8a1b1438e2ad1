"""Benchmarks of several models in one command: which models, pruned how."""

from __future__ import annotations

from dataclasses import dataclass, replace

TOKENS = ("shift", "mnn", "tome", "lowres", "oracle_free")
FRAMES = ("shift", "mnn", "tome", "fewer_frames", "oracle_free")
LINES = ("shift", "norm", "lowres", "oracle_free")
STEPS = ("shift", "mnn", "lowres", "oracle_free")
COMPILED = ("shift", "mnn", "lowres", "fewer_frames", "oracle_free")


@dataclass(frozen=True)
class Case:
    """One model of a suite, pruned by several methods at one schedule, compiled or not.

    Attributes:
        model: A name that :func:`repshift.load_model` takes.
        schedule: What all methods drop.
        batch_size: Of images or videos.
        methods: Beside the dense model.
        frames: Of videos.
        attends: Whether it has attention, by the kernel of the suite.
        plain: Whether plain attention is timed, too, of those that have it.
        channels_last: See :class:`repshift.analysis.throughput.setup.Setup`.
        torchcompile: Whether everything is compiled.
    """

    model: str
    schedule: str
    batch_size: int
    methods: tuple[str, ...] = TOKENS
    frames: int | None = None
    attends: bool = True
    plain: bool = True
    channels_last: bool = False
    torchcompile: bool = False

    def __str__(self) -> str:
        """Name it in a line of progress."""
        return f"{self.model}, {self.schedule}{', compiled' if self.torchcompile else ''}"


@dataclass(frozen=True)
class Suite:
    """Several cases on one kind of device.

    Attributes:
        cases: In the order in which they are measured: what is asked for first comes first, since time may run out.
        device: ``cuda`` or ``cpu``.
        precision: Of all of them.
        attention: What computes attention, see :func:`repshift.attention`.
        rounds: How often each method is timed.
        warm_up: How often each runs before.
    """

    cases: tuple[Case, ...]
    device: str
    precision: str
    attention: str
    rounds: int
    warm_up: int = 3


def _compiled(case: Case) -> Case:
    """Let a few of the methods of a case be compiled, which takes longer than all else."""
    methods = tuple(name for name in case.methods if name in COMPILED)
    return replace(case, methods=methods, plain=case.frames is not None, torchcompile=True)


DEIT_B = Case("deit_base_patch16_224", "0.2@0,3,6", 256)
DEIT_S = Case("deit_small_patch16_224", "0.2@0,3,6", 256)
DINO_B = Case("vit_base_patch16_dinov3", "0.2@0,3,6", 128)
UMT_B = Case("umt_b", "0.2@0,1,2", 20, ("saliency_merge", *FRAMES), frames=12)
UMT_L = Case("umt_l", "0.2@0,1,2", 20, FRAMES, frames=12)
RESNET = Case("resnet50", "8@0;4@1", 256, LINES, attends=False, channels_last=True)
VIM_T = Case("vim_tiny", "0.1@5,10,15", 128, STEPS, attends=False)
SUITES = {
    "gpu": Suite(
        # what compiles fast first, what compiles for minutes last
        (
            *(DEIT_B, _compiled(DEIT_B), UMT_B, _compiled(UMT_B), RESNET, _compiled(RESNET)),
            *(DEIT_S, UMT_L, VIM_T, DINO_B),
            *map(_compiled, (DEIT_S, DINO_B, UMT_L, VIM_T)),
        ),
        "cuda",
        "bfloat16",
        "flash",
        rounds=10,
    ),
    "cpu": Suite(
        (
            Case("deit_small_patch16_224", "0.2@0,3,6", 16),
            Case("resnet50", "8@0;4@1", 8, LINES, attends=False),
            Case("vim_tiny", "0.1@5,10,15", 4, STEPS, attends=False),
            Case("umt_b", "0.2@0,1,2", 1, ("shift", "mnn", "fewer_frames", "oracle_free"), frames=12),
        ),
        "cpu",
        "float32",
        "flash",
        rounds=10,
        warm_up=1,
    ),
}
