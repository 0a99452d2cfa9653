"""A report as files: one page of HTML, Markdown, or both; or one of them on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    from btcompress.calibration import SampleInputs
    from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
    from btcompress.results import CompressionReport

#: The name that stands for standard output.
_STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Documents:
    """Where a report is to be written.

    Attributes:
        html: the page; None for no page, ``-`` for standard output.
        markdown: likewise, as Markdown.
        force: replace files that exist.
    """

    html: Path | None
    markdown: Path | None
    force: bool

    def check(self, inputs: Iterable[Path], given: Iterable[SampleInputs] = (), *, json: bool) -> None:
        """Refuse, before long work, what cannot be written or made.

        Args:
            inputs: files that are read.
            given: sample inputs that are.
            json: whether standard output gets the report as JSON.

        Raises:
            BTCompressError: standard output is to get two things, or a package is missing.
            OutputError: a file cannot be written, exists, or is one that is read.
        """
        from btcompress.checkpoint import check_target

        targets = {"--html": self.html, "--markdown": self.markdown}
        on_stdout = [*(option for option, path in targets.items() if path == _STDOUT), *["--json"] * json]
        if len(on_stdout) > 1 and on_stdout != ["--json"]:
            raise BTCompressError(
                f"{' and '.join(on_stdout)} cannot share standard output. Give a file to one of them."
            )
        files = [path for path in targets.values() if path not in (None, _STDOUT)]
        if len({path.resolve() for path in files if path is not None}) < len(files):
            raise BTCompressError(f"--html and --markdown would both write {files[0]}. Give each a file of its own.")
        if files:
            read = [*inputs, *_files_of(given)]
            for path in files:
                if path is not None:
                    check_target(path, force=self.force, inputs=read)
        if self.html is not None:
            from btcompress.page import check_installed

            check_installed()

    def made(
        self, report: CompressionReport, name: str, compressed: CompressedCheckpoint, dense: Checkpoint | None
    ) -> dict[Path, str]:
        """The documents, by where they go.

        Args:
            report: what they say.
            name: of the result.
            compressed: the result.
            dense: the dense checkpoint, to draw its curves; None where it is not at hand.
        """
        texts = {}
        if self.html is not None:
            from btcompress.page import largest, page
            from btcompress.reporting.curves import matrix_curves

            curves = () if dense is None else matrix_curves(largest(report.matrices), dense)
            source, history = compressed.source.name, compressed.history
            texts[self.html] = page(report, name, source=source, history=history, curves=curves)
        if self.markdown is not None:
            from btcompress.reporting.markdown import document

            texts[self.markdown] = document(report, name)
        return texts

    def write(self, made: Mapping[Path, str]) -> tuple[list[Path], str | None]:
        """Write the files, each whole or not at all; which these are, and what is for standard output.

        Raises:
            OutputError: a file cannot be written, or another process made it meanwhile.
        """
        from btcompress.checkpoint import check_target, replacing

        written = []
        for path, text in made.items():
            if path != _STDOUT:
                check_target(path, force=self.force)
                with replacing(path) as temporary:
                    temporary.write_text(text, encoding="utf-8", newline="\n")
                written.append(path)
        return written, made.get(_STDOUT)


def _files_of(given: Iterable[SampleInputs]) -> list[Path]:
    from btcompress.finetune.references import sources

    return [file for each in given for file in sources(each.data)]
