"""What a file must never get to run: the mutators name it in pickles and tags, and every case looks whether it was."""

rung = []


def ring(*_):
    """Leave a mark."""
    rung.append(True)
