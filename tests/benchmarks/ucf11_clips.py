"""The videos of UCF11 as clips in one array: a few frames of each, drawn at random, in one size.

Decoding takes long, so what is done is kept: the array lies memory-mapped beside its final name, with a journal of one
line a video, until all of it is there. Whoever begins again goes on behind the last video whose frames are as the
journal says. Nothing has its final name before it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from ucf11_videos import Found, Video

from btcompress import memory
from btcompress.checkpoint import claimed, replacing
from btcompress.checkpoint.source import digest
from btcompress.demo.video import Clips
from btcompress.errors import BTCompressError
from btcompress.files import open_regular

#: What a video may be at most, far beyond any of the data set: bytes of the file, frames, pixels of one.
_MOST_BYTES, _MOST_FRAMES, _MOST_PIXELS = 1 << 30, 100_000, 1 << 24
#: What videos may be stored as, by FFmpeg's names: none of these makes it open another file.
_FORMATS = "mpeg,mpegvideo,mpegts,avi"
_RESUME = "Give another folder, or the settings that it was begun with."


@dataclass(frozen=True, slots=True)
class ClipSize:
    """What is taken of a video.

    Attributes:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        n_frames: drawn from all frames of the video, each set of them as likely as any other, kept in their order.
        seed: of what is drawn.
    """

    height: int = 120
    width: int = 160
    n_frames: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.n_frames) < 1 or self.seed < 0:
            raise BTCompressError(f"{self} was asked for. Sizes are at least 1 and the seed at least 0.")

    @property
    def n_inputs(self) -> int:
        """Numbers in a frame."""
        return self.height * self.width * 3

    def generator(self, video: Video) -> np.random.Generator:
        """What draws from one video: the same whatever other videos there are."""
        name = hashlib.sha256(video.name.encode()).digest()
        return np.random.default_rng([self.seed, int.from_bytes(name[:16])])


class BrokenVideo(BTCompressError):  # noqa: N818
    """A video that no clip can be made of, and why."""


def draw_frames(video: Video, size: ClipSize) -> NDArray[np.uint8]:
    """The frames drawn from a video, red, green and blue, shape ``(n_frames, height * width * 3)``.

    All frames are decoded, one after another, and none but those drawn is kept: frame ``t``, counted from 0, takes the
    place of one of those with probability ``n_frames / (t + 1)`` (Vitter 1985, algorithm R). A frame becomes smaller
    by the mean of the pixels that fall into each pixel of it; from 320 x 240 to 160 x 120 these are 2 x 2. What cannot
    be decoded within a video is passed over, as players do.

    Raises:
        BrokenVideo: it cannot be opened, has too few frames, or is larger than any of the data set could be.
        BTCompressError: PyAV is missing.
    """
    generator = size.generator(video)
    kept: list[tuple[int, Any]] = []
    n_seen = 0
    for frame in _frames(video):
        if frame.width * frame.height > _MOST_PIXELS or n_seen >= _MOST_FRAMES:
            raise BrokenVideo(f"it has more than {_MOST_FRAMES} frames, or one of more than {_MOST_PIXELS} pixels")
        place = n_seen if n_seen < size.n_frames else int(generator.integers(n_seen + 1))
        if place < size.n_frames:
            kept[place : place + 1] = [(n_seen, frame)]
        n_seen += 1
    if n_seen < size.n_frames:
        raise BrokenVideo(f"it has {n_seen} frames, and {size.n_frames} are needed")
    frames = [_resized(frame, size) for _, frame in sorted(kept, key=lambda one: one[0])]
    return np.stack(frames).reshape(size.n_frames, size.n_inputs)


def _frames(video: Video) -> Iterator[Any]:
    """The frames of a video's first stream of pictures, as far as they can be decoded."""
    av = _pyav()
    with open_regular(video.path, "Give a folder of videos.") as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise BrokenVideo(f"it has more than {_MOST_BYTES} bytes")
        try:
            with av.open(file, options={"format_whitelist": _FORMATS}) as container:
                if not container.streams.video:
                    raise BrokenVideo("it has no pictures")
                for packet in container.demux(container.streams.video[0]):
                    with suppress(av.error.InvalidDataError):
                        yield from packet.decode()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise BrokenVideo(f"it cannot be decoded ({error})") from error


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise BTCompressError(
            "videos are decoded by PyAV, which is not installed. Run: pip install 'btcompress[video]'"
        ) from error
    return av


def _resized(frame: Any, size: ClipSize) -> NDArray[np.uint8]:
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    smaller = interpolate(pixels, (size.height, size.width), mode="area")
    return smaller[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class VideoClips:
    """Clips of videos, as they lie in a folder.

    Attributes:
        x: frames of every video, memory-mapped: shape ``(n_videos, n_frames, n_inputs)``; zeros of those left out.
        rows: the clips that there are: positions in ``x``, shape ``(n_clips,)``.
        y: their classes: positions in ``class_names``, shape ``(n_clips,)``.
        groups: the group of each, class and number; those of one group share a scene.
        class_names: the folders of the classes.
        frame_shape: height, width and colours.
        left_out: the videos that no clip could be made of, and why.
        sha256: of the array's file.
    """

    x: NDArray[np.uint8]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    groups: tuple[str, ...]
    class_names: tuple[str, ...]
    frame_shape: tuple[int, int, int]
    left_out: Mapping[str, str]
    sha256: str

    def part(self, which: NDArray[np.int64]) -> Clips:
        """Some of the clips, in memory.

        Raises:
            MemoryLimitError: they would not fit.
        """
        n_bytes = len(which) * math.prod(self.x.shape[1:])
        memory.require(n_bytes, f"{len(which)} clips", "Give fewer or smaller frames.")
        return Clips(self.x[self.rows[which]], self.y[which], self.class_names, self.frame_shape)


class ClipFiles:
    """The files of decoded clips in a folder."""

    def __init__(self, folder: Path) -> None:
        self.array, self.index = folder / "clips.npy", folder / "clips.json"
        self.unfinished, self.journal = folder / "clips.unfinished.npy", folder / "clips.unfinished.jsonl"


def decode(
    found: Found, folder: Path, size: ClipSize, on_video: Callable[[int, str | None], None] | None = None
) -> VideoClips:
    """Decode videos into a folder, or go on there, or open what is all there.

    Args:
        found: the videos.
        folder: where the clips are, or will be.
        size: what is taken of each.
        on_video: called after each video, with how many are done and why it was left out, or None.

    Raises:
        BTCompressError: the folder holds clips of other videos or settings, or damaged ones; no video can be decoded;
            PyAV is missing.
        OutputError: the folder cannot be written to, or another process is writing there.
    """
    files, asked = ClipFiles(folder), _asked(found, size)
    if not files.index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(files.index):
            _decode(found, files, size, asked, on_video)
    return _opened(files, found, size, asked)


def _asked(found: Found, size: ClipSize) -> dict[str, Any]:
    """What must agree for clips to be gone on with: settings and videos, these by names and bytes."""
    videos = [(video.name, video.path.stat().st_size) for video in found.videos]
    listing = hashlib.sha256(json.dumps(videos).encode()).hexdigest()
    return {**asdict(size), "videos": len(videos), "names and sizes of videos": listing}


def _decode(
    found: Found,
    files: ClipFiles,
    size: ClipSize,
    asked: dict[str, Any],
    on_video: Callable[[int, str | None], None] | None,
) -> None:
    shape = (len(found.videos), size.n_frames, size.n_inputs)
    done = _done(files, found, shape, asked)
    if not done:
        np.lib.format.open_memmap(files.unfinished, "w+", np.uint8, shape).flush()
        if hasattr(os, "posix_fallocate"):
            # Where a disk is full, a mapped file without blocks of its own would end the process.
            with files.unfinished.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        files.journal.write_text(json.dumps(asked) + "\n")
    x = np.lib.format.open_memmap(files.unfinished, "r+")
    with files.journal.open("a") as journal:
        for row in range(len(done), len(found.videos)):
            entry: dict[str, Any] = {"video": found.videos[row].name, "left_out": None}
            try:
                x[row] = draw_frames(found.videos[row], size)
            except BrokenVideo as error:
                x[row], entry["left_out"] = 0, str(error)
            done.append({**entry, "sha256": _row_digest(x[row])})
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
            if on_video is not None:
                on_video(len(done), entry["left_out"])
    x.flush()
    del x
    left_out = {entry["video"]: entry["left_out"] for entry in done if entry["left_out"] is not None}
    if len(left_out) == len(found.videos):
        name, why = next(iter(left_out.items()))
        raise BTCompressError(f"none of the {len(left_out)} videos can be decoded; {name}: {why}.")
    with files.unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    sha256 = digest([files.unfinished])
    files.unfinished.replace(files.array)
    # The index is what makes the array count, so it comes last.
    with replacing(files.index) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "left_out": left_out, "sha256": sha256}, indent=1) + "\n")
    files.journal.unlink()


def _done(files: ClipFiles, found: Found, shape: tuple[int, ...], asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The journal's lines of an earlier run, as far as the array agrees with them; none where there was no run."""
    if files.array.exists() and not files.unfinished.exists():
        # Killed between the two last names: the journal is still there, and tells whether this array is it.
        files.array.replace(files.unfinished)
    lines = files.journal.read_text().splitlines() if files.journal.exists() else []
    began, *entries = [line for line in map(_line, lines) if line is not None] or [None]
    if began is None:
        return []
    _check_same(files.journal, began, asked)
    try:
        x = np.lib.format.open_memmap(files.unfinished, "r")
    except (OSError, ValueError):
        return []
    if (x.shape, x.dtype) != (shape, np.uint8):
        return []
    done: list[dict[str, Any]] = []
    for entry, video, row in zip(entries, found.videos, x, strict=False):
        same = (entry.get("video"), entry.get("sha256")) == (video.name, _row_digest(row))
        if not same or "left_out" not in entry:
            break
        done.append(entry)
    # Lines that do not hold are written again, behind those that do.
    with replacing(files.journal) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (asked, *done)))
    return done


def _line(text: str) -> dict[str, Any] | None:
    """A line of the journal; None for one that was cut off."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _row_digest(row: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(row)).hexdigest()


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings, and name one."""
    for name in (*now, *before):
        if before.get(name) != now.get(name):
            raise BTCompressError(
                f"{path} was begun with {name} {before.get(name)}, and now it is {now.get(name)}. {_RESUME}"
            )


def _opened(files: ClipFiles, found: Found, size: ClipSize, asked: dict[str, Any]) -> VideoClips:
    """Clips that are all there, compared with what was written."""
    about = _line(files.index.read_text())
    if about is None or not {"asked", "left_out", "sha256"} <= about.keys():
        raise BTCompressError(f"{files.index} is damaged. Remove it, and decode the videos again.")
    _check_same(files.index, about["asked"], asked)
    if not files.array.is_file() or digest([files.array]) != about["sha256"]:
        raise BTCompressError(f"{files.array} is not as it was written. Remove {files.index}, and decode again.")
    left_out = about["left_out"]
    rows = [row for row, video in enumerate(found.videos) if video.name not in left_out]
    kept = [found.videos[row] for row in rows]
    return VideoClips(
        np.load(files.array, mmap_mode="r"),
        np.array(rows, np.int64),
        np.array([found.class_names.index(video.class_name) for video in kept], np.int64),
        tuple(f"{video.class_name}/{video.group}" for video in kept),
        found.class_names,
        (size.height, size.width, 3),
        left_out,
        about["sha256"],
    )
