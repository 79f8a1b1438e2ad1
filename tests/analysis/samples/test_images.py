import timm
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from repshift import load_model
from repshift.analysis.samples.images import load_images, normalised, pixels


def test_images_are_prepared_by_timms_own_transform(make_image):
    model = load_model("deit_tiny_patch16_224")
    paths = [make_image("wide.jpg", 300, 180, quality=90), make_image("high.jpg", 150, 400, quality=90)]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(load_images(model, paths), expected)


def test_preparing_is_resizing_cropping_the_centre_and_normalising(make_image):
    model = load_model("deit_tiny_patch16_224")
    path = make_image("wide.png", 300, 180)
    resized = vision.resize(Image.open(path), 248, InterpolationMode.BICUBIC)  # 224 / 0.9
    expected = vision.normalize(
        vision.to_tensor(vision.center_crop(resized, [224, 224])), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert torch.allclose(load_images(model, [path])[0], expected, atol=1e-5)


def test_the_embedded_model_gets_its_own_size(make_image):
    assert load_images(load_model("tiny_vit"), [make_image("a.png", 90, 50)]).shape == (1, 3, 64, 64)


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation():
    model = load_model("tiny_vit")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    config = timm.data.resolve_model_data_config(model)
    expected = vision.normalize(images.float() / 255, config["mean"], config["std"])
    assert torch.allclose(normalised(model, images), expected, atol=1e-5)


def test_what_was_normalised_can_be_seen_again():
    model = load_model("tiny_vit")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    seen = pixels(model, normalised(model, images))
    assert seen.shape == (2, 64, 64, 3)
    assert torch.equal((255 * seen).round().to(torch.uint8), images.permute(0, 2, 3, 1))


def test_pixels_stay_between_black_and_white():
    seen = pixels(load_model("tiny_vit"), 100 * torch.randn(1, 3, 8, 8))
    assert seen.min() == 0
    assert seen.max() == 1
