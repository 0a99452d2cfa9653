"""Options that several commands have, listed once: as the fields of a frozen value, of which typer sees each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def with_fields_as_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of those of its parameters that are frozen values.

    Other parameters stay as they are. Annotations of the fields are those that typer takes.
    """
    kinds = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command, eval_str=True)
    grouped = {name: kinds[name] for name in signature.parameters if is_dataclass(kinds[name])}

    @wraps(command)
    def expanded(**options: Any) -> None:  # noqa: ANN401 - whatever types the options have
        made = {
            name: kind(**{each.name: options.pop(each.name) for each in fields(kind)}) for name, kind in grouped.items()
        }
        command(**options, **made)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in grouped:
            parameters += _options(grouped[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    # Typer makes the options of a command from its signature.
    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


def _options(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(kind)
    ]
