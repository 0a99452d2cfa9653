"""The command ``btcompress``, and ``python -m btcompress``; Ctrl-C is answered in one line from the first import on."""

import gc
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
    finally:
        # What there is goes with the process: looking through it for garbage first takes a third of a second.
        gc.freeze()


if __name__ == "__main__":
    main()
