"""Environment variables that give some options their defaults: which, and who said what."""

from __future__ import annotations

from typing import Literal

import typer


def variable(name: str) -> str:
    """The environment variable of the option that the command has as this parameter."""
    return f"BTCOMPRESS_{name.upper()}"


def is_from(context: typer.Context, name: str, source: Literal["commandline", "environment"]) -> bool:
    """Whether an option has its value from there; not where the command has no such option."""
    found = context.get_parameter_source(name)
    return found is not None and found.name.lower() == source


def said_by(context: typer.Context, name: str) -> str:
    """What an error calls the option: itself, or the variable that it has its value from."""
    return variable(name) if is_from(context, name, "environment") else f"--{name.replace('_', '-')}"
