"""The command ``btcompress``, and ``python -m btcompress``; Ctrl-C is answered in one line from the first import on."""

import sys

from btcompress.errors import INTERRUPTED


def main() -> None:
    """Run the command line."""
    try:
        from btcompress.cli import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("Interrupted.\n")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
