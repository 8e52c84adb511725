import torch

from augment import augment, draw, erase
from config import Config

STILL = {"flip": False, "shift": 0.0, "rotation": 0.0, "zoom": 0.0}
CPU = torch.device("cpu")


def image() -> torch.Tensor:
    return torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def apply(config: Config, images: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    draws = draw(config, count=len(images), epoch=epoch)
    return augment(images, draws.rows(torch.arange(len(images)), CPU))


def test_with_every_amount_at_zero_the_image_stays():
    torch.testing.assert_close(apply(Config(**STILL), image()), image(), atol=1e-5, rtol=0)


def test_off_draws_nothing():
    assert draw(Config(augment=False), count=3, epoch=0) is None


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
    first = draw(Config(seed=1), count=10, epoch=2)
    assert torch.equal(first.theta, draw(Config(seed=1), count=10, epoch=2).theta)
    assert not torch.equal(first.theta, draw(Config(seed=1), count=10, epoch=3).theta)
    assert not torch.equal(first.theta, draw(Config(seed=2), count=10, epoch=2).theta)
    at = torch.tensor([7, 3])
    assert torch.equal(first.rows(at, CPU).theta, first.theta[at])


def test_an_images_variant_does_not_depend_on_its_batch():
    images = torch.rand(8, 1, 48, 48)
    draws = draw(Config(erase=0.3), count=8, epoch=0)
    whole = augment(images, draws.rows(torch.arange(8), CPU))
    alone = augment(images[5:6], draws.rows(torch.tensor([5]), CPU))
    torch.testing.assert_close(whole[5:6], alone)


def test_erase_greys_the_square_and_nothing_else():
    out = erase(torch.ones(1, 1, 48, 48), torch.tensor([[-0.5, -0.25, 0.5, 0.25]]))
    assert int((out == 0).sum()) == 24 * 12 and bool((out[:, :, 18:30, 12:36] == 0).all())


def test_the_erased_square_has_the_configured_side():
    out = apply(Config(**STILL, erase=0.5), torch.ones(200, 1, 48, 48))
    areas = (out == 0).sum((1, 2, 3))
    assert areas.max() == 24 * 24 and areas.min() >= 12 * 12 - 24
