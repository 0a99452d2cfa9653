"""What is measured of a model, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass

#: From here on digits behind the point tell nothing.
_LONG = 1000


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured of a model.

    Attributes:
        name: such as ``"accuracy"``.
        higher_is_better: whether more of it is better.
        is_share: from 0 to 1, and written in percent.
    """

    name: str
    higher_is_better: bool = True
    is_share: bool = False

    def written(self, value: float) -> str:
        """The value as it is written: in percent, or to four digits, or without any behind the point."""
        if self.is_share:
            return f"{value:.1%}".replace("%", " %")
        return f"{value:,.0f}" if abs(value) >= _LONG else f"{value:.4g}"

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return value > than if self.higher_is_better else value < than
