"""Which matrices are factorized, and into what shape each one goes: as asked, or as a wish is best met."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.plan.choice import Fallback, Plan, PlannedMatrix, PlannedRounding, make_plan
    from btcompress.plan.planfile import read_plan, save_plan
    from btcompress.plan.planner import OnPricing, meet
    from btcompress.plan.priced import ChosenForm, PricedPlan
    from btcompress.plan.wish import Of, Wish

__all__ = [
    "ChosenForm",
    "Fallback",
    "Of",
    "OnPricing",
    "Plan",
    "PlannedMatrix",
    "PlannedRounding",
    "PricedPlan",
    "Wish",
    "make_plan",
    "meet",
    "read_plan",
    "save_plan",
]

_load = on_first_use(
    __name__,
    {
        "ChosenForm": "priced",
        "Fallback": "choice",
        "Of": "wish",
        "OnPricing": "planner",
        "Plan": "choice",
        "PlannedMatrix": "choice",
        "PlannedRounding": "choice",
        "PricedPlan": "priced",
        "Wish": "wish",
        "make_plan": "choice",
        "meet": "planner",
        "read_plan": "planfile",
        "save_plan": "planfile",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
