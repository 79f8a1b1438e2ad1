import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from repshift.analysis.report.encoding import (
    DROPPED,
    encode_colours,
    encode_groups,
    encode_image,
    encode_map,
    encode_mask,
    encode_predictions,
)
from repshift.analysis.report.writing import as_embedded_json, make_page


def decoded(text):
    return np.frombuffer(base64.b64decode(text), np.uint8)


def test_a_map_is_kept_to_half_a_step_of_its_own_range():
    values = torch.randn(14, 9) * 3 + 5
    found = encode_map(values)
    levels = decoded(found["data"]).reshape(14, 9)
    assert levels.min() == 0
    assert levels.max() == 254
    back = found["low"] + levels * (found["high"] - found["low"]) / 254
    step = (values.max() - values.min()).item() / 254
    assert np.abs(back - values.numpy()).max() <= 0.5 * step + 1e-4


def test_dropped_tokens_have_a_level_of_their_own():
    found = encode_map(torch.tensor([[1.0, math.nan], [3.0, 2.0]]))
    assert decoded(found["data"]).tolist() == [0, DROPPED, 254, 127]
    assert (found["low"], found["high"]) == (1.0, 3.0)


def test_a_map_of_one_value_has_the_lowest_level():
    found = encode_map(torch.full((2, 2), 0.25))
    assert decoded(found["data"]).tolist() == [0, 0, 0, 0]
    assert found["low"] == found["high"] == 0.25


@pytest.mark.parametrize("tokens", [1, 8, 15, 196])
def test_a_mask_is_a_bit_a_token(tokens):
    mask = torch.rand(1, tokens) < 0.5
    bits = "".join(f"{byte:08b}" for byte in decoded(encode_mask(mask)))
    assert [bit == "1" for bit in bits[:tokens]] == mask[0].tolist()
    assert len(bits) < tokens + 8


@pytest.mark.parametrize(("tokens", "kind"), [(1, "u1"), (255, "u1"), (256, "<u2"), (1000, "<u2")])
def test_groups_take_a_byte_a_place_or_two(tokens, kind):
    groups = torch.cat([torch.arange(tokens), torch.tensor([-1, 0])]).unsqueeze(0)
    back = np.frombuffer(base64.b64decode(encode_groups(groups)), kind)
    assert back.tolist() == [*range(tokens), np.iinfo(kind).max, 0]


def test_a_small_image_is_kept_exactly():
    pixels = torch.randint(0, 256, (40, 60, 3))
    found = encode_image(pixels / 255)
    kind, _, content = found["source"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (np.asarray(image) == pixels.numpy()).all()
    assert (found["width"], found["height"]) == (60, 40)


def test_a_large_image_is_made_smaller_in_its_proportions():
    found = encode_image(torch.rand(400, 900, 3))
    with Image.open(io.BytesIO(base64.b64decode(found["source"].partition(",")[2]))) as image:
        assert image.format == "JPEG"
        assert image.size == (found["width"], found["height"]) == (448, 199)


def test_predictions_are_the_likeliest_five_of_either_model_by_the_dense_ones():
    dense, pruned = torch.arange(12) / 66, torch.arange(12).flip(0) / 66
    names = [f"name {index}" for index in range(12)]
    found = encode_predictions(dense, pruned, names)
    assert [entry["name"] for entry in found] == [f"name {index}" for index in (11, 10, 9, 8, 7, 4, 3, 2, 1, 0)]
    for entry in found:
        index = int(entry["name"][5:])
        assert entry["dense"] == pytest.approx(index / 66, rel=1e-5)
        assert entry["pruned"] == pytest.approx((11 - index) / 66, rel=1e-5)


def test_predictions_of_few_classes_without_a_pruned_model():
    assert encode_predictions(torch.tensor([0.25, 0.75]), None, ["cat", "dog"]) == [
        {"name": "dog", "dense": 0.75},
        {"name": "cat", "dense": 0.25},
    ]


def test_the_colours_go_from_dark_to_light_in_equal_steps():
    light = decoded(encode_colours()).reshape(256, 3) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.5).all()
    assert light[-1] - light[0] > 150


@pytest.mark.parametrize("text", ["</script><b>", "<!--", "a & b", "\u2028", "'\"\\", "Ünïcode 猫"])
def test_embedded_json_reads_back_and_cannot_leave_its_element(text):
    written = as_embedded_json({text: [text, None, 1.5]})
    assert json.loads(written) == {text: [text, None, 1.5]}
    assert not set(written) & set("<>&\u2028")


def test_numbers_that_json_lacks_are_refused_rather_than_written():
    with pytest.raises(ValueError, match="JSON"):
        as_embedded_json({"value": math.nan})


def test_the_title_is_escaped_and_nothing_is_left_to_fill_in():
    page = make_page("<b>&$title", {"$content": "$style"})
    assert "<title>&lt;b&gt;&amp;$title</title>" in page
    assert page.count("<script") == 2
    assert "$style_hash" not in page
