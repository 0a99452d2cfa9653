"""What a worker has done so far, in a file that outlives it: where it stands, its counts, its extremes."""

import numpy as np

from fuzz.cases import OUTCOMES
from fuzz.targets import TARGETS

KINDS = tuple(TARGETS)
_HEAD = ("number", "kind", "done", "slowest_us", "slowest_number", "slowest_kind", "peak")


class Board:
    """Counts in a mapped file.

    Args:
        path: the file; made where it does not exist.
    """

    def __init__(self, path):
        size = len(_HEAD) + len(KINDS) * len(OUTCOMES)
        if not path.exists():
            path.write_bytes(bytes(8 * size))
        self._all = np.memmap(path, np.int64, "r+")
        self.counts = self._all[len(_HEAD) :].reshape(len(KINDS), len(OUTCOMES))

    def __getitem__(self, name):
        return int(self._all[_HEAD.index(name)])

    def begin(self, number, kind):
        """A case begins: if the process dies, it was this one."""
        self._all[0], self._all[1] = number, KINDS.index(kind)

    def end(self, verdict, peak):
        """A case has ended."""
        number, kind = self["number"], self["kind"]
        self.counts[kind, OUTCOMES.index(verdict.outcome)] += 1
        self._all[2] += 1
        if verdict.seconds * 1e6 > self["slowest_us"]:
            self._all[3:6] = verdict.seconds * 1e6, number, kind
        self._all[6] = max(self["peak"], peak)

    def died(self):
        """The case in progress counts as a fault."""
        self.counts[self["kind"], OUTCOMES.index("fault")] += 1
        self._all[2] += 1
