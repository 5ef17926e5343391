"""Pictures reach an encoder as Pillow and torchvision hand them over, level by level, and gradients pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from evals.scorers._preprocess import centre_crop, preprocess, resize, resize_short_side, to_8bit

SIDES = (1, 2, 5, 31, 64, 97, 224, 225, 300, 513)


def pictures(height: int, width: int, seed: int, count: int = 2) -> np.ndarray:
    """uint8 [count, H, W, 3]: noise, which overshoots, and black and white, which must be clipped."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    noise[1:] = np.where(noise[1:] > 127, 255, 0)
    return noise


def as_tensor(pictures_BHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pictures_BHWC)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_resize_is_pillows_to_the_last_level(name):
    rng = np.random.default_rng(0)
    for seed in range(60):
        before, after = rng.choice(SIDES, 2), rng.choice(SIDES, 2)
        given = pictures(*before, seed)
        ours = resize(as_tensor(given), tuple(int(side) for side in after), name)
        for picture, resized in zip(given, ours, strict=True):
            wanted = Image.fromarray(picture).resize(
                (int(after[1]), int(after[0])), Image.Resampling[name.upper()]
            )
            assert torch.equal(resized, as_tensor(np.asarray(wanted)[None])[0]), (before, after)


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "sides", [(512, 512), (480, 640), (641, 427), (224, 224), (64, 64), (100, 333), (900, 250), (1, 7)]
)
def test_preprocessing_is_torchvisions(name, sides):
    given = pictures(*sides, 1)
    oracle = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode[name.upper()]),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    wanted = torch.stack([oracle(Image.fromarray(picture)) for picture in given])
    assert torch.equal(preprocess(as_tensor(given), 224, resample=name), wanted)


def test_crop_offsets_are_torchvisions():
    numbers = torch.arange(61 * 64).view(1, 1, 61, 64)
    for size in range(1, 62):
        assert torch.equal(centre_crop(numbers, size), transforms.CenterCrop(size)(numbers)), size


@pytest.mark.parametrize("sides", [(37, 61), (61, 37), (20, 20), (300, 280)])
def test_the_long_side_is_torchvisions(sides):
    resized = resize_short_side(torch.zeros(1, 3, *sides), 50)
    assert resized.shape == transforms.Resize(50)(torch.zeros(1, 3, *sides)).shape


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(50, 31), (97, 130), (64, 40)])
def test_gradient_is_that_of_the_resampling_without_rounding(name, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 48, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((resize(images, size, name) * weight).sum(), images)
    smooth = F.interpolate(images, size, mode=name, antialias=True, align_corners=False)
    (wanted,) = torch.autograd.grad((smooth * weight).sum(), images)
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert ours.abs().max() > 0.1


def test_rounding_keeps_the_grid_and_passes_the_gradient():
    images = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 0.7, 1.0, 1.3], requires_grad=True)
    rounded = to_8bit(images)
    assert (rounded * 255).tolist() == [0, 0, 0, 1, 178, 255, 255]
    (gradient,) = torch.autograd.grad((rounded * torch.arange(7)).sum(), images)
    assert gradient.tolist() == list(range(7))
    levels = torch.arange(256) / 255
    assert torch.equal(to_8bit(levels), levels)


def test_a_batch_is_resized_as_its_pictures_alone():
    images = as_tensor(pictures(70, 90, 3, 5))
    alone = torch.cat([preprocess(images[i : i + 1], 32) for i in range(5)])
    assert torch.equal(preprocess(images, 32), alone)
