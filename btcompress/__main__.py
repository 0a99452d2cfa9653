"""``python -m btcompress`` is the command ``btcompress``."""

from btcompress.cli import main

if __name__ == "__main__":
    main()
