"""The experiment on UCF11, on a handful of small videos, drawn and encoded here in the layout of the data set."""

import importlib
import itertools
import json
import math
import random
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from btcompress.errors import BTCompressError
from interruptions import Interrupted, interrupt_epochs

SCRIPTS = Path(__file__).parent / "benchmarks"
HEIGHT, WIDTH, N_SHOWN = 24, 32, 9
#: Folders of classes, what their videos are called, and the colour that tells them.
CLASSES = {"biking": ("biking", 0), "swing": ("swing", 1), "walking": ("walk_dog", 2)}
#: What the script is told so that it takes seconds: 6 x 8 x 3 inputs, 2 hidden units.
SMALL = (
    *("--height", "6", "--width", "8", "--n-frames", "3", "--hidden-size", "2", "--in-modes", "12", "12"),
    *("--out-modes", "4", "2", "--ranks", "1,1", "--target-ratios", "20", "--batch-size", "4"),
    *("--epochs", "3", "--tuning-epochs", "2", "--dense-rates", "0.01", "0.03", "--dense-decays", "0"),
    *("--rates", "0.03", "--seeds", "1"),
)


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


def module(name):
    return importlib.import_module(name)


def encode(path, frames):
    """Write frames, shape (n, height, width, 3), as a program stream of MPEG-1 video, each of them on its own."""
    av = pytest.importorskip("av")
    with av.open(path, "w", format="mpeg") as container:
        stream = container.add_stream("mpeg1video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = frames.shape[2], frames.shape[1], "yuv420p", 1
        stream.options = {"qscale": "2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def steps(colour=None):
    """Frames of one grey each, 25 more than that of the frame before; of a colour, where one is given."""
    frames = np.broadcast_to(np.arange(N_SHOWN, dtype=np.uint8)[:, None, None, None] * 25, (N_SHOWN, HEIGHT, WIDTH, 3))
    if colour is None:
        return frames.copy()
    others = [other for other in range(3) if other != colour]
    frames = frames.copy()
    frames[..., others] = 0
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three classes of three groups of two videos, one of them cut off; Annotation, and what does not belong there."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (called, colour) in CLASSES.items():
        for group in ("01", "02", "25"):
            place = folder / name / f"v_{called}_{group}"
            place.mkdir(parents=True)
            for clip in ("01", "02"):
                encode(place / f"v_{called}_{group}_{clip}.mpg", steps(colour))
        annotation = folder / name / "Annotation"
        annotation.mkdir()
        (annotation / f"v_{called}_01_01.xgtf").write_text("<viper/>")
    cut = folder / "swing" / "v_swing_02" / "v_swing_02_01.mpg"
    cut.write_bytes(cut.read_bytes()[:100])
    (folder / "Thumbs.db").write_bytes(b"stray")
    (folder / "biking" / "v_biking_02" / "notes.txt").write_text("stray")
    return folder


def fake_videos(folder, n_clips=2):
    """Files of the right names in the right places, which nobody could decode."""
    for name, (called, _) in CLASSES.items():
        for group in ("01", "02", "03"):
            place = folder / name / f"v_{called}_{group}"
            place.mkdir(parents=True)
            for clip in range(n_clips):
                (place / f"v_{called}_{group}_{clip + 1:02}.mpg").write_bytes(b"")
    return folder


def fake_frames(video, size):
    generator = size.generator(video)
    return generator.integers(1, 256, (size.n_frames, size.n_inputs), np.uint8)


def video_of(path):
    return module("ucf11_videos").Video(path, "swing", "v_swing_01")


# Where videos lie


def test_videos_are_found_with_class_and_group_and_all_else_is_named(tmp_path):
    folder = fake_videos(tmp_path)
    (folder / "biking" / "Annotation").mkdir()
    (folder / "biking" / "Annotation" / "v_biking_01_01.mpg").write_bytes(b"")
    (folder / "biking" / "v_biking_01" / "v_swing_01_01.mpg").write_bytes(b"")
    (folder / "biking" / "v_biking_01" / "v_biking_01_09.mpg").symlink_to("/dev/zero")
    (folder / "biking" / "v_biking_1").mkdir()
    (folder / "cooking").mkdir()
    (folder / "Thumbs.db").write_bytes(b"")
    found = module("ucf11_videos").find_videos(folder)
    assert found.class_names == ("biking", "swing", "walking")
    assert len(found.videos) == 3 * 3 * 2
    assert found.videos[-1].name == "walking/v_walk_dog_03/v_walk_dog_03_02.mpg"
    assert (found.videos[-1].class_name, found.videos[-1].group) == ("walking", "v_walk_dog_03")
    assert found.strays == (
        "Thumbs.db",
        "biking/v_biking_01/v_biking_01_09.mpg",
        "biking/v_biking_01/v_swing_01_01.mpg",
        "biking/v_biking_1",
        "cooking",
    )


def test_a_folder_without_videos_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BTCompressError, match="Give"):
            module("ucf11_videos").find_videos(folder)


# Frames


def test_frames_are_drawn_in_their_order_none_twice_and_each_of_them_as_often(tmp_path, monkeypatch):
    encode(tmp_path / "steps.mpg", steps())
    clips, video = module("ucf11_clips"), video_of(tmp_path / "steps.mpg")
    decoded = list(clips._frames(video))
    monkeypatch.setattr(clips, "_frames", lambda _: iter(decoded))
    counts, sets = Counter(), set()
    for seed in range(120):
        frames = clips.draw_frames(video, clips.ClipSize(2, 2, 3, seed))
        drawn = np.rint(frames.mean(1) / 25).astype(int).tolist()
        assert drawn == sorted(set(drawn))
        counts.update(drawn)
        sets.add(tuple(drawn))
    assert counts.total() == 120 * 3
    # Five standard deviations of a binomial count of 120 draws with a chance of one in three, 40.
    assert all(abs(counts[frame] - 40) < 5 * math.sqrt(120 * 2 / 9) for frame in range(N_SHOWN))
    assert len(sets) > 40


def test_a_frame_becomes_smaller_by_the_mean_of_its_pixels(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "noise.mpg"
    encode(path, np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8))
    clips = module("ucf11_clips")
    frames = clips.draw_frames(video_of(path), clips.ClipSize(HEIGHT // 2, WIDTH // 2, 1))
    with av.open(path) as container:
        (whole,) = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    plain = whole.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    assert np.array_equal(frames.reshape(plain.shape), np.rint(plain))
    assert plain.std() > 20


#: What FFmpeg would make pictures of, by reading other files for some of these, and no video of the data set is.
FOREIGN = {
    "empty": b"",
    "text": b"no video at all",
    "list of files": b"ffconcat version 1.0\nfile good.mpg\n",
    "playlist": b"#EXTM3U\n#EXTINF:1,\ngood.mpg\n",
    "other format": b"YUV4MPEG2 W16 H16 F25:1 C420\nFRAME\n" + bytes(16 * 16 * 3 // 2),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_is_of_another_format_is_broken(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "good.mpg", steps())
    (tmp_path / "bad.mpg").write_bytes(content)
    clips = module("ucf11_clips")
    with pytest.raises(clips.BrokenVideo, match="decoded"):
        clips.draw_frames(video_of(tmp_path / "bad.mpg"), clips.ClipSize(2, 2, 1))


def test_without_pyav_the_script_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    folder = fake_videos(tmp_path / "videos")
    assert module("ucf11").main([str(folder), str(tmp_path / "out"), *SMALL]) == 2
    assert capsys.readouterr().err.endswith("is not installed. Run: pip install 'btcompress[video]'\n")


@pytest.mark.parametrize("limit", ["_MOST_BYTES", "_MOST_FRAMES", "_MOST_PIXELS"])
def test_a_video_beyond_a_limit_is_broken(tmp_path, monkeypatch, limit):
    encode(tmp_path / "steps.mpg", steps())
    clips = module("ucf11_clips")
    clips.draw_frames(video_of(tmp_path / "steps.mpg"), clips.ClipSize(2, 2, 1))
    monkeypatch.setattr(clips, limit, 5)
    with pytest.raises(clips.BrokenVideo, match="more than"):
        clips.draw_frames(video_of(tmp_path / "steps.mpg"), clips.ClipSize(2, 2, 1))


# Clips in a folder


def interrupt_after(n_videos):
    def on_video(n_done, _):
        if n_done == n_videos:
            raise Interrupted

    return on_video


def damage_row(folder):
    x = np.load(folder / "clips.unfinished.npy", mmap_mode="r+")
    x[3] = 0
    x.flush()


def cut_journal(folder):
    path = folder / "clips.unfinished.jsonl"
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize(("harm", "n_kept"), [(None, 7), (damage_row, 3), (cut_journal, 6)])
def test_decoding_goes_on_where_it_was_interrupted_and_ends_in_the_same_bytes(tmp_path, monkeypatch, harm, n_kept):
    clips, folder = module("ucf11_clips"), tmp_path / "out"
    found = module("ucf11_videos").find_videos(fake_videos(tmp_path / "videos"))
    decoded = []

    def draw(video, size):
        decoded.append(video.name)
        if video.name.endswith("biking_02_01.mpg"):
            raise clips.BrokenVideo("it has 1 frames")
        return fake_frames(video, size)

    monkeypatch.setattr(clips, "draw_frames", draw)
    size = clips.ClipSize(4, 5, 2, seed=3)
    whole = clips.decode(found, tmp_path / "whole", size)
    decoded.clear()
    with pytest.raises(Interrupted):
        clips.decode(found, folder, size, interrupt_after(7))
    assert not (folder / "clips.npy").exists()
    assert not (folder / "clips.json").exists()
    assert len(decoded) == 7
    if harm is not None:
        harm(folder)
    decoded.clear()
    again = clips.decode(found, folder, size)
    assert decoded == [video.name for video in found.videos[n_kept:]]
    assert again.sha256 == whole.sha256
    assert sorted(path.name for path in folder.iterdir()) == ["clips.json", "clips.npy"]
    assert again.left_out == {"biking/v_biking_02/v_biking_02_01.mpg": "it has 1 frames"}
    assert len(again.y) == len(again.groups) == len(found.videos) - 1
    row = again.groups.index("swing/v_swing_01")
    video = next(video for video in found.videos if video.group == "v_swing_01")
    part = again.part(np.array([row]))
    assert np.array_equal(part.x[0], fake_frames(video, size))
    assert part.class_names[part.y[0]] == "swing"
    decoded.clear()
    assert clips.decode(found, folder, size).sha256 == whole.sha256
    assert decoded == []


def test_clips_of_other_settings_or_damaged_ones_are_refused(tmp_path, monkeypatch):
    clips = module("ucf11_clips")
    monkeypatch.setattr(clips, "draw_frames", fake_frames)
    found = module("ucf11_videos").find_videos(fake_videos(tmp_path / "videos"))
    with pytest.raises(Interrupted):
        clips.decode(found, tmp_path / "out", clips.ClipSize(4, 5, 2), interrupt_after(2))
    with pytest.raises(BTCompressError, match="was begun with width 5, and now it is 6"):
        clips.decode(found, tmp_path / "out", clips.ClipSize(4, 6, 2))
    clips.decode(found, tmp_path / "out", clips.ClipSize(4, 5, 2))
    with pytest.raises(BTCompressError, match="was begun with seed 0, and now it is 1"):
        clips.decode(found, tmp_path / "out", clips.ClipSize(4, 5, 2, seed=1))
    path = tmp_path / "out" / "clips.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BTCompressError, match="not as it was written"):
        clips.decode(found, tmp_path / "out", clips.ClipSize(4, 5, 2))


# Splits and errors


def grouped(n_groups=25):
    """Labels and groups of three classes, with 4 to 6 clips in each group."""
    sizes = random.Random(0)
    named = [(label, f"{label}/{group:02}") for label in range(3) for group in range(n_groups)]
    clips = [one for one in named for _ in range(sizes.randint(4, 6))]
    return np.array([label for label, _ in clips]), tuple(group for _, group in clips)


@pytest.mark.parametrize("name", ["groups", "random", "authors"])
def test_a_split_has_every_clip_once_and_another_seed_another_split(name):
    y, groups = grouped()
    split = module("ucf11_splits").split
    first, again, other = (split(name, y, groups, seed) for seed in (0, 0, 1))
    parts = (first.train, first.test) if name == "authors" else (first.train, first.held, first.test)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)
    assert len(first.test) == pytest.approx(0.2 * len(y), rel=0.1)


def test_no_group_is_on_two_sides_of_the_split_by_groups_and_every_class_has_a_fifth_of_its_own():
    y, groups = grouped()
    found = module("ucf11_splits").split("groups", y, groups, 4)
    sides = [{groups[row] for row in rows} for rows in (found.train, found.held, found.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 3 * 25
    for label in range(3):
        assert [sum(group.startswith(f"{label}/") for group in side) for side in sides] == [16, 4, 5]
    shared = module("ucf11_splits").split("random", y, groups, 4)
    assert {groups[row] for row in shared.train} & {groups[row] for row in shared.test}


def test_the_authors_split_tests_on_the_clips_that_choose_the_epoch_and_on_those_of_the_random_one():
    y, groups = grouped()
    split = module("ucf11_splits").split
    theirs, ours = split("authors", y, groups, 2), split("random", y, groups, 2)
    assert np.array_equal(theirs.held, theirs.test)
    assert np.array_equal(theirs.test, ours.test)
    assert np.array_equal(theirs.train, np.sort(np.concatenate([ours.train, ours.held])))


def test_too_few_groups_are_refused():
    y, groups = grouped(n_groups=2)
    with pytest.raises(BTCompressError, match="has 2 groups, 0/00, 0/01, and at least 3"):
        module("ucf11_splits").split("groups", y, groups, 0)


def test_the_standard_error_counts_groups_and_not_clips():
    error = module("ucf11_table").standard_error
    generator = np.random.default_rng(0)
    right, groups = generator.random(40) < 0.7, [f"{row // 3}" for row in range(40)]
    squares = 0.0
    for group in set(groups):
        own = [right[row] for row in range(40) if groups[row] == group]
        squares += (sum(own) - right.mean() * len(own)) ** 2
    n_groups = len(set(groups))
    assert error(right, groups) == pytest.approx(math.sqrt(n_groups / (n_groups - 1) * squares) / 40)
    share = right.mean()
    alone = error(right, [str(row) for row in range(40)])
    assert alone == pytest.approx(math.sqrt(share * (1 - share) / 39))
    fourfold = error(np.repeat(right, 4), [str(row // 4) for row in range(160)])
    assert fourfold == pytest.approx(alone)


# All of it


def outcome(**changes):
    values = {"split": "groups", "seed": 0, "model": "dense", "weights": 3392, "weights_ratio": 17388.7}
    values |= {"model_ratio": 219.4, "learning_rate": 1e-3, "held": 0.6, "test": 0.5, "test_error": 0.02, "epochs": 9}
    return module("ucf11_table").Outcome(**values | changes)


def test_the_table_has_means_and_standard_errors_over_seeds_and_the_papers_figures_where_they_may_stand():
    table = module("ucf11_table").table
    scratch = "from scratch, N=2 R=4"
    rows = [outcome(), outcome(seed=1, test=0.6), outcome(model=scratch), outcome(split="authors", model=scratch)]
    lines = table(rows, of_paper=True).splitlines()
    assert sum(line.startswith("**") for line in lines) == 2
    assert "| dense | 3,392 | 17,389 | 219 | 0.001 | 55.0 % | 5.0 | 0: 50.0 %, 1: 60.0 % | 69.7 % |" in lines
    alone = f"| {scratch} | 3,392 | 17,389 | 219 | 0.001 | 50.0 % | 2.0 | 0: 50.0 % | 85.3 % |"
    assert lines.count(alone) == 2
    assert "85.3" not in table(rows, of_paper=False)


@pytest.fixture(scope="module")
def told(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    assert module("ucf11").main([str(videos), str(folder), *SMALL, "--splits", "groups"]) == 0
    return folder


def outcomes(folder):
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("*/*.json")}


def test_the_script_trains_every_model_and_writes_the_table(told):
    text = (told / "table.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    names = [row[0].removeprefix("| ") for row in rows]
    forms = ("N=1 R=1", "planner, 20 times fewer")
    models = ["dense", *(f"{how}, {form}" for form in forms for how in ("factorized", "fine-tuned", "from scratch"))]
    assert names == ["model", *models]
    weights = {name: row[1] for name, row in zip(names, rows, strict=True)}
    assert weights["dense"] == f"{6 * 8 * 3 * 8:,}"
    assert weights["fine-tuned, N=1 R=1"] == str(1 + 12 * 4 + 12 * 2)
    assert all(int(count) <= 6 * 8 * 3 * 8 / 20 for count in weights["from scratch, " + forms[1]].split(", "))
    assert "85.3" not in text
    found = outcomes(told)
    # Rates are searched on seed 0, and what was found there is used with the seed that was asked for.
    held = {rate: found[f"groups-0/dense-{rate}-0.json"]["held"] for rate in ("0.01", "0.03")}
    best = max(held, key=held.get)
    assert [name for name in found if name.startswith("groups-1/dense")] == [f"groups-1/dense-{best}-0.json"]
    assert {name.split("/")[0] for name in found} == {"groups-0", "groups-1"}
    assert not list(told.glob("**/*.npz"))
    assert not list(told.glob("**/*.state"))


def test_rates_are_searched_on_seed_0_and_those_of_the_authors_split_where_its_test_clips_choose_nothing(
    tmp_path, monkeypatch
):
    script, asked = module("ucf11"), []
    best = {"groups": 0.01, "random": 0.03, "authors": 0.02}

    def trained(kind):
        def train(run, *settings):
            rate = settings[0] if kind == "dense" else settings[-1]
            asked.append((run.split, run.seed, kind, rate))
            return outcome(split=run.split, seed=run.seed, model=kind, held=1 - abs(rate - best[run.split]))

        return train

    monkeypatch.setattr(script.Run, "dense", trained("dense"))
    monkeypatch.setattr(script.Run, "factorized", lambda *_: outcome(model="factorized"))
    monkeypatch.setattr(script.Run, "tuned", trained("tuned"))
    rates = (0.01, 0.02, 0.03)
    settings = script.Settings(ranks=("2,4",), dense_rates=rates, dense_decays=(0.0,), rates=rates)
    clips = types.SimpleNamespace(sha256="", frame_shape=(120, 160, 3))
    study = script.Study(tmp_path, clips, settings, lambda *_: None)
    found = list(study.outcomes(("groups", "authors"), (5, 6)))
    assert len(found) == 2 * 2 * (1 + 2 * 3)
    for split, seed in itertools.product(("groups", "authors"), (5, 6)):
        chosen = {(kind, rate) for *where, kind, rate in asked if where == [split, seed]}
        rate = {"groups": 0.01, "authors": 0.03}[split]
        assert chosen == {("dense", rate), ("tuned", rate)}
    assert {(split, seed) for split, seed, _, rate in asked if rate == 0.02} == {("groups", 0), ("random", 0)}


def test_a_broken_video_is_named_and_left_out_and_a_stray_file_is_named(told, videos, capsys):
    assert module("ucf11").main([str(videos), str(told), *SMALL, "--decode-only"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "18 videos of 3 classes, 17 of them as clips" in lines
    assert any(line.startswith("the data set has 1600 videos of 11 classes") for line in lines)
    assert "left out: swing/v_swing_02/v_swing_02_01.mpg: it has 1 frames, and 3 are needed" in lines
    assert "not looked at: Thumbs.db" in lines
    assert "not looked at: biking/v_biking_02/notes.txt" in lines
    assert not any("Annotation" in line for line in lines)


def test_an_interrupted_run_ends_in_the_same_table_and_the_same_models(told, videos, tmp_path, monkeypatch):
    folder, script = tmp_path / "out", module("ucf11")
    arguments = [str(videos), str(folder), *SMALL, "--splits", "groups"]
    seen = interrupt_epochs(monkeypatch, 2, 12, 20)
    for _ in range(3):
        with pytest.raises(Interrupted):
            script.main(arguments)
    assert script.main(arguments) == 0
    # Each interruption costs the epoch that it came in, and no other.
    assert len(seen) == sum(one["epochs"] for one in outcomes(told).values()) + 3
    assert outcomes(folder) == outcomes(told)
    for path in folder.glob("*/*.safetensors"):
        assert path.read_bytes() == (told / path.relative_to(folder)).read_bytes()
    assert (told / "table.md").read_bytes() == (folder / "table.md").read_bytes()
    seen.clear()
    assert script.main(arguments) == 0
    assert not seen


def test_a_folder_begun_with_other_settings_is_refused(told, videos, capsys):
    assert module("ucf11").main([str(videos), str(told), *SMALL, "--patience", "3"]) == 2
    assert "was begun with patience 8, and now it is 3" in capsys.readouterr().err
