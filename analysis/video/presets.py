"""The data sets that UMT and the paper report, as their published evaluation reads them."""

from __future__ import annotations

from dataclasses import dataclass

from repshift.errors import UnknownNameError
from repshift.registry import suggest


@dataclass(frozen=True)
class DatasetPreset:
    """How a data set is read.

    Attributes:
        name: What ``--dataset`` takes.
        annotations: The published file of the test set.
        text_length: Word pieces of a caption or a question, with ``[CLS]``.
        paragraph: All captions of a video are one text.
        seconds: Only so much of the beginning of each video counts; ``None`` for all.
        frames: Frames of each video, of models that were fine-tuned for the set.
        answers: The published list of answers, of a set of questions.
        answer_length: Word pieces of an answer, with ``[CLS]``.
    """

    name: str
    annotations: str
    text_length: int
    paragraph: bool = False
    seconds: float | None = None
    frames: int = 12
    answers: str | None = None
    answer_length: int = 5

    @property
    def asks(self) -> bool:
        """Whether it is a set of questions."""
        return self.answers is not None


ZERO_SHOT_FRAMES = 4  # of models that were pretrained only

_ALL = (
    DatasetPreset("msrvtt", "msrvtt_ret_test1k.json", 32),
    DatasetPreset("msvd", "msvd_ret_test.json", 64),
    DatasetPreset("activitynet", "anet_ret_val.json", 150, paragraph=True),
    DatasetPreset("didemo", "didemo_ret_test.json", 64, paragraph=True, seconds=30),
    DatasetPreset("lsmdc", "lsmdc_ret_test_1000.json", 96),
    DatasetPreset("ssv2-label", "ssv2_ret_label_val_small.json", 25),
    DatasetPreset("ssv2-template", "ssv2_ret_template_val_small.json", 25),
    DatasetPreset("msrvtt-qa", "msrvtt_qa_test.json", 25, answers="msrvtt_qa_answer_list.json"),
    DatasetPreset("msvd-qa", "msvd_qa_test.json", 25, answers="msvd_qa_answer_list.json"),
    DatasetPreset("activitynet-qa", "anet_qa_test.json", 25, answers="anet_qa_answer_list.json"),
)
PRESETS: dict[str, DatasetPreset] = {preset.name: preset for preset in _ALL}


def preset_named(name: str) -> DatasetPreset:
    """Return a preset by its name.

    Raises:
        UnknownNameError: If there is none; the message has those that there are.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"Unknown data set {name!r} (--dataset). {suggest(name, PRESETS)}")
    return PRESETS[name]
