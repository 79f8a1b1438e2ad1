"""How many tokens vid-TLDR merges at which block, by task and size: the numbers of its published settings.

Source: Choi et al. 2024, "vid-TLDR: Training Free Token merging for Light-weight Video Transformer" (arXiv 2403.13347).
"""

from __future__ import annotations

from repshift.errors import UnknownNameError
from repshift.registry import suggest
from repshift.schedules import Schedule

# by task: for B and for L, counts at the first block, the second, and so on; made for videos of 12 frames
VID_TLDR: dict[str, dict[str, tuple[int, ...]]] = {
    "msrvtt": {"b": (600, 200, 100), "l": (550, 400)},
    "msvd": {"b": (450, 250, 200), "l": (600, 200, 100, 100)},
    "activitynet": {"b": (500,), "l": (600, 300)},
    "didemo": {"b": (250, 150, 150, 150), "l": (800, 100)},
    "lsmdc": {"b": (400, 150, 150), "l": (250, 250, 200, 200)},
    "ssv2_label": {"b": (200, 200, 200, 100), "l": (450, 250, 100)},
    "ssv2_template": {"b": (400, 300), "l": (350, 300, 100, 50)},
    "qa": {"b": (600, 200), "l": (400, 400, 100)},
}


def vid_tldr(task: str, size: str) -> Schedule:
    """Return the schedule of vid-TLDR for a task, for ``pruner="saliency_merge"``.

    Args:
        task: A key of :data:`VID_TLDR`; ``qa`` serves both sets of questions.
        size: ``b`` or ``l``.

    Raises:
        UnknownNameError: If there is none of this name.

    Example:
        >>> str(vid_tldr("qa", "b"))
        '600@0;200@1'
    """
    if task not in VID_TLDR:
        raise UnknownNameError(f"Unknown task {task!r} of vid-TLDR. {suggest(task, VID_TLDR)}")
    if size not in VID_TLDR[task]:
        raise UnknownNameError(f"vid-TLDR's schedules are for the sizes b and l, got {size!r}.")
    return Schedule(dict(enumerate(VID_TLDR[task][size])))
