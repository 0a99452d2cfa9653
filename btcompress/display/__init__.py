"""Everything that is shown: tables and words on stdout, progress and errors on stderr."""

from btcompress.display.bench import show_bench
from btcompress.display.console import (
    having_written,
    show_defect,
    show_document,
    show_error,
    show_interrupted,
    show_json,
    show_line,
    show_written,
)
from btcompress.display.demo import show_demo
from btcompress.display.export import show_exported
from btcompress.display.inventory import show_inventory, show_inventory_json, show_plan
from btcompress.display.planning import show_priced_plan, show_priced_plan_json
from btcompress.display.progress import (
    bench_progress,
    calibration_progress,
    demo_progress,
    finetune_progress,
    fit_progress,
    job_progress,
    pricing_progress,
    working,
)
from btcompress.display.report import show_report
from btcompress.display.streams import guarded_streams, lost_output
from btcompress.display.verbosity import Verbosity, is_quiet, telling

__all__ = [
    "Verbosity",
    "bench_progress",
    "calibration_progress",
    "demo_progress",
    "finetune_progress",
    "fit_progress",
    "guarded_streams",
    "having_written",
    "is_quiet",
    "job_progress",
    "lost_output",
    "pricing_progress",
    "show_bench",
    "show_defect",
    "show_demo",
    "show_document",
    "show_error",
    "show_exported",
    "show_interrupted",
    "show_inventory",
    "show_inventory_json",
    "show_json",
    "show_line",
    "show_plan",
    "show_priced_plan",
    "show_priced_plan_json",
    "show_report",
    "show_written",
    "telling",
    "working",
]
