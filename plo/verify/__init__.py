"""`plo verify` checks a loss without a model, in seconds, before it costs an hour of training."""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from plo.errors import raised_at
from plo.losses import Loss
from plo.verify.bregman import generator_checks_of, generator_of
from plo.verify.check import DESCRIBED, FAILED, NOT_APPLICABLE, PASSED, Check
from plo.verify.describe import scale, step_zero
from plo.verify.direction import directions
from plo.verify.gradients import derivative, reach
from plo.verify.inputs import HIDDEN, after_step, make_pairs, make_statistics, per_pair
from plo.verify.invariance import extremes, order, padding, split
from plo.verify.recovery import policy_recovery, stress
from plo.verify.state import state

STEP_SEED = 7  # of the pairs of the one step after which a loss with state is checked

CHECKS: dict[str, Callable[[Loss], Check | list[Check]]] = {
    "derivative": derivative,
    "reach": reach,
    "padding": padding,
    "order": order,
    "split": split,
    "state": state,
    "extremes": extremes,
    "directions": directions,
    "step_zero": step_zero,
    "scale": scale,
    "generator": generator_checks_of,
    "policy recovery": policy_recovery,
    "labels": stress,
}


@dataclass(frozen=True)
class Report:
    """Checks of one loss, and the seconds they took."""

    name: str
    checks: list[Check]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(check.result != FAILED for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """Return the check of this name."""
        return next(check for check in self.checks if check.name == name)


def verify(loss: Loss, *, labels: bool = True) -> Report:
    """Run every check on a copy of a loss.

    Args:
        loss: a loss made by `get_loss`.
        labels: whether to describe also what noisy, biased, intransitive and missing labels lead to.

    Example:
        >>> verify(get_loss("dpo"), labels=False).passed
        True
    """
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = prepared(loss)
        checks = _called(loss) or _run(loss, [name for name in CHECKS if labels or name != "labels"])
    return Report(loss.name, checks, time.perf_counter() - begin)


def verify_generator(loss: Loss) -> Report:
    """Run the checks of the generator that a loss was configured with, and of the policy that it recovers."""
    begin = time.perf_counter()
    checks = _run(loss, ["generator", "policy recovery"])
    generator = generator_of(loss)
    name = f"{generator.name} in {loss.entry.name}" if generator is not None and loss.entry is not None else loss.name
    return Report(name, checks, time.perf_counter() - begin)


def prepared(loss: Loss) -> Loss:
    """Return a copy of a loss to run checks on: in float64, its own parameters built, its state that after one step."""
    loss = copy.deepcopy(loss).build(HIDDEN).double()
    return after_step(loss, make_pairs(make_statistics(loss.needs, seed=STEP_SEED), loss.needs))


def _run(loss: Loss, names: Iterable[str]) -> list[Check]:
    """Run some of `CHECKS`; where the loss raises, that check failed and the others go on."""
    checks = []
    for name in names:
        try:
            made = CHECKS[name](loss)
        except Exception as error:
            made = _raised(name, error, "the loss raised an error in this check")
        checks += made if isinstance(made, list) else [made]
    return checks


def _called(loss: Loss) -> list[Check]:
    """Return the failed check of a loss that raises or is not finite on ordinary pairs; none for a sound one."""
    meaning = "the loss of ordinary pairs"
    try:
        values = per_pair(loss, make_pairs(make_statistics(loss.needs), loss.needs))
    except Exception as error:
        return [_raised("call", error, meaning)]
    if not values.isfinite().all():
        pair = int((~values.isfinite()).nonzero()[0])
        where = f"pair {pair}: {float(values[pair])}"
        return [Check("call", FAILED, "not finite", meaning, where, "logps are in [-3.3, -.3] nats there.")]
    return []


def _raised(name: str, error: Exception, meaning: str) -> Check:
    where = f"{error} ({raised_at(error)})"
    return Check(name, FAILED, type(error).__name__, meaning, where, "correct the error at that line.")


__all__ = [
    "DESCRIBED",
    "FAILED",
    "NOT_APPLICABLE",
    "PASSED",
    "Check",
    "Report",
    "generator_checks_of",
    "prepared",
    "verify",
    "verify_generator",
]
