"""`Check` is the result of a check: what was measured, what it means, and for a failure the place and the remedy."""

from dataclasses import dataclass

PASSED, FAILED, NOT_APPLICABLE, DESCRIBED = "passed", "failed", "does not apply", "described"


@dataclass(frozen=True)
class Check:
    """Outcome of one check of one loss.

    Attributes:
        name: name of the check.
        result: "passed", "failed", "does not apply", or "described" where there is nothing to pass.
        measured: the number with its unit and, for a verdict, the threshold: "3e-11 of the largest (< 1e-06)".
        meaning: one line on what was measured.
        where: pair, token and input of a failure.
        remedy: what to look for after a failure.
        values: the numbers by name, for machines.
    """

    name: str
    result: str
    measured: str = ""
    meaning: str = ""
    where: str = ""
    remedy: str = ""
    values: dict[str, float] | None = None


def judge(
    passed: bool, name: str, measured: str, meaning: str, where: str, remedy: str, values: dict[str, float]
) -> Check:
    """Return a check that passed, or failed with `where` and `remedy`."""
    if passed:
        return Check(name, PASSED, measured, meaning, values=values)
    return Check(name, FAILED, measured, meaning, where, remedy, values)


def verdict(name: str, value: float, threshold: float, unit: str, meaning: str, where: str, remedy: str) -> Check:
    """Return a check that passes where value <= threshold, which nan is not."""
    measured = f"{value:.1e} {unit}, at most {threshold:.0e}"
    values = {"value": value, "threshold": threshold}
    return judge(value <= threshold, name, measured, meaning, where, remedy, values)
