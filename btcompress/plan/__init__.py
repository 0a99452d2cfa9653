"""Which matrices are factorized, and into what shape each one goes: as asked, or as a wish is best met."""

from btcompress.plan.choice import Fallback, Plan, PlannedMatrix, PlannedRounding, make_plan
from btcompress.plan.planfile import read_plan, save_plan
from btcompress.plan.planner import ChosenForm, OnPricing, PricedPlan, meet
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
