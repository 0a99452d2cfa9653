"""What a compression gained and lost, in numbers and in plain words."""

from btcompress.reporting.rounded import with_yardsticks
from btcompress.reporting.summary import OnInputs, report

__all__ = ["OnInputs", "report", "with_yardsticks"]
