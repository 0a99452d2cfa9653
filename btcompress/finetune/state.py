"""The last complete state of a training, in one file that is whole or absent."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from btcompress.checkpoint import check_target, replacing
from btcompress.errors import BTCompressError, OutputError


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where a training keeps its state beside its result, until the result is written.

    Attributes:
        output: the result file.
        identity: settings and inputs; a state of other ones is never gone on with.
    """

    output: Path
    identity: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of the state."""
        return self.output.with_name(f"{self.output.name}.state")

    @property
    def metrics(self) -> Path:
        """The metrics file: one JSON object a line, one line an epoch."""
        return self.output.with_name(f"{self.output.name.removesuffix('.safetensors')}.metrics.jsonl")

    @property
    def _file(self) -> Path:
        return self.folder / "state.pt"

    def exists(self) -> bool:
        """Whether an interrupted training left its state."""
        return self._file.exists()

    def check_absent(self, *, force: bool, inputs: Iterable[Path] = ()) -> None:
        """Refuse to start over an interrupted training, or to write over the metrics of a complete one.

        Args:
            force: start over all the same.
            inputs: files that must survive whatever ``force`` says.

        Raises:
            OutputError: there is a state or a metrics file and ``force`` is not given, or metrics cannot be written.
        """
        if self.exists() and not force:
            raise OutputError(
                f"an interrupted training of {self.output} lies in {self.folder}. Go on with --resume, or start over "
                "with --force."
            )
        check_target(self.metrics, force=force, inputs=inputs)

    def save(self, state: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        """Write the metrics once there are any, then the state, each whole or not at all.

        Raises:
            OutputError: the operating system refused to write.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made ({error.strerror}).") from error
        if rows:
            with replacing(self.metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with replacing(self._file) as temporary:
            torch.save({"identity": dict(self.identity), "rows": rows, **state}, temporary)

    def load(self) -> dict[str, Any]:
        """The last complete state; nothing in it is ever run.

        Raises:
            BTCompressError: there is none, it is damaged, or it is of another training.
        """
        if not self.exists():
            raise BTCompressError(f"there is nothing to resume: {self._file} does not exist. Leave out --resume.")
        try:
            state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise BTCompressError(f"{self._file} is damaged. Start over with --force.") from error
        before = state["identity"]
        for name, value in self.identity.items():
            if before.get(name) != value:
                raise BTCompressError(
                    f"the interrupted training had {name} {before.get(name)}, and now it is {value}. Resume with what "
                    "it was started with, or start over with --force."
                )
        return state

    def remove(self) -> None:
        """Remove the state, once the result is written; the metrics stay."""
        shutil.rmtree(self.folder, ignore_errors=True)
