import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize

from repshift import DataError
from repshift.analysis.video import preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(rows, columns):
    return torch.randint(0, 256, (2, 3, rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(37, 51), (24, 24), (9, 70)])
def test_frames_are_what_torchvision_makes_of_tensors(size):
    clip = noise(*size)
    resized = resize(clip, [24, 24], InterpolationMode.BICUBIC, antialias=False)
    torch.testing.assert_close(preprocess(clip, 24), normalize(resized / 255, MEAN, STD))


def test_other_means_can_be_given():
    torch.testing.assert_close(preprocess(noise(8, 8), 8, (0, 0, 0), (1, 1, 1)), noise(8, 8) / 255)


@pytest.mark.parametrize("clip", [torch.rand(2, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(0, 3, 4, 4).byte()])
def test_other_forms_are_refused(clip):
    with pytest.raises(DataError, match="A clip is"):
        preprocess(clip, 8)
