"""Laws of noise over pictures."""

import math

import numpy as np
import pytest

from btcompress.demo.noise import NOISE_KINDS, Noise
from btcompress.errors import BTCompressError

GREY = 128


def pictures(n, value=GREY):
    return np.full((n, 20, 30, 3), value, np.uint8)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_is_that_of_its_seed_and_none_where_it_has_no_strength(kind):
    given = pictures(70, 10)
    before = given.copy()
    first, again, other = (Noise(kind, 0.2, seed).over(given) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8
    assert np.array_equal(Noise(kind, 0.0).over(given), given)
    assert np.array_equal(given, before)
    assert len(np.unique(first, axis=0)) > 35


@pytest.mark.parametrize("strength", [0.05, 0.1])
def test_gaussian_noise_has_its_standard_deviation_in_every_pixel_and_colour_alone(strength):
    noise = Noise("gaussian", strength).over(pictures(70)) / 255 - GREY / 255
    assert noise.std() == pytest.approx(strength, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.002)
    for axis in (1, 2, 3):
        ahead, behind = noise.take(range(1, noise.shape[axis]), axis), noise.take(range(noise.shape[axis] - 1), axis)
        assert abs((ahead * behind).mean()) < 0.05 * strength**2
    assert Noise("gaussian", 5.0).over(pictures(1)).max() == 255


@pytest.mark.parametrize("strength", [0.1, 0.25, 1.0])
def test_occlusion_covers_its_share_with_one_rectangle_of_the_proportions_of_the_picture(strength):
    covered = (Noise("occlusion", strength).over(pictures(50, 7)) == GREY).all(-1)
    height, width = round(20 * math.sqrt(strength)), round(30 * math.sqrt(strength))
    for rows, columns in ((each.any(1), each.any(0)) for each in covered):
        assert (rows.sum(), columns.sum()) == (height, width)
    assert (covered.sum((1, 2)) == height * width).all()
    assert strength == 1 or len(np.unique(covered, axis=0)) > 25


def test_what_lies_over_a_clip_stays_at_its_place():
    clips = np.zeros((5, 4, 10, 10, 3), np.uint8)
    covered = Noise("occlusion", 0.3).over(clips)
    assert (covered == covered[:, :1]).all()
    assert (covered != covered[:1]).any()


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("gaussian", -0.1), ("gaussian", math.nan), ("occlusion", 1.01), ("occlusion", -0.1), ("occlusion", math.nan)],
)
def test_strengths_that_cannot_be_are_refused(kind, strength):
    with pytest.raises(BTCompressError, match=f"{kind} noise of strength {strength} was asked for"):
        Noise(kind, strength)
