"""Laws of the demonstration's clips."""

import sys

import numpy as np
import pytest
import torch

from btcompress.demo.video import CLASS_NAMES, make_clips
from btcompress.demo.video.clips import _poses
from btcompress.errors import BTCompressError

HEIGHT, WIDTH, N_FRAMES = 30, 40, 5


def clips_of(seed, n_clips=330, **changes):
    sizes = {"height": HEIGHT, "width": WIDTH, "n_frames": N_FRAMES} | changes
    return make_clips(n_clips, generator=torch.Generator().manual_seed(seed), **sizes)


def moments(clips):
    """Sum and centre (row, column) of the digit's brightness in each frame."""
    frames = clips.x.reshape(*clips.x.shape[:2], *clips.frame_shape).mean(-1) / 255
    # Half-way between the darkest ink and the brightest background, so that the digit alone counts.
    ink = np.where(frames > 0.45, frames, 0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mass = ink.sum((-1, -2))
    row, column = (ink * rows).sum((-1, -2)) / mass, (ink * columns).sum((-1, -2)) / mass
    return mass, row, column


def test_shapes_and_types_are_as_documented():
    clips = clips_of(0, n_clips=7)
    assert clips.x.shape == (7, N_FRAMES, HEIGHT * WIDTH * 3)
    assert clips.x.dtype == np.uint8
    assert clips.y.shape == (7,)
    assert clips.y.dtype == np.int64
    assert clips.frame_shape == (HEIGHT, WIDTH, 3)
    assert clips.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 11


def test_one_seed_gives_the_same_clips_and_another_seed_others():
    first, again, other = clips_of(0, n_clips=70), clips_of(0, n_clips=70), clips_of(1, n_clips=70)
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.y, again.y)
    assert not np.array_equal(first.x, other.x)
    assert not np.array_equal(first.y, other.y)


def test_every_class_is_drawn_about_equally_often():
    counts = np.bincount(clips_of(0, n_clips=2200, height=2, width=2, n_frames=1).y, minlength=11)
    # Five standard deviations of a binomial count with mean 200.
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(200 * 10 / 11))


def test_a_still_clip_without_noise_repeats_its_first_frame_and_no_other_class_does():
    clips = clips_of(0, noise=0.0)
    repeats = (clips.x == clips.x[:, :1]).all((1, 2))
    assert np.array_equal(repeats, clips.y == CLASS_NAMES.index("still"))


@pytest.mark.parametrize(
    ("name", "down", "right"),
    [
        ("moving left", 0, -1),
        ("moving right", 0, 1),
        ("moving up", -1, 0),
        ("moving down", 1, 0),
        ("moving up and right", -1, 1),
        ("moving down and left", 1, -1),
        ("turning clockwise", 0, 0),
        ("turning counter-clockwise", 0, 0),
        ("growing", 0, 0),
        ("shrinking", 0, 0),
    ],
)
def test_the_digit_goes_where_its_class_says(name, down, right):
    clips = clips_of(0, noise=0.0)
    _, row, column = moments(clips)
    chosen = clips.y == CLASS_NAMES.index(name)
    for direction, place in ((down, row), (right, column)):
        way = (place[:, -1] - place[:, 0])[chosen] / HEIGHT
        if direction:
            assert np.all(way * direction > 0.03)
            assert 0.1 < np.mean(way * direction) < 0.35
        else:
            assert abs(np.mean(way)) < 0.03


def test_growing_digits_cover_more_at_the_end_and_shrinking_ones_less():
    clips = clips_of(0, noise=0.0)
    mass, _, _ = moments(clips)
    growth = mass[:, -1] / mass[:, 0]
    assert np.all(growth[clips.y == CLASS_NAMES.index("growing")] > 1)
    assert np.all(growth[clips.y == CLASS_NAMES.index("shrinking")] < 1)


@pytest.mark.parametrize(("name", "sign"), [("turning clockwise", 1), ("turning counter-clockwise", -1)])
def test_turning_carries_the_digits_right_side_down_when_clockwise_and_up_otherwise(name, sign):
    n = 50
    classes = torch.full((n,), CLASS_NAMES.index(name))
    poses = _poses(classes, N_FRAMES, WIDTH / HEIGHT, torch.Generator().manual_seed(0)).double()
    linear, shift = poses[..., :2], poses[..., 2:]
    right_side = torch.linalg.solve(linear, torch.tensor([[1.0], [0.0]]).double() - shift)
    middle = torch.linalg.solve(linear, -shift)
    arm = (right_side - middle)[..., 0]  # in frame coordinates, rows downwards
    angle = torch.atan2(arm[..., 1], arm[..., 0] * WIDTH / HEIGHT)
    turned = sign * (angle[:, -1] - angle[:, 0])
    assert turned.min() > 0.3
    assert turned.max() < 1.2


def test_the_digit_keeps_its_proportions_in_wide_and_in_tall_frames():
    for aspect in (16 / 9, 0.5):
        poses = _poses(torch.arange(11), N_FRAMES, aspect, torch.Generator().manual_seed(0)).double()
        # In lengths rather than frame coordinates the linear part is a rotation times a scale.
        linear = poses[..., :2] / torch.tensor([aspect, 1.0]).double()
        gram = linear.mT @ linear
        expected = gram[..., :1, :1] * torch.eye(2).double()
        torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5)


def test_noise_has_the_standard_deviation_asked_for():
    noisy = clips_of(0, n_clips=40, noise=0.05)
    still = noisy.x[noisy.y == CLASS_NAMES.index("still")].astype(float) / 255
    spread = still.std(axis=1, ddof=1)
    # Away from black and white, where clamping would narrow it; rounding to 8 bits adds 0.001 only.
    unclamped = (still.mean(1) > 0.3) & (still.mean(1) < 0.7)
    assert np.sqrt((spread[unclamped] ** 2).mean()) == pytest.approx(0.05, rel=0.1)


def test_split_gives_consecutive_views():
    clips = clips_of(0, n_clips=9)
    first, second = clips.split(4, 5)
    assert np.array_equal(np.concatenate([first.x, second.x]), clips.x)
    assert np.array_equal(np.concatenate([first.y, second.y]), clips.y)
    assert np.shares_memory(first.x, clips.x)
    assert second.frame_shape == clips.frame_shape


def test_split_refuses_sizes_that_do_not_sum_to_the_clips():
    with pytest.raises(BTCompressError, match=r"\(4, 4\) sum to 8, but there are 9 clips"):
        clips_of(0, n_clips=9).split(4, 4)


@pytest.mark.parametrize("change", [{"n_clips": 0}, {"height": 0}, {"width": 0}, {"n_frames": 0}, {"noise": -0.1}])
def test_sizes_below_one_and_negative_noise_are_refused(change):
    with pytest.raises(BTCompressError, match="at least"):
        clips_of(0, **change)


def test_a_missing_scikit_learn_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BTCompressError, match=r"pip install 'btcompress\[demo\]'"):
        clips_of(0, n_clips=1)
