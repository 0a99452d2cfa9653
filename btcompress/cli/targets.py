"""Where results go where no name was given."""

from __future__ import annotations

from pathlib import Path


def beside(path: Path, ending: str) -> Path:
    """The file beside another one that has its name, with this for its ending."""
    return path.with_name(f"{Path(path.name.removesuffix('.index.json')).stem.removesuffix('.bt')}{ending}")
