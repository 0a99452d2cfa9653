"""Pictures in a terminal, two pixels to a character."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from PIL.Image import Image

    from btcompress.demo.video import Clips

#: Columns that a frame of a clip takes, and any picture at most.
_FRAME_COLUMNS, _MOST_COLUMNS = 12, 120


def show_clips(console: Console, clips: Clips) -> None:
    """Frames side by side; nothing where they cannot be shown, as there is a file."""
    if not _takes_pictures(console):
        return
    from PIL import Image

    height, width, _ = clips.frame_shape
    n_frames = clips.x.shape[1]
    columns = max(min(_FRAME_COLUMNS, console.width // n_frames - 1), 1)
    rows = 2 * max(1, round(columns * height / width / 2))
    for frames, label in zip(clips.x, clips.y, strict=True):
        console.print(Text(clips.class_names[label]))
        small = [Image.fromarray(frame.reshape(clips.frame_shape)).resize((columns, rows)) for frame in frames]
        strip = Image.new("RGB", ((columns + 1) * n_frames, rows))
        for place, frame in enumerate(small):
            strip.paste(frame, (place * (columns + 1), 0))
        _show(console, strip)


def show_picture(console: Console, path: Path) -> None:
    """A picture that was written, as wide as the terminal; nothing where it cannot be shown."""
    if not _takes_pictures(console):
        return
    from PIL import Image

    with Image.open(path) as picture:
        columns = min(console.width, _MOST_COLUMNS, picture.width)
        rows = 2 * max(1, round(columns * picture.height / picture.width / 2))
        _show(console, picture.convert("RGB").resize((columns, rows)))


def _takes_pictures(console: Console) -> bool:
    """Whether it is a terminal that has half blocks, and what draws with them is installed."""
    if not console.is_terminal or console.options.ascii_only:
        return False
    return all(find_spec(package) for package in ("PIL", "rich_pixels"))


def _show(console: Console, picture: Image) -> None:
    from rich_pixels import Pixels

    console.print(Pixels.from_image(picture))
