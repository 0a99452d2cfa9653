"""Where the videos of UCF11 lie, as its archive is distributed, and which class and scene each of them is of.

    UCF11_updated_mpg/<class>/v_<name>_<GG>/v_<name>_<GG>_<CC>.mpg

There are 11 classes of 25 groups each, ``GG``, and 1,600 videos in all. Those of one group share a scene: the same
subject, background and viewpoint. Beside the groups of a class lies a folder ``Annotation``, which nothing here needs.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from btcompress.errors import BTCompressError

#: The folders of the classes, in the order of their labels.
CLASSES = (
    "basketball",
    "biking",
    "diving",
    "golf_swing",
    "horse_riding",
    "soccer_juggling",
    "swing",
    "tennis_swing",
    "trampoline_jumping",
    "volleyball_spiking",
    "walking",
)
#: What the archive holds.
N_VIDEOS = 1600
#: The folder beside a class's groups.
_ANNOTATION = "Annotation"
_GROUP = re.compile(r"v_.+_[0-9]{2}")
#: Entries of one folder at most; the largest of the data set has some tens.
_MOST_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Video:
    """One video.

    Attributes:
        path: the file.
        class_name: the folder of its class.
        group: the folder of its group, whose videos share a scene.
    """

    path: Path
    class_name: str
    group: str

    @property
    def name(self) -> str:
        """Where it lies in the data set."""
        return f"{self.class_name}/{self.group}/{self.path.name}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds.

    Attributes:
        videos: sorted by class, group and name.
        class_names: of the classes that have videos; positions are labels.
        strays: what lies among them and is no part of the data set, by its place in the folder.
    """

    videos: tuple[Video, ...]
    class_names: tuple[str, ...]
    strays: tuple[str, ...]


def find_videos(folder: Path) -> Found:
    """The videos in a folder with one folder for each class.

    Raises:
        BTCompressError: the folder cannot be read, or holds no video where the data set has them.
    """
    videos: list[Video] = []
    strays: list[str] = []
    for of_class in _entries(folder):
        if of_class.name not in CLASSES or not of_class.is_dir():
            strays.append(of_class.name)
            continue
        for of_group in _entries(of_class):
            if of_group.name == _ANNOTATION:
                continue
            if not _GROUP.fullmatch(of_group.name) or not of_group.is_dir():
                strays.append(f"{of_class.name}/{of_group.name}")
                continue
            pattern = re.compile(rf"{re.escape(of_group.name)}_[0-9]{{2}}\.mpg")
            for path in _entries(of_group):
                video = Video(path, of_class.name, of_group.name)
                fits = pattern.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode)
                videos.append(video) if fits else strays.append(video.name)
    if not videos:
        raise BTCompressError(
            f"{folder} holds no video at CLASS/v_NAME_GG/v_NAME_GG_CC.mpg, with CLASS one of {', '.join(CLASSES)}. "
            "Give the folder UCF11_updated_mpg that the archive of the data set unpacks to."
        )
    present = {video.class_name for video in videos}
    return Found(tuple(videos), tuple(name for name in CLASSES if name in present), tuple(strays))


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BTCompressError(
            f"{folder} cannot be read: {error.strerror or error}. Give a folder of videos."
        ) from error
    if len(entries) > _MOST_ENTRIES:
        raise BTCompressError(
            f"{folder} holds {len(entries)} entries, more than {_MOST_ENTRIES}. Give UCF11_updated_mpg itself."
        )
    return entries
