"""Asking a judge: both orders, each question once, from the cache where it is known, within a budget."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.judges.cache import VerdictCache
from plo.evals.judges.calls import BudgetedCalls, money_text
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict, check_spec, get_judge, spec_name
from plo.evals.judges.template import Template
from plo.threads import run_all

IN_A_ROW = 20  # answers that cannot be read, after which the judge is given up
UNREADABLE = (
    "A prompt that wants the label alone (instruction, AlpacaEval's) needs a judge that says nothing else; one that thinks "
    "first needs room for it, openai:MODEL(max_tokens=4096), and one that talks first a prompt that ends with the label, "
    "such as --template helpful (hh.template=helpful)."
)
AGAIN = 3  # how often an unreadable answer is asked for again
EVERY = 30.0  # seconds between two lines of progress


class JudgeSession:
    """A judge with its cache and its budget, shared by all evaluations of a run.

    Every verdict is on disk the moment it is had: a run that is killed and started again asks only for what is missing.
    Two processes that ask the same at the same time both get right answers, and at worst pay for it twice.

    Args:
        spec: see `get_judge`.
        cache: the file of verdicts; without it `verdicts.db` in plo's cache folder.
        calls: budget: calls of the judge in this object's life, failed ones included; None: any number.
        money: budget in the currency of the judge's prices, likewise.
        tell: is given a line of text before the first call (how many, what they cost) and every half a minute.

    Attributes:
        counts: what was asked, found, unreadable and spent.
        templates: prompts that it was asked with since `begin`.
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
        self.spec, self._calls = spec, BudgetedCalls(calls, money)
        self.counts = self._calls.counts
        self.templates: set[str | Template] = set()
        self._path, self._tell = cache, tell or (lambda line: None)
        self._judges: dict[str, Judge] = {}
        self._read = self._unread = 0  # questions, since `begin`

    @property
    def name(self) -> str:
        """The judge's name, without its options."""
        return spec_name(self.spec)

    def check(self) -> None:
        """Raise at once, without loading a model or calling anybody, what is wrong with the specification.

        Raises:
            JudgeError, RegistryError, HyperParameterError: as `get_judge`, but for what only the model itself tells.
            DataError: a record that cannot be read.
        """
        check_spec(self.spec)

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
            JudgeError: the estimate exceeds the budget (before any call); failed calls used the budget up, or the judge
                cannot be asked (what was had is kept).
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

        An unreadable answer is asked for again up to three times, those of earlier runs counted, as far as the budget
        goes; then it stays p = None.

        Args:
            fresh: ask anew, and leave the cache as it is (for test and retest).

        Raises:
            JudgeError: as `verdicts`.
        """
        judge, distinct = self.judge(template), list(dict.fromkeys(questions))
        ties = {q: Verdict(0.5) for q in distinct if q.a.strip() == q.b.strip()}
        known = dict(ties)
        keep, tries = judge.cached and not fresh, dict.fromkeys(distinct, 0)
        if keep:
            for q, (verdict, had) in self.cache.get(judge, (q for q in distinct if q not in known)).items():
                tries[q] = had
                if verdict.p is not None or had > AGAIN:
                    known[q] = verdict
                    self.counts.cached += 1
        missing = [q for q in distinct if q not in known]
        if fault := self._calls.over_budget(judge, missing):
            raise JudgeError(fault)
        if missing:
            money = judge.estimate(missing)
            cost = f", cost {money_text(money)}" if money != 0 else ""
            self._tell(f"{judge.name}: {len(missing)} of {len(distinct)} questions to ask{cost}")
        watch = _Unread(judge, any(verdict.p is not None for q, verdict in known.items() if q not in ties))
        while missing:
            known |= self._ask_all(judge, missing, keep, tries, watch)
            for q in missing:
                tries[q] += 1
            missing = [q for q in missing if known[q].p is None and not known[q].refused and tries[q] <= AGAIN]
            if self._calls.over_budget(judge, missing):
                break
        self._count_read(known[q] for q in distinct if q not in ties)
        if unread := [known[q] for q in distinct if known[q].p is None]:
            self.counts.unreadable += len(unread)
            said = f"{len(unread)} of {len(distinct)} answers could not be read, the first: {unread[0].answer[:300]!r}"
            self._tell(f"{judge.name}: {said}")
        return [known[q] for q in questions]

    @property
    def remarks(self) -> list[str]:
        """Return notes to print with the verdicts of the judges that were asked since `begin`."""
        return [said for template in self.templates for said in self._judges[template].remarks]

    def begin(self) -> None:
        """Forget which prompts the judge was asked with and what could be read: an evaluation begins."""
        self.templates.clear()
        self._read = self._unread = 0

    def enforce_read(self) -> None:
        """Raise if questions were asked since `begin` and no answer could be read.

        Raises:
            JudgeError: there is no verdict at all.
        """
        if self._unread and not self._read:
            raise JudgeError(
                f"None of the {self._unread} answers of the judge {self.name} could be read, so there is no verdict. "
                f"{UNREADABLE}"
            )

    def _count_read(self, verdicts: Iterable[Verdict]) -> None:
        read = [verdict.p is not None for verdict in verdicts]
        self._read += sum(read)
        self._unread += len(read) - sum(read)

    def _ask_all(
        self, judge: Judge, questions: Sequence[Question], keep: bool, tries: Mapping[Question, int], watch: "_Unread"
    ) -> dict[Question, Verdict]:
        answers: dict[Question, Verdict] = {}
        stop, told = threading.Event(), time.monotonic()

        def done(question: Question, verdict: Verdict) -> None:
            nonlocal told
            answers[question] = verdict
            watch.see(verdict, first=tries[question] == 0)
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                spent = f", spent {money_text(self.counts.cost)}" if self.counts.cost else ""
                self._tell(f"{judge.name}: {len(answers)}/{len(questions)}{spent}")

        def awaited(calls: int) -> None:
            longest = "" if judge.timeout is None else f" (at most {judge.timeout:g} s)"
            self._tell(
                f"{judge.name}: stopping; {calls} calls under way are waited for{longest}, as they are paid for. Ctrl-C "
                f"leaves at once. What was had is kept: the same command goes on from there."
            )

        ask = lambda question: self._ask(judge, question, keep, stop)  # noqa: E731
        run_all(ask, questions, judge.concurrency, done=done, stop=stop, awaited=awaited)
        return answers

    def _ask(self, judge: Judge, question: Question, keep: bool, stop: threading.Event) -> Verdict:
        verdict = self._calls.ask(judge, question, stop)
        if keep and not verdict.refused:
            self.cache.put(judge, question, verdict)
        return verdict


class _Unread:
    """Notices a judge that cannot be read, before it is asked hundreds of questions four times each.

    Args:
        read: an answer of it could be read before. Then only questions asked for the first time count: those asked again
            are the ones that it cannot answer.
    """

    def __init__(self, judge: Judge, read: bool):
        self.judge, self.read, self.in_a_row = judge, read, 0

    def see(self, verdict: Verdict, *, first: bool) -> None:
        """Count an answer.

        Raises:
            JudgeError: `IN_A_ROW` answers in a row could not be read.
        """
        if verdict.p is not None:
            self.read, self.in_a_row = True, 0
        elif not verdict.refused and (first or not self.read):
            self.in_a_row += 1
        if self.in_a_row >= IN_A_ROW:
            said = repr(verdict.answer[:200]) if verdict.answer else "nothing"
            raise JudgeError(
                f"{IN_A_ROW} answers in a row of the judge {self.judge.name} could not be read; the last one is {said}. "
                f"{UNREADABLE}"
            )


def _numbers(verdicts: Iterable[Verdict]) -> np.ndarray:
    return np.array([np.nan if v.p is None else v.p for v in verdicts], dtype=float)
