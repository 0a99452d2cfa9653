"""The command line: parse, call, show."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from btcompress.cli.benching import bench
from btcompress.cli.common import Quiet, Verbose, with_common_options
from btcompress.cli.demonstrating import demo
from btcompress.cli.environment import is_from, variable
from btcompress.cli.expanding import with_fields_as_options
from btcompress.cli.exporting import export
from btcompress.cli.factorizing import factorize
from btcompress.cli.loading import with_torch_loaded
from btcompress.cli.planning import inspect, plan_command
from btcompress.cli.reports import report
from btcompress.cli.running import run
from btcompress.cli.training import finetune
from btcompress.errors import INTERRUPTED, BTCompressError

__all__ = ["app", "main"]

#: Exit code where nothing came of a command, by what a user can mend.
_FAILED = 2
#: What every ``--help`` ends with.
_EXIT_CODES = (
    f"Exit codes: 0: done. {_FAILED}: an error that one line on stderr names. {INTERRUPTED}: interrupted (Ctrl-C). "
    "1: a defect of btcompress, with its traceback."
)
#: What ``--version --verbose`` tells the versions of.
_PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "huggingface_hub", "onnx", "onnxruntime", "h5py")
#: How some versions of typer name the variable that an option has, whoever gave the value.
_VARIABLE = re.compile(r" \(env var: '\w+'\)")
#: Where shells say that they want a completion.
_COMPLETING = "_BTCOMPRESS_COMPLETE"
#: All errors in the arguments; some versions of typer bring their own copy of click, which has no public name.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="btcompress",
    help="Compress trained LSTMs, GRUs and RNNs: write their weight matrices in block-term form.",
    no_args_is_help=True,
    epilog=_EXIT_CODES,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "factorize": factorize,
    "plan": plan_command,
    "inspect": inspect,
    "report": report,
    "bench": bench,
    "export": export,
    "finetune": finetune,
    "run": run,
    "demo": demo,
}
for name, command in _COMMANDS.items():
    expanded = with_common_options(with_torch_loaded(with_fields_as_options(command)))
    app.command(name, epilog=_EXIT_CODES)(expanded)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version; with --verbose also those of what it runs on.")
    ] = False,
    quiet: Quiet = False,  # noqa: ARG001 - commands ask the context for it
    verbose: Verbose = False,
) -> None:
    if version:
        _show_version(with_packages=verbose)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


def _show_version(*, with_packages: bool) -> None:
    from btcompress import __version__, display

    display.show_line(f"btcompress {__version__}")
    if with_packages:
        display.show_line(f"Python {platform.python_version()} on {platform.platform()}")
        for package in _PACKAGES:
            display.show_line(f"{package} {_version_of(package)}")


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"


def main() -> None:
    """Run the command line, which ends with one of these exit codes.

    0: done, even where standard output could not take the news of what was written. 2: a user's error, memory that ran
    out, or standard output that did not take what was to be shown; one red line says which. 130: Ctrl-C.
    """
    from btcompress import display

    sys.excepthook = display.show_defect
    with display.guarded_streams():
        code = _exit_code(sys.argv[1:])
        if code == 0 and (reason := display.lost_output()):
            display.show_error(
                f"standard output did not take what there is to show ({reason}). Send it to another file, or to a "
                "terminal."
            )
            code = _FAILED
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    """Do what the arguments say; typer's own ``main`` would show errors as they are, and say nothing of Ctrl-C."""
    from btcompress import display, memory

    command = typer.main.get_command(app)
    if _COMPLETING in os.environ:
        command.main(arguments, prog_name="btcompress")
    try:
        with command.make_context("btcompress", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        display.show_interrupted()
        return INTERRUPTED
    except _UsageError as error:
        if text := _usage_text(error):
            display.show_error(text)
        return _FAILED
    except BTCompressError as error:
        display.show_error(str(error))
        return _FAILED
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
    # Only here, where no traceback holds what was formed until then any longer, is there as much as for the next try.
    _show_out_of_memory(reason)
    return _FAILED


def _show_out_of_memory(reason: str) -> None:
    from btcompress import display, memory

    left = memory.size_text(memory.available())
    display.show_error(
        f"memory ran out ({reason}), of which {left} are available now. Take smaller ranks or fewer matrices; "
        "--max-memory refuses at once what would take more."
    )


def _usage_text(error: typer.BadParameter) -> str:
    """What is wrong with the arguments; nothing where there were none, which shows the help."""
    # Typer breaks lines in its own lists of choices; all others are the user's.
    text = _naming_variable(error, error.format_message().replace("\n\t", " "))
    if not text or error.ctx is None:
        return text
    end = "" if text.endswith((".", "?")) else "."
    return f"{text}{end} See {error.ctx.command_path} --help."


def _naming_variable(error: typer.BadParameter, text: str) -> str:
    """The text of an error, behind the environment variable that a bad value is from."""
    name = getattr(getattr(error, "param", None), "name", None)
    text = _VARIABLE.sub("", text)
    if name is None or error.ctx is None or not is_from(error.ctx, name, "environment"):
        return text
    return f"{variable(name)}: {text}"
