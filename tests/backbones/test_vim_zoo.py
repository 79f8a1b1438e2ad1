import argparse

import huggingface_hub
import pytest
import torch
from timm.data import resolve_model_data_config

from repshift import CheckpointError, UnknownNameError, load_model
from repshift.backbones.vim_model import VisionMamba

NAMES = [f"vim_{size}{stride}" for size in ("tiny", "small", "base") for stride in ("", "_stride8")]
SHALLOW = {"depth": 2, "num_classes": 7}  # of the published width and positions, and quick


@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_is_built_by_name(name):
    model = load_model(name, depth=1)
    assert isinstance(model, VisionMamba)
    assert model.embed_dim == {"tiny": 192, "small": 384, "base": 768}[name.split("_")[1]]
    assert model.patch_embed.grid_size == ((27, 27) if name.endswith("stride8") else (14, 14))
    assert model.class_index == model.patch_embed.num_patches // 2
    assert not model.training


@pytest.mark.parametrize("name", ["vim_tiny", "vim_tiny_stride8"])
def test_a_model_classifies_images_of_224_pixels(name):
    with torch.no_grad():
        assert load_model(name, depth=1)(torch.randn(2, 3, 224, 224)).shape == (2, 1000)


def test_timm_knows_how_to_prepare_images():
    config = resolve_model_data_config(load_model("vim_tiny", depth=1))
    assert config["input_size"] == (3, 224, 224)
    assert config["interpolation"] == "bicubic"
    assert round(224 / config["crop_pct"]) == 256
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("size", "expected"), [(192, (3, 192, 192)), ((64, 96), (3, 64, 96))])
def test_timm_knows_the_size_of_a_model_for_other_images(size, expected):
    model = load_model("vim_tiny", depth=1, img_size=size)
    assert resolve_model_data_config(model)["input_size"] == expected
    with torch.no_grad():
        assert model(torch.randn(1, *expected)).shape == (1, 1000)


def test_options_are_passed_on():
    model = load_model("vim_tiny", **SHALLOW, class_position="head", in_chans=1)
    assert len(model.layers) == 2
    assert model.class_index == 0
    assert model(torch.randn(1, 1, 224, 224)).shape == (1, 7)


def test_an_unknown_option_is_refused_as_for_other_models():
    with pytest.raises(UnknownNameError, match=r"vim_tiny does not take these options.*depht"):
        load_model("vim_tiny", depht=2)


@pytest.mark.parametrize("name", ["vim-tiny", "vim_tiny_stride16", "vim_tyni"])
def test_a_misspelt_name_is_suggested(name):
    with pytest.raises(UnknownNameError, match="'vim_tiny'"):
        load_model(name)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def weights_of(name="vim_tiny", **options):
    """Other weights for a model of this name."""
    model = load_model(name, **(SHALLOW | options))
    return {key: torch.rand_like(value) for key, value in model.state_dict().items()}


def loaded(path, name="vim_tiny", use_ema=True, **options):
    return load_model(name, checkpoint=path, use_ema=use_ema, **(SHALLOW | options)).state_dict()


def same(state, weights):
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)


@pytest.fixture
def weights():
    return weights_of()


@pytest.fixture
def official(weights, tmp_path):
    """A file of the form that the published training saves; returns its path and both sets of weights."""
    averaged = {key: torch.rand_like(value) for key, value in weights.items()}
    model = load_model("vim_tiny", **SHALLOW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(1, 3, 224, 224)).sum().backward()
    optimizer.step()
    content = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-3], "noise_range_t": None},
        "epoch": 299,
        "model_ema": averaged,
        "scaler": "none",
        "args": argparse.Namespace(model="vim_tiny_patch16_224", lr=1e-3, color_jitter=None, repeated_aug=True),
    }
    path = tmp_path / "official.pth"
    torch.save(content, path)
    return path, weights, averaged


def test_an_official_checkpoint_gives_the_averaged_weights_unless_told_otherwise(official):
    path, _, averaged = official
    assert same(loaded(path), averaged)


def test_an_official_checkpoint_gives_the_plain_weights_if_they_are_chosen(official):
    path, weights, _ = official
    assert same(loaded(path, use_ema=False), weights)


@pytest.mark.parametrize(("name", "averaged"), [("vim_tiny", False), ("vim_base", True)])
def test_by_default_a_checkpoint_gives_the_weights_whose_accuracy_was_published(name, averaged, tmp_path):
    plain = load_model(name, **SHALLOW).state_dict()
    ema = {key: value + 1 for key, value in plain.items()}
    torch.save({"model": plain, "model_ema": ema}, tmp_path / "vim.pth")
    assert same(loaded(tmp_path / "vim.pth", name, use_ema=None), ema if averaged else plain)


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("form", [lambda weights: weights, lambda weights: {"model": weights}], ids=["bare", "model"])
def test_a_checkpoint_without_averaged_weights_gives_its_own(weights, tmp_path, form, use_ema):
    torch.save(form(weights), tmp_path / "vim.pth")
    assert same(loaded(tmp_path / "vim.pth", use_ema=use_ema), weights)


def test_the_loaded_weights_are_what_the_model_computes_with(weights, tmp_path):
    torch.save(weights, tmp_path / "vim.pth")
    images = torch.randn(1, 3, 224, 224)
    model = load_model("vim_tiny", **SHALLOW)
    before = model(images)
    model.load_state_dict(weights)
    after = load_model("vim_tiny", checkpoint=tmp_path / "vim.pth", **SHALLOW)(images)
    assert torch.equal(after, model(images))
    assert not torch.equal(after, before)


class Custom:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_that_runs_code_is_refused_and_its_code_not_run(weights, tmp_path):
    arguments = argparse.Namespace(hook=Custom(str(tmp_path / "ran")))
    torch.save({"model": weights, "args": arguments}, tmp_path / "vim.pth")
    with pytest.raises(CheckpointError, match=r"vim\.pth cannot be read safely"):
        loaded(tmp_path / "vim.pth")
    assert not (tmp_path / "ran").exists()


# what lies in the file -> what the message says; the model is vim_tiny of two layers
MISFITS = {
    "another size": (
        lambda: weights_of("vim_small"),
        r"cls_token has shape \(1, 1, 384\), expected \(1, 1, 192\)",
    ),
    "another stride": (
        lambda: weights_of("vim_tiny_stride8"),
        r"pos_embed has shape \(1, 730, 192\), expected \(1, 197, 192\)",
    ),
    "another number of classes": (
        lambda: weights_of(num_classes=9),
        r"head\.weight has shape \(9, 192\), expected \(7, 192\)",
    ),
    "fewer layers": (
        lambda: weights_of(depth=1),
        r"17 of its 41 keys missing \(first: layers\.1\.",
    ),
    "more layers": (
        lambda: weights_of(depth=3),
        r"17 unexpected keys \(first: layers\.2\.",
    ),
    "another kind": (
        lambda: load_model("deit_tiny_patch16_224", depth=2, num_classes=7).state_dict(),
        r"35 of its 41 keys missing .*unexpected keys \(first: blocks\.0\.",
    ),
    "one direction only": (
        lambda: {key: value for key, value in weights_of().items() if "_b" not in key},
        r"14 of its 41 keys missing \(first: layers\.0\.mixer\.A_b_log\)",
    ),
}


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_of_another_model_is_refused_with_what_does_not_fit(tmp_path, misfit, use_ema):
    make, message = MISFITS[misfit]
    torch.save({"model": make(), "model_ema": make()}, tmp_path / "vim.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        loaded(tmp_path / "vim.pth", use_ema=use_ema)
    assert str(caught.value).startswith(f"{tmp_path / 'vim.pth'} does not fit VisionMamba: ")
    assert "Load it into the model it was trained as" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- published weights, without a network ----------------------------------------------------------------------------


@pytest.fixture
def hub(official, monkeypatch):
    """A hub that hands out the file of :func:`official` for everything, and remembers what it was asked for."""
    path, asked = official[0], []

    def download(repository, file):
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [
        ("vim_tiny", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        ("vim_tiny_stride8", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        ("vim_small", "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        ("vim_small_stride8", "hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        ("vim_base", "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
    ],
)
def test_published_weights_are_asked_for_where_they_are(hub, name, repository, file):
    if name == "vim_tiny":
        load_model(name, pretrained=True, **SHALLOW)
    else:
        with pytest.raises(CheckpointError, match="does not fit VisionMamba"):  # the hub has one file for all
            load_model(name, pretrained=True, **SHALLOW)
    assert hub == [(repository, file)]


def test_published_weights_are_the_plain_ones_where_those_were_evaluated(hub, official):
    assert same(load_model("vim_tiny", pretrained=True, **SHALLOW).state_dict(), official[1])


def test_published_weights_of_vim_base_are_the_averaged_ones(monkeypatch, tmp_path):
    weights, averaged = weights_of("vim_base", depth=1), weights_of("vim_base", depth=1)
    torch.save({"model": weights, "model_ema": averaged}, tmp_path / "base.pth")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *place: str(tmp_path / "base.pth"))
    assert same(load_model("vim_base", pretrained=True, **(SHALLOW | {"depth": 1})).state_dict(), averaged)


def test_nothing_is_downloaded_unless_wanted(hub):
    load_model("vim_tiny", **SHALLOW)
    assert hub == []


def test_a_model_without_published_weights_says_which_have_some(hub):
    with pytest.raises(
        CheckpointError, match=r"No weights were published for vim_base_stride8\. Choose one of vim_tiny"
    ):
        load_model("vim_base_stride8", pretrained=True, depth=1)
    assert hub == []


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("hub is down"), ValueError("disk")])
def test_a_failed_download_is_one_clear_error_with_a_way_round(monkeypatch, error):
    def download(repository, file):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"The weights of vim_tiny could not be had") as caught:
        load_model("vim_tiny", pretrained=True, **SHALLOW)
    message = str(caught.value)
    assert f"({type(error).__name__}: {str(error).splitlines()[0]})" in message
    assert "download vim_t_midclstok_76p1acc.pth of hustvl/Vim-tiny-midclstok" in message
    assert "checkpoint=FILE (--checkpoint FILE)" in message
    assert "\n" not in message
