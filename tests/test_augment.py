import numpy as np
import pytest
import torch

from config import Config
from training.augment import affine_grid, augment, blend, draw, draw_blend, erase, uniform, window_at, within

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
    whole = augment(images, draw(Config(cutout=0.3), np.arange(8), epoch=0))
    alone = augment(images[5:6], draw(Config(cutout=0.3), np.array([5]), epoch=0))
    torch.testing.assert_close(whole[5:6], alone)


def test_erase_greys_the_square_and_nothing_else():
    out = erase(torch.ones(1, 1, 48, 48), torch.tensor([[-0.5, -0.25, 0.5, 0.25]]))
    assert int((out == 0).sum()) == 24 * 12 and bool((out[:, :, 18:30, 12:36] == 0).all())


def test_the_erased_square_has_the_configured_side():
    out = apply(Config(**STILL, cutout=0.5), torch.ones(200, 1, 48, 48))
    areas = (out == 0).sum((1, 2, 3))
    assert areas.max() == 24 * 24 and areas.min() >= 12 * 12 - 24


def test_the_grid_is_torchs():
    theta = draw(Config(rotation=90.0, zoom=0.5), np.arange(20), epoch=0).theta
    wanted = torch.nn.functional.affine_grid(theta, [20, 1, 48, 48], align_corners=False)
    torch.testing.assert_close(affine_grid(theta, 48), wanted)


def test_a_window_is_the_middle_of_the_whole():
    images, draws = torch.rand(6, 1, 48, 48), draw(Config(rotation=20.0), np.arange(6), epoch=0)
    whole = augment(images, draws)
    torch.testing.assert_close(augment(images, draws, window=40), whole[:, :, 4:44, 4:44])
    assert augment(images, draws, window=33).shape == (6, 1, 33, 33)


def test_windows_end_with_the_last_share_of_the_epochs():
    config = Config(epochs=10, window=40, full_size_share=0.3)
    assert [window_at(config, epoch) for epoch in range(10)] == [40] * 7 + [48] * 3
    assert {window_at(Config(epochs=10), epoch) for epoch in range(10)} == {48}
    assert [window_at(Config(epochs=2, window=40), epoch) for epoch in range(2)] == [40, 48]  # one at the least
    assert {window_at(Config(epochs=9, window=40, full_size_share=0.0), epoch) for epoch in range(9)} == {40}


def test_tones_are_strengthened_lightened_and_kept_in_range():
    flat = torch.full((400, 1, 48, 48), 0.5)
    lit = apply(Config(**STILL, brightness=0.1), flat)[:, 0, 0, 0]
    assert 0.3 <= lit.min() < 0.32 and 0.68 < lit.max() <= 0.7  # a tenth of black to white is 0.2
    strong = apply(Config(**STILL, contrast=0.4), flat)[:, 0, 0, 0]
    assert 0.3 <= strong.min() < 0.31 and 0.69 < strong.max() <= 0.7
    assert apply(Config(**STILL, contrast=1.0, brightness=1.0), flat).abs().max() == 1.0


def test_new_augmentation_leaves_the_other_draws_as_they_were():
    rows = np.arange(5)
    plain, toned = (draw(Config(cutout=0.2, contrast=c), rows, epoch=3) for c in (0.0, 0.5))
    assert torch.equal(plain.theta, toned.theta) and torch.equal(plain.boxes, toned.boxes) and plain.tones is None


def test_nothing_is_blended_unless_asked():
    assert draw_blend(Config(), 8, epoch=0, step=0) is None


def test_mixup_averages_by_the_share_of_the_target():
    how = draw_blend(Config(mixup=0.4), 5000, epoch=1, step=2)
    share = how.share.numpy()
    assert how.boxes.isnan().all() and share.min() >= 0.5 and share.max() <= 1
    # The mean of max(b, 1 - b) over 10 million draws b of Beta(0.4, 0.4) is 0.8398, its error here 0.002
    assert share.mean() == pytest.approx(0.8398, abs=0.008)
    images, partners = torch.rand(5000, 1, 4, 4), torch.rand(5000, 1, 4, 4)
    mean = how.share.view(-1, 1, 1, 1)
    torch.testing.assert_close(blend(images, partners, how), mean * images + (1 - mean) * partners)


def test_cutmix_covers_as_much_as_the_partners_share():
    how = draw_blend(Config(cutmix=1.0), 2000, epoch=0, step=0)
    out = blend(torch.ones(2000, 1, 48, 48), torch.zeros(2000, 1, 48, 48), how)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    covered = 1 - out.mean((1, 2, 3))
    # A side is a whole number of pixels: off by less than one of them on each axis
    assert (covered.sqrt() - (1 - how.share).sqrt()).abs().max() < 1.01 / 48
    assert float((covered - (1 - how.share)).mean()) == pytest.approx(0, abs=0.005)
    assert how.boxes.min() >= -1 and how.boxes.max() <= 1


def test_with_both_each_has_half():
    how = draw_blend(Config(mixup=0.4, cutmix=1.0), 4000, epoch=0, step=0)
    assert 1850 < int(how.boxes.isnan().all(1).sum()) < 2150
    whole, tail = (
        draw_blend(Config(mixup=0.4), 100, epoch=0, step=0),
        draw_blend(Config(mixup=0.4), 100, epoch=0, step=1),
    )
    assert torch.equal(whole.share, draw_blend(Config(mixup=0.4), 100, epoch=0, step=0).share)
    assert not torch.isclose(whole.share, tail.share).all()


def test_a_box_of_nothing_holds_no_pixel():
    assert not within(torch.full((2, 4), torch.nan), (5, 6)).any()
