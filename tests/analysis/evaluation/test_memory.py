"""Batches that do not fit into memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from repshift.analysis.evaluation import models as evaluation_models
from repshift.analysis.subjects.memory import MemoryExhaustedError


class Hungry(nn.Module):
    """A model that has memory for a few images only."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most = model, most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)


@pytest.fixture
def hungry(monkeypatch):
    """Let pruned models have memory for so many images."""

    def make(most):
        compiled = evaluation_models._compiled

        def wrap(subject):
            hungry = (replace(each, model=Hungry(each.model, most)) for each in subject.candidates)
            return replace(subject, candidates=tuple(hungry))

        monkeypatch.setattr(evaluation_models, "_compiled", wrap)
        return compiled

    return make


def test_too_large_a_batch_is_an_error_that_suggests_another(settings, hungry, tmp_path, evaluate):
    hungry(3)
    with pytest.raises(MemoryExhaustedError, match=r"batch of 16 .*--batch-size 8, or --retry"):
        evaluate(settings(batch_size=16, torchcompile=True), tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_with_retry_smaller_batches_end_with_the_same_result(settings, hungry, evaluate, same):
    expected = evaluate(settings())[0]
    hungry(5)
    row = evaluate(settings(batch_size=16, retry=True, torchcompile=True))[0]
    assert row["batch_size"] == 4
    assert same(row) == same(expected)


def test_retry_ends_when_not_even_one_image_fits(settings, hungry, evaluate):
    hungry(0)
    with pytest.raises(MemoryExhaustedError, match="batch of 1 "):
        evaluate(settings(batch_size=16, retry=True, torchcompile=True))
