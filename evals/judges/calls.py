"""Call a judge: every call is counted and kept within a budget; calls that fail for now are retried."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from plo.evals.judges.judge import Judge, JudgeError, Question, TransientError, Verdict
from plo.retry import call_with_retries


@dataclass
class JudgeUsage:
    """Usage of a judge in a `JudgeSession`.

    Attributes:
        asked: number of calls, one per question and order, including failed calls and retries.
        answered: number of verdicts that calls returned.
        cached: number of answers found in the cache.
        unreadable: number of questions without a readable answer after all retries.
        cost: money spent, in the currency of the judge's prices; a garbled answer counts as the most it may cost.
        seconds: time during which calls were in progress, waits for retries included.
    """

    asked: int = 0
    answered: int = 0
    cached: int = 0
    unreadable: int = 0
    cost: float = 0.0
    seconds: float = 0.0


class BudgetedCalls:
    """Calls of a judge by many threads within a budget.

    Args:
        calls: maximum number of calls, failed ones included; None: no limit.
        money: maximum cost, in the currency of the judge's prices; None: no limit.
    """

    def __init__(self, calls: int | None, money: float | None):
        self.calls, self.money = (math.inf if limit is None else limit for limit in (calls, money))
        self.counts = JudgeUsage()
        self._lock = threading.Lock()
        self._pending = 0.0  # maximum cost of the calls in progress
        self._away = False  # whether the judge did not answer a question although it was called again and again

    def over_budget(self, judge: Judge, missing: Sequence[Question]) -> str | None:
        """Return why these questions exceed the budget, or None."""
        calls, money = self.calls - self.counts.asked, self.money - self.counts.cost
        cost = judge.estimate(missing) if missing else 0.0
        if math.isnan(cost) and self.money < math.inf:
            return (
                f"The judge {judge.name} has no prices, so a budget in money cannot be enforced: give prices per million "
                f"tokens, {judge.name}(price_in=..., price_out=...), or a budget in calls."
            )
        if len(missing) <= calls and not cost > money:
            return None
        left = [f"{calls:.0f} calls"] * (calls < math.inf) + [money_text(money)] * (money < math.inf)
        return (
            f"The judge {judge.name} would be asked {len(missing)} questions at a cost of {money_text(cost)}, and the "
            f"budget has {' and '.join(left)} left. None was asked: raise the budget, use fewer prompts, or a cheaper judge."
        )

    def ask(self, judge: Judge, questions: Sequence[Question], stop: threading.Event) -> list[Verdict]:
        """Return the verdicts of one call; one that fails for now is retried, with growing waits, until `stop` is set.

        A judge that was given up is called only twice from then on, until it answers: the other evaluations of a run would
        each wait a minute for a server that is down.
        """
        retries = min(judge.retries, 1) if self._away else judge.retries
        try:
            verdicts = call_with_retries(lambda: self._call(judge, questions), retries=retries, stop=stop)
        except TransientError as error:
            self._away = True
            raise JudgeError(f"{error} It was called {retries + 1} times.") from error
        self._away = False
        return verdicts

    def _call(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict]:
        """Call the judge once, if the budget allows it, and count every question as a call."""
        most = judge.estimate(questions) if self.money < math.inf else 0.0
        with self._lock:
            if self.counts.asked + len(questions) > self.calls or self.counts.cost + self._pending + most > self.money:
                raise JudgeError(
                    f"The budget of the judge {judge.name} is spent before all questions were asked: {self.counts.asked} "
                    f"calls at a cost of {money_text(self.counts.cost)}, failed ones included. Raise the budget and start "
                    f"again: cached verdicts are not asked again."
                )
            self.counts.asked += len(questions)
            self._pending += most
        cost, verdicts = 0.0, list[Verdict]()
        try:
            verdicts = judge.judge(questions)
            cost = sum(verdict.cost for verdict in verdicts)
        except TransientError as error:
            cost = error.cost
            raise
        finally:
            with self._lock:
                self._pending -= most
                self.counts.cost += cost
                self.counts.answered += len(verdicts)
        p = [verdict.p for verdict in verdicts]
        if len(p) != len(questions) or not all(one is None or 0 <= one <= 1 for one in p):
            raise JudgeError(
                f"The judge {judge.name} answered {len(questions)} question{'s' * (len(questions) > 1)} with {p}: it must "
                f"return one probability in [0, 1], or None, for each."
            )
        return verdicts


def money_text(amount: float) -> str:
    """Return an amount of money as text."""
    return "unknown" if math.isnan(amount) else f"{amount:.4g}"
