"""Environment variables that give some options their defaults: which, and who said what."""

from __future__ import annotations

from enum import Enum
from typing import Literal, Protocol


class Context(Protocol):
    """What is asked of a command's context: of typer's, or of that of the click which it brings."""

    def get_parameter_source(self, name: str, /) -> Enum | None:
        """Where an option has its value from."""


def variable(name: str) -> str:
    """The environment variable of the option that the command has as this parameter."""
    return f"BTCOMPRESS_{name.upper()}"


def is_from(context: Context, name: str, source: Literal["commandline", "environment"]) -> bool:
    """Whether an option has its value from there; not where the command has no such option."""
    found = context.get_parameter_source(name)
    return found is not None and found.name.lower() == source


def said_by(context: Context, name: str) -> str:
    """What an error calls the option: itself, or the variable that it has its value from."""
    return variable(name) if is_from(context, name, "environment") else f"--{name.replace('_', '-')}"
