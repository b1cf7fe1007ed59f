"""What the verdicts of a judge took: seconds, and money in the currency of the judge's prices."""

from collections.abc import Iterable, Mapping
from typing import Any


def price_line(usages: Iterable[Mapping[str, Any]]) -> str:
    """Return what 1,000 verdicts took; "" where nothing was asked.

    Args:
        usages: records of `JudgeSession.usage`: `answered` verdicts, `seconds`, and `cost`, None for a judge without prices.

    Example:
        >>> price_line([{"answered": 500, "seconds": 20.0, "cost": 0.25}])
        "1,000 verdicts took 40 s and cost 0.5 in the currency of the judge's prices (500 were asked)"
    """
    asked = [usage for usage in usages if usage["answered"]]
    if not asked:
        return ""
    answered = sum(usage["answered"] for usage in asked)
    seconds = sum(usage["seconds"] for usage in asked) * 1000 / answered
    costs = [usage["cost"] for usage in asked if usage["cost"] is not None]
    if len(costs) < len(asked):
        money = "cost an unknown amount, as the judge has no prices"
    else:
        amount = sum(costs) * 1000 / answered
        money = f"cost {amount:.3g} in the currency of the judge's prices" if amount else "cost nothing per call"
    return f"1,000 verdicts took {seconds:.3g} s and {money} ({answered:,} were asked)"
