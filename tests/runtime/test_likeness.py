"""PSNR and SSIM say of known pictures what is known."""

from __future__ import annotations

import numpy as np
import pytest

from ditcast_runtime import likeness
from ditcast_runtime.events import LEAST_SIDE, MOST_DECIBELS
from ditcast_runtime.likeness import Picture


def grey(level: int, side: int = 32) -> Picture:
    """Give a picture of one level."""
    return np.full((side, side, 3), level, dtype=np.uint8)


def slopes(height: int, width: int) -> tuple[Picture, Picture]:
    """Give a picture with edges and slopes, and one that is off by a regular pattern."""
    y, x = np.mgrid[:height, :width]
    one = np.stack([x * 4 % 256, y * 6 % 256, (x + y) * 5 % 256], -1).astype(np.uint8)
    pattern = ((x * 7 + y * 13) % 32)[..., None] - 16
    return one, np.clip(one.astype(int) + pattern, 0, 255).astype(np.uint8)


def test_the_same_picture_is_as_like_as_can_be() -> None:
    """The mean over several pictures must stay a number: PSNR has an upper end."""
    one, _ = slopes(40, 56)
    assert likeness.psnr(one, one.copy()) == MOST_DECIBELS
    assert likeness.ssim(one, one.copy()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("apart", "decibels"), [(1, 48.1308), (10, 28.1308), (100, 8.1308), (255, 0.0)]
)
def test_psnr_of_a_known_error(apart: int, decibels: float) -> None:
    """An error of d levels everywhere is 20 log10(255 / d) dB."""
    assert likeness.psnr(grey(0), grey(apart)) == pytest.approx(decibels, abs=1e-4)


def test_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    """Without any structure, only Wang's formula of the means is left."""
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert likeness.ssim(grey(100), grey(150)) == pytest.approx(expected)


def test_both_agree_with_another_implementation() -> None:
    """The figures are scikit-image 0.26's for the same two pictures.

    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    """
    one, other = slopes(40, 56)
    assert likeness.ssim(one, other) == pytest.approx(0.7176837076281878, abs=1e-12)
    assert likeness.psnr(one, other) == pytest.approx(28.931582642805544, abs=1e-12)


def test_large_pictures_are_compared_in_bands_without_a_seam() -> None:
    """What is compared band by band is the mean over parts that share a window's margin."""
    one, other = slopes(600, 24)
    halves = [likeness.ssim(one[:305], other[:305]), likeness.ssim(one[295:], other[295:])]
    assert likeness.ssim(one, other) == pytest.approx(sum(halves) / 2, abs=1e-12)
    squares = np.square(one.astype(float) - other).mean()
    assert likeness.psnr(one, other) == pytest.approx(10 * np.log10(255**2 / squares))


def test_ssim_needs_a_whole_window() -> None:
    """A picture without room for one window has no similarity that could be told."""
    with pytest.raises(ValueError, match=str(LEAST_SIDE)):
        likeness.ssim(grey(0, LEAST_SIDE - 1), grey(0, LEAST_SIDE - 1))
    assert likeness.ssim(grey(7, LEAST_SIDE), grey(7, LEAST_SIDE)) == pytest.approx(1.0)
