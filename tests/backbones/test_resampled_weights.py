import pytest
import torch
from timm.layers import resample_abs_pos_embed

from repshift import CheckpointError, load_model
from repshift.backbones.vim_embedding import resampled_positions

SMALL = {"num_classes": 3, "depth": 1}
# name: options of the model, the size of its weights, the size wanted
MODELS = {
    "a class token": ("deit_tiny_patch16_224", SMALL, 64, 96),
    "a size that is no square": ("deit_tiny_patch16_224", SMALL, 64, (96, 48)),
    "positions without the class token's": ("vit_base_patch16_siglip_224", SMALL | {"embed_dim": 24}, 64, 96),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL | {"embed_dim": 24}, 56, 84),
    "a convolutional stem": ("tiny_vit", {"depth": 1}, 64, 96),
    "Vision Mamba": ("vim_tiny", SMALL | {"embed_dim": 24}, 64, 96),
    "a small Vision Mamba": ("tiny_vim", {"depth": 1}, 64, (96, 48)),
    "relative positions": ("vit_relpos_small_patch16_224", SMALL | {"embed_dim": 24}, 64, 96),
}


@pytest.fixture(params=MODELS)
def case(request):
    name, options, *sizes = MODELS[request.param]
    if "embed_dim" in options and not name.startswith("vim"):
        options = options | {"num_heads": 2}
    return name, options, *sizes


def test_a_checkpoint_at_another_size_gives_what_resizing_the_model_gives(case, tmp_path):
    name, options, old, new = case
    torch.manual_seed(0)
    expected = load_model(name, **options, img_size=old)
    torch.save(expected.state_dict(), tmp_path / "weights.pt")
    loaded = load_model(name, **options, img_size=new, checkpoint=tmp_path / "weights.pt")
    if not hasattr(expected, "set_input_size"):
        pytest.skip("this timm cannot resize the model")
    expected.set_input_size(img_size=new)
    state = expected.state_dict()
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    rows, columns = (new, new) if isinstance(new, int) else new
    images = torch.randn(2, 3, rows, columns)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected(images))


def test_positions_are_those_of_timm(tmp_path):
    small = load_model("deit_tiny_patch16_224", **SMALL, img_size=64)
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    loaded = load_model("deit_tiny_patch16_224", **SMALL, img_size=(96, 128), checkpoint=tmp_path / "weights.pt")
    assert torch.equal(loaded.pos_embed, resample_abs_pos_embed(small.pos_embed, [6, 8], [4, 4]))


def test_what_timm_does_with_published_weights_is_done_with_a_file(tmp_path):
    import timm

    torch.save(load_model("deit_tiny_patch16_224", **SMALL, img_size=64).state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt"), "num_classes": 3, "input_size": (3, 64, 64)}
    expected = timm.create_model(
        "deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL, img_size=96
    )
    loaded = load_model("deit_tiny_patch16_224", **SMALL, img_size=96, checkpoint=tmp_path / "weights.pt")
    assert torch.equal(loaded.pos_embed, expected.pos_embed)


def test_patches_are_resampled_when_another_size_of_them_is_asked_for(tmp_path):
    torch.save(load_model("deit_tiny_patch16_224", **SMALL, img_size=64).state_dict(), tmp_path / "weights.pt")
    weights = {"checkpoint": tmp_path / "weights.pt"}
    loaded = load_model("deit_tiny_patch16_224", **SMALL, img_size=64, patch_size=8, **weights)
    assert loaded.patch_embed.proj.weight.shape[-1] == 8
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight has shape"):
        load_model("vit_tiny_patch16_224", **SMALL, img_size=64, checkpoint=_of_patches_of_8(tmp_path))


def _of_patches_of_8(folder):
    model = load_model("deit_tiny_patch16_224", **SMALL, img_size=32, patch_size=8)
    torch.save(model.state_dict(), folder / "of_8.pt")
    return folder / "of_8.pt"


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vim_tiny"])
def test_nothing_is_resampled_unless_a_size_was_asked_for(name, tmp_path):
    torch.save(load_model(name, **SMALL, img_size=64).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"pos_embed has shape \(1, 17, 192\), expected \(1, 197, 192\)"):
        load_model(name, **SMALL, checkpoint=tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vim_tiny"])
def test_another_model_is_refused_at_any_size(name, tmp_path):
    torch.save(load_model(name, **SMALL | {"num_classes": 5}, img_size=64).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"head\.weight has shape \(5, 192\), expected \(3, 192\)"):
        load_model(name, **SMALL, img_size=96, checkpoint=tmp_path / "weights.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(name, **SMALL, img_size=96, checkpoint=tmp_path / "weights.pt")


def table(rows, columns, class_position):
    """Make a table in which each position holds its row and its column, and the class token's row -1."""
    positions = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).float()
    positions = positions.reshape(1, -1, 2)
    index = rows * columns // 2 if class_position == "middle" else 0
    return torch.cat([positions[:, :index], torch.full((1, 1, 2), -1.0), positions[:, index:]], dim=1)


@pytest.mark.parametrize("class_position", ["head", "middle"])
@pytest.mark.parametrize("grids", [((3, 3), (5, 5)), ((4, 4), (3, 5)), ((2, 6), (6, 2)), ((4, 2), (4, 4))])
def test_the_row_of_the_class_token_moves_to_its_new_place(class_position, grids):
    old, new = grids
    resampled = resampled_positions(table(*old, class_position), new, old, class_position)
    index = new[0] * new[1] // 2 if class_position == "middle" else 0
    assert resampled.shape == (1, new[0] * new[1] + 1, 2)
    assert resampled[0, index].tolist() == [-1, -1]
    patches = torch.cat([resampled[:, :index], resampled[:, index + 1 :]], dim=1)
    only = table(*old, "head")[:, 1:]
    assert torch.equal(patches, resample_abs_pos_embed(only, list(new), list(old), num_prefix_tokens=0))


@pytest.mark.parametrize("class_position", ["head", "middle"])
@pytest.mark.parametrize("name", ["vim_tiny", "vim_tiny_stride8", "tiny_vim"])
def test_a_vision_mamba_is_set_to_another_size(name, class_position):
    options = {"depth": 1, "embed_dim": 24, "num_classes": 3, "class_position": class_position}
    model = load_model(name, **options, img_size=64)
    model.set_input_size(img_size=(96, 48))
    built = load_model(name, **options, img_size=(96, 48))
    assert model.patch_embed.grid_size == built.patch_embed.grid_size
    assert model.class_index == built.class_index
    built.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 96, 48)
    with torch.no_grad():
        assert torch.equal(model(images), built(images))


def test_a_vision_mamba_says_how_it_takes_images_of_another_size():
    from repshift import RepresentationError

    model = load_model("vim_tiny", depth=1, embed_dim=24)
    with pytest.raises(RepresentationError, match=r"takes images of 224x224.*set_input_size\(img_size=\(rows, columns"):
        model(torch.randn(1, 3, 64, 64))
    model.set_input_size(img_size=(64, 64))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(RepresentationError, match="8x64 pixels hold no patch of 16x16"):
        model.set_input_size(img_size=(8, 64))
