"""The model card: what ``btcompress report`` says of a network, as a section of the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from btcompress.hub.weights import NAME, Network, Part
from btcompress.reporting import report
from btcompress.reporting.markdown import escaped, markdown, shapes_table
from btcompress.text import shortened

#: What the section stands between: all between these is written anew at each save, and nothing else of a card.
BEGIN, END = "<!-- btcompress: begin -->", "<!-- btcompress: end -->"

#: Characters of a step's record that are shown; the file holds all of it.
_MOST_CHARACTERS = 2000


def section(network: Network, weights: Path) -> str:
    """The section of a network that has been written.

    Args:
        network: what was written.
        weights: the file of its weights.
    """
    blocks = ["## Compression", *_blocks(network, weights)]
    return "\n\n".join([BEGIN, *blocks, END])


def with_section(text: str, own: str) -> str:
    """A card with this section: in the place of the one that it has, or at its end."""
    begin, end = text.find(BEGIN), text.find(END)
    if 0 <= begin < end:
        return text[:begin] + own + text[end + len(END) :]
    return f"{text.rstrip()}\n\n{own}\n"


def _blocks(network: Network, weights: Path) -> Iterator[str]:
    yield f"`{network.kind}.from_pretrained` loads it, with the class's own code, where btcompress is installed."
    if not network.shapes and not network.parts:
        yield "No layer of this network is in block-term form."
    for part in network.parts:
        yield from _of_part(part, weights.stat().st_size if network.result is part.result else None)
    known = {key for part in network.parts for key in part.keys}
    if rest := {key: shape for key, shape in network.shapes.items() if key not in known}:
        yield (
            "These matrices are block terms. There are no dense ones on record that they were made from, so no errors "
            "are known."
        )
        yield shapes_table(rest)
    if network.result is not None:
        yield f"`{NAME}` is a result of btcompress: `btcompress report {NAME}` shows this, and more."


def _of_part(part: Part, n_bytes: int | None) -> Iterator[str]:
    source = part.result.source
    where = f"{escaped(part.name)} of this network" if part.name else "This network"
    yield f"{where} was made from {escaped(source.name)} ({source.n_params:,} parameters)."
    yield markdown(report(part.result, bytes_after=n_bytes), advice=False)
    # No step may hold what ends the section.
    steps = [json.dumps(step, sort_keys=True).replace("<", "\\u003c") for step in part.result.history]
    steps = [shortened(step, _MOST_CHARACTERS) for step in steps]
    if steps:
        yield "\n".join(["How it was made:", "", "```json", *steps, "```"])
