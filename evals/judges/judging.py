"""Asking a judge: both orders, each question once, from the cache where it is known, within a budget."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.judges.cache import VerdictCache
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict, get_judge
from plo.evals.judges.template import Template

AGAIN = 3  # how often an unreadable answer is asked for again


@dataclass
class Counts:
    """What a `Judging` did so far.

    Attributes:
        asked: calls of the judge, one a question and order, those asked again included.
        cached: answers that were in the cache.
        unreadable: questions whose answer could not be read however often asked.
        cost: money spent, in the currency of the judge's prices.
    """

    asked: int = 0
    cached: int = 0
    unreadable: int = 0
    cost: float = 0.0


class Judging:
    """A judge with its cache and its budget, shared by all evaluations of a run.

    Every verdict is on disk the moment it is had: a run that is killed and started again asks only for what is missing.
    Two processes that ask the same at the same time both get right answers, and at worst pay for it twice.

    Args:
        spec: see `get_judge`.
        cache: the file of verdicts; without it `verdicts.db` in plo's cache folder.
        calls: budget: calls of the judge in this object's life; None: any number.
        money: budget in the currency of the judge's prices, likewise.
        tell: is given a line of text before the first call (how many, what they cost) and at every tenth of them.

    Attributes:
        counts: what was asked, found, unreadable and spent.
        templates: prompts that it was asked with; emptied before each evaluation.
    """

    def __init__(
        self,
        spec: str | Mapping[str, Any] | Callable | Judge,
        *,
        cache: Path | str | None = None,
        calls: int | None = None,
        money: float | None = None,
        tell: Callable[[str], None] | None = None,
    ):
        self.spec, self.calls, self.money = spec, calls, money
        self.counts = Counts()
        self.templates: set[str | Template] = set()
        self._path, self._tell = cache, tell or (lambda line: None)
        self._judges: dict[str, Judge] = {}
        self._lock = threading.Lock()

    @cached_property
    def cache(self) -> VerdictCache:
        """The file of verdicts, opened when it is first needed."""
        return VerdictCache(self._path)

    def judge(self, template: str | Template = "instruction") -> Judge:
        """The judge with this prompt."""
        self.templates.add(template)
        if template not in self._judges:
            self._judges[template] = get_judge(self.spec, template)
        return self._judges[template]

    def verdicts(
        self, questions: pd.DataFrame, template: str | Template = "instruction", *, both: bool = True
    ) -> pd.DataFrame:
        """What the judge says of each question.

        Two answers that are the same but for outer white space are a tie in both orders, and nobody is asked.

        Args:
            questions: columns prompt, a, b (texts).
            both: ask in both orders; else only with `a` shown first. A pointwise judge is always asked once.

        Returns:
            With the index of `questions`:
            p_ab: P(b better) with a shown first; NaN where it could not be read;
            p_ba: P(b better) with b shown first;
            win: of b, the mean over the orders of 1 (p > 1/2), 1/2 (p = 1/2), 0; NaN where an order could not be read;
            p: mean of p_ab and p_ba, likewise;
            consistent: both orders say the same, 1 or 0; NaN where one could not be read or only one was asked.

        Raises:
            JudgeError: the estimate exceeds the budget (before any call), or the judge cannot be asked.
        """
        once = self.judge(template).pointwise or not both
        asked = [Question(*map(str, row)) for row in questions[["prompt", "a", "b"]].itertuples(index=False)]
        swapped = [] if once else [question.swapped() for question in asked]
        p = _numbers(self.ask([*asked, *swapped], template))
        forward = p[: len(asked)]
        backward = forward if once else 1 - p[len(asked) :]
        won = [np.where(np.isnan(p), np.nan, (p > 0.5) + 0.5 * (p == 0.5)) for p in (forward, backward)]
        same = np.where(np.isnan(forward + backward), np.nan, won[0] == won[1]) if both else np.nan
        columns = {"p_ab": forward, "p_ba": backward, "win": (won[0] + won[1]) / 2, "p": (forward + backward) / 2}
        return pd.DataFrame(columns | {"consistent": same}, index=questions.index, dtype=float)

    def ask(
        self, questions: Sequence[Question], template: str | Template = "instruction", *, fresh: bool = False
    ) -> list[Verdict]:
        """A verdict for each question in the one order given, in the order of the questions.

        An unreadable answer is asked for again up to three times, as far as the budget goes, then stays p = None.

        Args:
            fresh: ask anew, and leave the cache as it is (for test and retest).

        Raises:
            JudgeError: as `verdicts`.
        """
        judge, distinct = self.judge(template), list(dict.fromkeys(questions))
        known = {q: Verdict(0.5) for q in distinct if q.a.strip() == q.b.strip()}
        keep = judge.cached and not fresh
        if keep:
            found = self.cache.get(judge, (q for q in distinct if q not in known))
            self.counts.cached += len(found)
            known |= found
        missing = [q for q in distinct if q not in known]
        if fault := self._over_budget(judge, missing):
            raise JudgeError(fault)
        if missing:
            money = _money(judge.estimate(missing))
            self._tell(f"{judge.name}: {len(missing)} of {len(distinct)} questions to ask, cost {money}")
        for _ in range(1 + AGAIN):
            known |= self._ask_all(judge, missing, keep)
            missing = [q for q in missing if known[q].p is None]
            if not missing or self._over_budget(judge, missing):
                break
        if missing:
            self.counts.unreadable += len(missing)
            self._tell(f"{judge.name}: {len(missing)} answers could not be read")
        return [known[q] for q in questions]

    def _over_budget(self, judge: Judge, missing: Sequence[Question]) -> str | None:
        """Why these questions must not be asked, if they must not."""
        calls = math.inf if self.calls is None else self.calls - self.counts.asked
        money = math.inf if self.money is None else self.money - self.counts.cost
        cost = judge.estimate(missing) if missing else 0.0
        if math.isnan(cost) and self.money is not None:
            return (
                f"The judge {judge.name} knows no prices, so that a budget in money cannot hold: give them (price_in, "
                f"price_out), or a budget in calls."
            )
        if len(missing) <= calls and not cost > money:
            return None
        left = [f"{calls:.0f} calls"] * (self.calls is not None) + [f"{_money(money)}"] * (self.money is not None)
        return (
            f"The judge {judge.name} would be asked {len(missing)} questions at a cost of {_money(cost)}, and the "
            f"budget has {' and '.join(left)} left. Nothing was asked: raise the budget, ask fewer prompts, or take a "
            f"cheaper judge."
        )

    def _ask_all(self, judge: Judge, questions: Sequence[Question], keep: bool) -> dict[Question, Verdict]:
        batches = [questions[i : i + judge.batch] for i in range(0, len(questions), judge.batch)]
        answers: dict[Question, Verdict] = {}
        pool = ThreadPoolExecutor(judge.concurrency, thread_name_prefix="judge")
        try:
            futures = [pool.submit(self._ask_batch, judge, batch, keep) for batch in batches]
            for done, future in enumerate(as_completed(futures), 1):
                answers |= future.result()
                if done * 10 // len(futures) > (done - 1) * 10 // len(futures):
                    self._tell(f"{judge.name}: {len(answers)}/{len(questions)}, spent {_money(self.counts.cost)}")
        finally:
            pool.shutdown(cancel_futures=True)  # after a fault: what is under way is paid for, so it is waited for
        return answers

    def _ask_batch(self, judge: Judge, batch: Sequence[Question], keep: bool) -> dict[Question, Verdict]:
        verdicts = judge.judge(batch)
        if len(verdicts) != len(batch) or not all(v.p is None or 0 <= v.p <= 1 for v in verdicts):
            raise JudgeError(
                f"The judge {judge.name} answered {len(batch)} questions with {[v.p for v in verdicts][:5]}...: "
                f"it must give one probability in [0, 1], or None, for each."
            )
        for question, verdict in zip(batch, verdicts, strict=True):
            if keep:
                self.cache.put(judge, question, verdict)
        with self._lock:
            self.counts.asked += len(batch)
            self.counts.cost += sum(verdict.cost for verdict in verdicts)
        return dict(zip(batch, verdicts, strict=True))


def _numbers(verdicts: Iterable[Verdict]) -> np.ndarray:
    return np.array([np.nan if v.p is None else v.p for v in verdicts], dtype=float)


def _money(amount: float) -> str:
    return "unknown" if math.isnan(amount) else f"{amount:.4g}"
