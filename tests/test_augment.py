import numpy as np
import torch

from augment import affine_grid, augment, draw, erase, uniform
from config import Config

STILL = {"flip": False, "shift": 0.0, "rotation": 0.0, "zoom": 0.0}


def image() -> torch.Tensor:
    return torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def apply(config: Config, images: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    return augment(images, draw(config, np.arange(len(images)), epoch=epoch))


def test_with_every_amount_at_zero_the_image_stays():
    torch.testing.assert_close(apply(Config(**STILL), image()), image(), atol=1e-5, rtol=0)


def test_off_draws_nothing():
    assert draw(Config(augment=False), np.arange(3), epoch=0) is None


def test_flip_mirrors_about_half_of_the_images():
    images = image().expand(400, -1, -1, -1)
    out = apply(Config(**{**STILL, "flip": True}), images)
    mirrored = (out - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    same = (out - images).abs().amax((1, 2, 3)) < 1e-4
    assert bool((mirrored ^ same).all()) and 150 < int(mirrored.sum()) < 250


def test_shift_is_in_pixels():
    dot = torch.full((300, 1, 48, 48), -1.0)
    dot[:, :, 24, 24] = 1.0
    out = apply(Config(**{**STILL, "shift": 4.0}), dot) + 1
    x = (out.sum((1, 2)) * torch.arange(48)).sum(1) / out.sum((1, 2, 3))
    assert 3.5 < (x - 24).abs().max() < 4.1 and (x - 24).abs().mean() > 1.5


def test_rotation_is_in_degrees():
    bar = torch.full((300, 1, 48, 48), -1.0)
    bar[:, :, 23:25, 4:44] = 1.0
    out = (apply(Config(**{**STILL, "rotation": 30.0}), bar) + 1)[:, 0]
    y = torch.arange(48).float()[:, None]
    at = (out * y).sum(1) / out.sum(1).clamp(min=1e-6)
    angle = torch.rad2deg(torch.atan2(at[:, 36] - at[:, 12], torch.tensor(24.0)))
    assert 25 < angle.abs().max() < 31


def test_a_draw_belongs_to_seed_epoch_and_image():
    rows = np.arange(10)
    first = draw(Config(seed=1), rows, epoch=2).theta
    assert torch.equal(first, draw(Config(seed=1), rows, epoch=2).theta)
    assert not torch.isclose(first, draw(Config(seed=1), rows, epoch=3).theta).all((1, 2)).any()
    assert not torch.isclose(first, draw(Config(seed=2), rows, epoch=2).theta).all((1, 2)).any()
    assert torch.equal(draw(Config(seed=1), np.array([7, 3]), epoch=2).theta, first[[7, 3]])


def test_draws_are_uniform_and_not_alike():
    numbers = uniform(np.arange(100_000), 7, of=(0, 1))
    assert numbers.min() >= 0 and numbers.max() < 1
    for values in numbers:  # ten bins of 10,000 +- 95
        assert abs(np.histogram(values, 10, (0, 1))[0] - 10_000).max() < 500
    others = [uniform(np.arange(100_000), 1, of=of)[0] for of in ((0, 2), (1, 1), (1, 0))]
    shifted = [numbers[0, 1:], numbers[0, :-1]]
    table = np.corrcoef([*numbers, *others])
    assert abs(table - np.eye(len(table))).max() < 0.02 and abs(np.corrcoef(shifted)[0, 1]) < 0.02


def test_an_images_variant_does_not_depend_on_its_batch():
    images = torch.rand(8, 1, 48, 48)
    whole = augment(images, draw(Config(erase=0.3), np.arange(8), epoch=0))
    alone = augment(images[5:6], draw(Config(erase=0.3), np.array([5]), epoch=0))
    torch.testing.assert_close(whole[5:6], alone)


def test_erase_greys_the_square_and_nothing_else():
    out = erase(torch.ones(1, 1, 48, 48), torch.tensor([[-0.5, -0.25, 0.5, 0.25]]))
    assert int((out == 0).sum()) == 24 * 12 and bool((out[:, :, 18:30, 12:36] == 0).all())


def test_the_erased_square_has_the_configured_side():
    out = apply(Config(**STILL, erase=0.5), torch.ones(200, 1, 48, 48))
    areas = (out == 0).sum((1, 2, 3))
    assert areas.max() == 24 * 24 and areas.min() >= 12 * 12 - 24


def test_the_grid_is_torchs():
    theta = draw(Config(rotation=90.0, zoom=0.5), np.arange(20), epoch=0).theta
    wanted = torch.nn.functional.affine_grid(theta, [20, 1, 48, 48], align_corners=False)
    torch.testing.assert_close(affine_grid(theta, 48), wanted)
