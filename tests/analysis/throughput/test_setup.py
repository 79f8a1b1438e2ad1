import pytest
import torch
from torch.profiler import profile

from repshift import DataError, UnknownNameError, UnsupportedModelError
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.throughput.setup import Setup


def run(setup, batch=2):
    model = setup.load()
    with setup.running():
        return model(setup.images(model, batch))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_precision_is_that_of_weights_images_and_answers(precision):
    setup, dtype = Setup("tiny_vit", precision=precision), getattr(torch, precision)
    model = setup.load()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert setup.images(model, 2).dtype == dtype
    assert run(setup).dtype == dtype


@pytest.mark.parametrize("precision", ["amp_bfloat16", "amp_float16", "amp"])
def test_mixed_precision_keeps_the_weights_and_computes_in_the_other(precision):
    setup = Setup("tiny_vit", precision=precision)
    assert {parameter.dtype for parameter in setup.load().parameters()} == {torch.float32}
    assert run(setup).dtype == (torch.bfloat16 if precision == "amp_bfloat16" else torch.float16)


def test_nothing_is_recorded_for_gradients():
    assert run(Setup("tiny_vit")).is_inference()


def test_images_are_those_the_model_takes_and_the_same_each_time():
    setup = Setup("tiny_vit")
    model = setup.load()
    images = setup.images(model, 3)
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images, setup.images(model, 3))


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vim", "tiny_resnet"])
def test_another_size_is_that_of_images_and_model(name):
    setup = Setup(name, built=ModelOptions(img_size=96))
    model = setup.load()
    assert setup.images(model, 1).shape == (1, 3, 96, 96)
    assert setup.input_size(model) == (3, 96, 96)
    assert run(setup).shape == (2, 10)


def test_channels_lie_together_if_wanted():
    setup = Setup("tiny_resnet", channels_last=True)
    model = setup.load()
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert setup.images(model, 2).is_contiguous(memory_format=torch.channels_last)


def what_runs(setup):
    """The operators of attention that a forward runs, by the profiler."""
    start = "aten::_scaled_dot_product_"
    with profile() as seen:
        run(setup)
    return {event.key.removeprefix(start) for event in seen.key_averages() if event.key.startswith(start)}


FLASH = {"flash_attention_for_cpu"}


@pytest.mark.parametrize(
    ("attention", "runs"),
    [(None, FLASH), ("sdpa", FLASH), ("flash", FLASH), ("math", {"attention_math"}), ("eager", set())],
)
def test_attention_is_computed_by_what_was_asked_for(attention, runs):
    assert what_runs(Setup("tiny_vit", attention=attention)) == runs


def test_fused_attention_is_switched_on_where_it_was_off(monkeypatch):
    monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda: False)
    setup = Setup("tiny_vit")
    assert setup.attention_of(setup.load()) == "eager"
    assert what_runs(Setup("tiny_vit", attention="sdpa")) == FLASH


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        (Setup("tiny_vit"), "sdpa"),
        (Setup("tiny_vit", attention="eager"), "eager"),
        (Setup("tiny_vit", attention="math"), "math"),
        (Setup("tiny_resnet"), None),
        (Setup("tiny_vim"), None),
    ],
)
def test_the_attention_that_runs_has_a_name(setup, name):
    assert setup.attention_of(setup.load()) == name


def test_a_kernel_for_a_model_without_attention_is_refused():
    with pytest.raises(UnsupportedModelError, match="ResNet has no attention that could run as 'flash'"):
        Setup("tiny_resnet", attention="flash").load()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "float"}, UnknownNameError, "Unknown --precision 'float'. Did you mean 'float32'"),
        ({"attention": "flesh"}, UnknownNameError, "Unknown --attention 'flesh'. Did you mean 'flash'"),
        ({"device": "toaster"}, DataError, "There is no device 'toaster'"),
        ({"device": "meta"}, DataError, "Nothing runs on the device 'meta' here"),
    ],
)
def test_wrong_settings_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        Setup("tiny_vit", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match=r"There is no CUDA device for --device cuda\. Give --device cpu"):
        Setup("tiny_vit", device="cuda")


def test_an_unknown_model_is_an_error_whatever_its_size():
    with pytest.raises(UnknownNameError, match="Unknown model 'tiny_vitt'"):
        Setup("tiny_vitt", built=ModelOptions(img_size=96)).load()
