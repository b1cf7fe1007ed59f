"""Calls of a judge: counted, within a budget, and made again where they failed for now."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from plo.evals.judges.judge import Judge, JudgeError, Question, TransientError, Verdict
from plo.retry import call_with_retries


@dataclass
class JudgeUsage:
    """What a `JudgeSession` did so far.

    Attributes:
        asked: calls of the judge, one a question and order: also those that failed and those made again.
        cached: answers that were in the cache.
        unreadable: questions whose answer could not be read however often asked.
        cost: money spent, in the currency of the judge's prices; a garbled answer counts with the most it may cost.
    """

    asked: int = 0
    cached: int = 0
    unreadable: int = 0
    cost: float = 0.0


class BudgetedCalls:
    """Calls of a judge by many threads.

    Args:
        calls: budget: calls of the judge in this object's life, failed ones included; None: any number.
        money: budget in the currency of the judge's prices, likewise.
    """

    def __init__(self, calls: int | None, money: float | None):
        self.calls, self.money, self.counts = calls, money, JudgeUsage()
        self._lock = threading.Lock()
        self._pending = 0.0  # money that the calls under way will cost at most

    def over_budget(self, judge: Judge, missing: Sequence[Question]) -> str | None:
        """Why these questions must not be asked, if they must not."""
        calls = math.inf if self.calls is None else self.calls - self.counts.asked
        money = math.inf if self.money is None else self.money - self.counts.cost
        cost = judge.estimate(missing) if missing else 0.0
        if math.isnan(cost) and self.money is not None:
            return (
                f"The judge {judge.name} knows no prices, so that a budget in money cannot hold: give them, "
                f"{judge.name}(price_in=..., price_out=...) a million tokens, or a budget in calls."
            )
        if len(missing) <= calls and not cost > money:
            return None
        left = [f"{calls:.0f} calls"] * (self.calls is not None) + [f"{money_text(money)}"] * (self.money is not None)
        return (
            f"The judge {judge.name} would be asked {len(missing)} questions at a cost of {money_text(cost)}, and the "
            f"budget has {' and '.join(left)} left. None of them was asked: raise the budget, ask fewer prompts, or take "
            f"a cheaper judge."
        )

    def ask(self, judge: Judge, question: Question, stop: threading.Event) -> Verdict:
        """One verdict; a call that failed for now is made again, with growing waits, until `stop`."""
        calls = 0

        def call() -> Verdict:
            nonlocal calls
            calls += 1
            return self._call(judge, question)

        try:
            for_now = lambda error: isinstance(error, TransientError)  # noqa: E731
            return call_with_retries(call, when=for_now, retries=judge.retries, stop=stop)
        except TransientError as error:
            raise JudgeError(f"{error} It was called {calls} times.") from error

    def _call(self, judge: Judge, question: Question) -> Verdict:
        """Call the judge once, if the budget allows it, and count that."""
        most = 0.0 if self.money is None else judge.estimate([question])
        with self._lock:
            out_of_calls = self.calls is not None and self.counts.asked >= self.calls
            if out_of_calls or (self.money is not None and self.counts.cost + self._pending + most > self.money):
                raise JudgeError(
                    f"The budget of the judge {judge.name} is spent before all was asked: {self.counts.asked} calls at "
                    f"a cost of {money_text(self.counts.cost)}, those that failed included. Raise the budget and "
                    f"start again: what the file of verdicts has is not asked for again."
                )
            self.counts.asked += 1
            self._pending += most
        cost = 0.0
        try:
            verdicts = judge.judge([question])
            cost = sum(verdict.cost for verdict in verdicts)
        except TransientError as error:
            cost = error.cost
            raise
        finally:
            with self._lock:
                self._pending -= most
                self.counts.cost += cost
        if len(verdicts) != 1 or not (verdicts[0].p is None or 0 <= verdicts[0].p <= 1):
            raise JudgeError(
                f"The judge {judge.name} answered a question with {[v.p for v in verdicts]}: it must give one "
                f"probability in [0, 1], or None."
            )
        return verdicts[0]


def money_text(amount: float) -> str:
    """Money as messages show it."""
    return "unknown" if math.isnan(amount) else f"{amount:.4g}"
