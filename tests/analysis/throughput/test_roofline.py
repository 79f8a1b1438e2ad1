from functools import partial

import pytest
import torch
from torch import nn

from repshift.analysis.throughput.roofline import bytes_moved, measured_rates
from repshift.analysis.throughput.setup import Setup, with_plain_attention


def test_a_product_reads_two_matrices_and_writes_one():
    one, other = torch.zeros(3, 5), torch.zeros(5, 7, dtype=torch.float32)
    assert bytes_moved(lambda: one @ other) == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_numbers_count_by_their_size_and_views_not_at_all():
    halves = torch.zeros(6, 4, dtype=torch.bfloat16)
    assert bytes_moved(lambda: halves.view(24)[2:].unsqueeze(0) * 2) == 2 * (22 + 22)


def test_what_is_changed_in_place_is_read_and_written():
    values = torch.zeros(10)
    assert bytes_moved(lambda: values.add_(1)) == 2 * 40


def test_maps_of_attention_move_bytes_that_fused_attention_does_not():
    model = Setup("tiny_vit").load()
    images = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        fused, plain = (bytes_moved(partial(each, images)) for each in (model, with_plain_attention(model)))
    heads, tokens = model.blocks[0].attn.num_heads, 257
    # each block writes the map, reads it for the softmax, writes that, and reads it for the product with the values
    assert plain - fused >= 4 * 4 * len(model.blocks) * heads * tokens**2


def test_rates_are_those_of_a_product_and_a_copy(monkeypatch):
    module = "repshift.analysis.throughput.roofline"
    monkeypatch.setattr(f"{module}.SIDE", {"cpu": 100})
    monkeypatch.setattr(f"{module}.COPIED", {"cpu": 1000})
    monkeypatch.setattr(f"{module}.time_in_turn", lambda calls, *_: {"product": (4.0, 2.0), "copy": (0.5, 1.0)})
    rates = measured_rates("cpu", torch.float32)
    assert (rates.macs, rates.bytes) == (100**3 / 2.0, 2 * 1000 / 0.5)


def test_a_layer_counts_its_weights():
    layer = nn.Linear(8, 2, bias=False)
    with torch.inference_mode():
        moved = bytes_moved(lambda: layer(torch.zeros(5, 8)))
    assert moved == pytest.approx(4 * (40 + 16 + 10 + 40), abs=0)  # and the zeros that are written
