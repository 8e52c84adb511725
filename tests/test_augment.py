import numpy as np
import pytest
import torch

from config import Config
from training.augment import Blending, affine_grid, augment, blend, inside, rows, sample_epoch, window_size

STILL = {"flip": False, "shift": 0.0, "rotation": 0.0, "zoom": 0.0}


def image() -> torch.Tensor:
    return torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def apply(config: Config, images: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    return augment(images, sample_epoch(config, len(images), epoch).augmentation)


# --- What is sampled ---


def test_an_epoch_is_decided_by_its_seed_and_number_alone():
    config = Config(seed=1, cutout=0.3, contrast=0.3, mixup=0.4, cutmix=1.0)
    first, again = sample_epoch(config, 50, 2), sample_epoch(config, 50, 2)
    assert np.array_equal(first.order, again.order) and sorted(first.order) == list(range(50))
    for table in ("augmentation", "blending"):
        for one, other in zip(getattr(first, table), getattr(again, table), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for other in (sample_epoch(config, 50, 3), sample_epoch(Config(seed=2, mixup=0.4), 50, 2)):
        assert not np.array_equal(first.order, other.order)
        assert not torch.isclose(first.augmentation.theta, other.augmentation.theta).all((1, 2)).any()
        assert not torch.isclose(first.blending.share, other.blending.share).all()


def test_a_setting_changes_nothing_but_what_it_is_for():
    plain, more = (sample_epoch(Config(cutout=0.2, **more), 5, 3) for more in ({}, {"contrast": 0.5, "mixup": 0.4}))
    assert torch.equal(plain.augmentation.theta, more.augmentation.theta)
    assert torch.equal(plain.augmentation.boxes, more.augmentation.boxes) and np.array_equal(plain.order, more.order)
    assert plain.augmentation.tones is None and plain.blending is None
    assert sample_epoch(Config(augment=False), 3, 0).augmentation is None


def test_an_images_variant_does_not_depend_on_its_batch():
    images, how = torch.rand(8, 1, 48, 48), sample_epoch(Config(cutout=0.3), 8, 0).augmentation
    alone = augment(images[5:6], rows(how, torch.tensor([5])))
    torch.testing.assert_close(augment(images, how)[5:6], alone)


# --- Augmentation ---


def test_with_every_amount_at_zero_the_image_stays():
    torch.testing.assert_close(apply(Config(**STILL), image()), image(), atol=1e-5, rtol=0)


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


def test_the_grid_is_torchs():
    theta = sample_epoch(Config(rotation=90.0, zoom=0.5), 20, 0).augmentation.theta
    wanted = torch.nn.functional.affine_grid(theta, [20, 1, 48, 48], align_corners=False)
    torch.testing.assert_close(affine_grid(theta, 48, 48), wanted)


def test_cutout_greys_a_square_of_the_configured_side_and_nothing_else():
    out = apply(Config(**STILL, cutout=0.5), torch.ones(200, 1, 48, 48))
    areas = (out == 0).sum((1, 2, 3))
    assert areas.max() == 24 * 24 and areas.min() >= 12 * 12 - 24 and set(out.unique().tolist()) == {0.0, 1.0}


def test_a_box_covers_its_pixels_and_one_of_nothing_none():
    found = inside(torch.tensor([[-0.5, -0.25, 0.5, 0.25], [torch.nan] * 4]), 48)
    assert int(found[0].sum()) == 24 * 12 and bool(found[0, :, 18:30, 12:36].all()) and not found[1].any()


def test_tones_are_strengthened_lightened_and_kept_in_range():
    flat = torch.full((400, 1, 48, 48), 0.5)
    lit = apply(Config(**STILL, brightness=0.1), flat)[:, 0, 0, 0]
    assert 0.3 <= lit.min() < 0.32 and 0.68 < lit.max() <= 0.7  # a tenth of black to white is 0.2
    strong = apply(Config(**STILL, contrast=0.4), flat)[:, 0, 0, 0]
    assert 0.3 <= strong.min() < 0.31 and 0.69 < strong.max() <= 0.7
    assert apply(Config(**STILL, contrast=1.0, brightness=1.0), flat).abs().max() == 1.0


# --- Windows ---


def test_a_window_is_the_middle_of_the_whole():
    images, how = torch.rand(6, 1, 48, 48), sample_epoch(Config(rotation=20.0), 6, 0).augmentation
    torch.testing.assert_close(augment(images, how, window=40), augment(images, how)[:, :, 4:44, 4:44])
    assert augment(images, how, window=33).shape == (6, 1, 33, 33)


def test_windows_end_with_the_last_share_of_the_epochs():
    config = Config(epochs=10, window=40, full_size_share=0.3)
    assert [window_size(config, epoch) for epoch in range(10)] == [40] * 7 + [48] * 3
    assert {window_size(Config(epochs=10), epoch) for epoch in range(10)} == {48}
    assert [window_size(Config(epochs=2, window=40), epoch) for epoch in range(2)] == [40, 48]  # one at the least
    never = Config(epochs=9, window=40, full_size_share=0.0)
    assert {window_size(never, epoch) for epoch in range(9)} == {40}


# --- Mixup and cutmix ---


def sampled(count: int, **settings: float) -> Blending:
    return sample_epoch(Config(**settings), count, 1).blending


def test_mixup_averages_by_the_share_of_the_target():
    how = sampled(5000, mixup=0.4)
    assert how.boxes is None and how.share.min() >= 0.5 and how.share.max() <= 1
    # The mean of max(b, 1 - b) over 10 million samples b of Beta(0.4, 0.4) is 0.8398, its error here 0.002
    assert how.share.mean() == pytest.approx(0.8398, abs=0.008)
    images, partners = torch.rand(5000, 1, 4, 4), torch.rand(5000, 1, 4, 4)
    mean = how.share.view(-1, 1, 1, 1)
    torch.testing.assert_close(blend(images, partners, how), mean * images + (1 - mean) * partners)


def test_cutmix_covers_as_much_as_the_partners_share():
    how = sampled(2000, cutmix=1.0)
    out = blend(torch.ones(2000, 1, 48, 48), torch.zeros(2000, 1, 48, 48), how)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    covered = 1 - out.mean((1, 2, 3))
    # A side is a whole number of pixels: off by less than one of them on each axis
    assert (covered.sqrt() - (1 - how.share).sqrt()).abs().max() < 1.01 / 48
    assert float((covered - (1 - how.share)).mean()) == pytest.approx(0, abs=0.005)
    assert how.boxes.min() >= -1 and how.boxes.max() <= 1


def test_with_both_each_has_half():
    assert 1850 < int(sampled(4000, mixup=0.4, cutmix=1.0).boxes.isnan().all(1).sum()) < 2150
