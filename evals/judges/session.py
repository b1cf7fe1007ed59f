"""Ask a judge: both orders, each question once, from the cache where possible, within a budget."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.judges.cache import VerdictCache
from plo.evals.judges.calls import BudgetedCalls, JudgeUsage, money_text
from plo.evals.judges.judge import (
    Judge,
    JudgeError,
    JudgeSpec,
    Question,
    Verdict,
    check_repeats,
    check_spec,
    get_judge,
    spec_name,
    split_repeats,
)
from plo.evals.judges.template import Template
from plo.evals.judges.unreadable import REMEDY, UnreadableStreak
from plo.threads import run_all

RETRIES = 3  # how often a question is asked again after an unreadable answer
EVERY = 30.0  # seconds between two progress lines


class JudgeSession:
    """A judge with its cache and its budget, shared by all evaluations of a run.

    Every verdict is on disk as soon as it arrives: a run that is killed and started again asks only what is missing.
    Two processes that ask the same question at the same time both get right answers, and at worst both pay for it.

    Args:
        spec: see `get_judge`; with the option `repeats`, how often each question is asked, each time for a verdict of its own.
        cache: the file of verdicts; default: `verdicts.db` in plo's cache folder.
        calls: maximum number of judge calls in this session, failed ones included; None: no limit.
        money: maximum cost in this session, in the currency of the judge's prices; None: no limit.
        tell: receives a line of text before the first call (number of questions, cost) and every half minute.
        repeats: default of the option `repeats`.

    Attributes:
        spec: the specification without `repeats`.
        repeats: how often each question is asked.
        counts: what was asked, found in the cache, unreadable and spent.
        templates: judge prompts used since `begin`.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        *,
        cache: Path | str | None = None,
        calls: int | None = None,
        money: float | None = None,
        tell: Callable[[str], None] | None = None,
        repeats: int = 1,
    ):
        self.spec, own = split_repeats(spec)
        self.repeats, self._calls = max(own, repeats), BudgetedCalls(calls, money)
        self.counts = self._calls.counts
        self.templates: set[str | Template] = set()
        self._path, self._tell = cache, tell or (lambda line: None)
        self._judges: dict[str | Template, Judge] = {}
        self._readable: list[bool] = []  # for each question since `begin`
        self._before = JudgeUsage()  # the counts at `begin`
        self._repeat: int | None = None  # the one that `each_repeat` is at
        self._ahead: dict[tuple[str | Template, Question], Verdict] = {}  # of later repeats, asked with the first

    @property
    def name(self) -> str:
        """The judge's name, without its options."""
        return spec_name(self.spec)

    def check(self) -> None:
        """Raise the errors of `get_judge` that show without loading a model or calling a server."""
        check_spec(self.spec)

    @cached_property
    def cache(self) -> VerdictCache:
        """The file of verdicts, opened on first use."""
        return VerdictCache(self._path)

    def judge(self, template: str | Template = "instruction") -> Judge:
        """Return the judge with this prompt."""
        self.templates.add(template)
        if template not in self._judges:
            judge = self._judges[template] = get_judge(self.spec, template)
            check_repeats(judge.name, judge.repeatable, self.repeats)
        return self._judges[template]

    def verdicts(
        self, questions: pd.DataFrame, template: str | Template = "instruction", *, both: bool = True
    ) -> pd.DataFrame:
        """Return the judge's verdict on each question, averaged over its repeats; within `each_repeat`, that of the repeat alone.

        Two answers that are equal up to outer white space are a tie in both orders, and the judge is not asked.

        Args:
            questions: columns prompt, a, b (texts).
            both: ask in both orders instead of only with `a` shown first. A pointwise judge is always asked once.

        Returns:
            A frame with the index of `questions` and the columns
            p_ab: P(b better) with a shown first; NaN where the answer could not be read;
            p_ba: P(b better) with b shown first;
            win: b's win, the mean over the orders of 1 (p > 1/2), 1/2 (p = 1/2), 0; NaN where an order is unreadable;
            p: mean of p_ab and p_ba; NaN likewise;
            consistent: both orders agree, 1 or 0; NaN where one is unreadable or only one was asked.

        Raises:
            JudgeError: the estimate exceeds the budget (before any call), failed calls used up the budget, or the judge
                cannot be asked. Verdicts received so far are kept.
        """
        once = self.judge(template).pointwise or not both
        texts = zip(*(map(str, questions[name]) for name in ("prompt", "a", "b")), strict=True)
        asked = [Question(prompt, a, b) for prompt, a, b in texts]
        swapped = [] if once else [question.swapped() for question in asked]
        each, at = [*asked, *swapped], [self._repeat] if self._repeat else range(self.repeats)
        questions_at = [replace(question, repeat=repeat) for repeat in at for question in each]
        said = self.ask(questions_at, template)
        if self._repeat == 0:
            self._ahead |= {(template, q): verdict for q, verdict in zip(questions_at, said, strict=True) if q.repeat}
        p = probabilities(said).reshape(len(at), len(each))
        p = p if self._repeat is None else p[:1]
        forward = p[:, : len(asked)]
        backward = forward if once else 1 - p[:, len(asked) :]
        won = [win(p) for p in (forward, backward)]
        same = (
            np.where(np.isnan(forward + backward), np.nan, won[0] == won[1]) if both else np.full(forward.shape, np.nan)
        )
        columns = {"p_ab": forward, "p_ba": backward, "win": (won[0] + won[1]) / 2, "p": (forward + backward) / 2}
        columns = {name: _mean_over_repeats(values) for name, values in (columns | {"consistent": same}).items()}
        return pd.DataFrame(columns, index=questions.index, dtype=float)

    def each_repeat(self) -> Iterator[int]:
        """Yield the number of each repeat, while which `verdicts` returns those of that repeat alone.

        The questions of all repeats are asked with the first, so that a budget is checked once and the calls overlap.
        """
        try:
            for repeat in range(self.repeats):
                self._repeat = repeat
                yield repeat
        finally:
            self._repeat = None

    def ask(self, questions: Sequence[Question], template: str | Template = "instruction") -> list[Verdict]:
        """Return a verdict for each question, asked in the given order of answers only.

        After an unreadable answer a question is asked again up to three times, earlier runs included, within the budget;
        then it keeps p = None.

        Raises:
            JudgeError: as `verdicts`.
        """
        judge, distinct = self.judge(template), list(dict.fromkeys(questions))
        compares = judge.template is None or not judge.template.rates
        ties = {q: Verdict(0.5) for q in distinct if compares and q.a.strip() == q.b.strip()}
        before = {q: self._ahead[template, q] for q in distinct if (template, q) in self._ahead}
        known, tries = ties | before, dict.fromkeys(distinct, 0)
        if judge.cached:
            for q, (verdict, had) in self.cache.get(judge, (q for q in distinct if q not in known)).items():
                tries[q] = had
                if verdict.p is not None or had > RETRIES:
                    known[q] = verdict
                    self.counts.cached += 1
        missing = [q for q in distinct if q not in known]
        if fault := self._calls.over_budget(judge, missing):
            raise JudgeError(fault)
        if missing:
            money = judge.estimate(missing)
            cost = f", cost {money_text(money)}" if money != 0 else ""
            self._tell(f"{judge.name}: {len(missing)} of {len(distinct)} questions to ask{cost}")
        streak = UnreadableStreak(judge, any(verdict.p is not None for q, verdict in known.items() if q not in ties))
        while missing:
            known |= self._ask_all(judge, missing, tries, streak)
            for q in missing:
                tries[q] += 1
            missing = [q for q in missing if known[q].p is None and not known[q].refused and tries[q] <= RETRIES]
            if self._calls.over_budget(judge, missing):
                break
        self._readable += [known[q].p is not None for q in distinct if q not in ties]
        if unread := [known[q] for q in distinct if known[q].p is None and q not in before]:
            self.counts.unreadable += len(unread)
            count = f"{len(unread)} of {len(distinct)} answers could not be read"
            self._tell(f"{judge.name}: {count}, the first: {unread[0].answer[:300]!r}")
        return [known[q] for q in questions]

    @property
    def usage(self) -> dict[str, Any]:
        """Cost of the verdicts since `begin`, as JSON values: their number `answered`, `seconds`, and `cost`, None without prices."""
        counts, before = self.counts, self._before
        judges = [self._judges[template] for template in self.templates]
        priced = not any(math.isnan(judge.estimate([Question("p", "a", "b")])) for judge in judges)
        return {
            "answered": counts.answered - before.answered,
            "seconds": counts.seconds - before.seconds,
            "cost": counts.cost - before.cost if priced else None,
        }

    @property
    def remarks(self) -> list[str]:
        """Notes to print with the verdicts of the judges that were asked since `begin`."""
        return [note for template in self.templates for note in self._judges[template].remarks]

    def begin(self) -> None:
        """Begin an evaluation: forget which prompts were used and how many answers could be read."""
        self.templates.clear()
        self._readable.clear()
        self._ahead.clear()
        self._before = replace(self.counts)

    def enforce_read(self) -> None:
        """Raise a JudgeError if questions were asked since `begin` and no answer could be read."""
        if self._readable and not any(self._readable):
            raise JudgeError(
                f"None of the {len(self._readable)} answers of the judge {self.name} could be read, so there is no verdict. "
                f"{REMEDY}"
            )

    def _ask_all(
        self, judge: Judge, questions: Sequence[Question], tries: Mapping[Question, int], streak: UnreadableStreak
    ) -> dict[Question, Verdict]:
        answers: dict[Question, Verdict] = {}
        stop, begun = threading.Event(), time.monotonic()
        last_line = begun

        def done(batch: Sequence[Question], verdicts: Sequence[Verdict]) -> None:
            nonlocal last_line
            for question, verdict in zip(batch, verdicts, strict=True):
                answers[question] = verdict
                streak.see(verdict, first=tries[question] == 0)
            if time.monotonic() - last_line >= EVERY:
                last_line = time.monotonic()
                spent = f", spent {money_text(self.counts.cost)}" if self.counts.cost else ""
                self._tell(f"{judge.name}: {len(answers)}/{len(questions)}{spent}")

        def awaited(calls: int, seconds: float) -> None:
            most = min(seconds, judge.timeout or math.inf)
            longest = "" if most == math.inf else f" (at most {most:g} s)"
            self._tell(
                f"{judge.name}: stopping; waiting for {calls} calls in progress{longest}, which are paid for. Ctrl-C stops "
                f"at once. Verdicts received so far are kept: the same command continues from there."
            )

        ask = lambda batch: self._ask(judge, batch, stop)  # noqa: E731
        try:
            run_all(ask, _batches(questions, judge.batch), judge.concurrency, done=done, stop=stop, awaited=awaited)
        finally:
            self.counts.seconds += time.monotonic() - begun
        return answers

    def _ask(self, judge: Judge, questions: Sequence[Question], stop: threading.Event) -> list[Verdict]:
        verdicts = self._calls.ask(judge, questions, stop)
        for question, verdict in zip(questions, verdicts, strict=True):
            if judge.cached and not verdict.refused:
                self.cache.put(judge, question, verdict)
        return verdicts


def _batches(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    """Return the questions in batches, those of like length together, so that little padding is computed."""
    if size > 1:
        questions = sorted(questions, key=lambda q: len(q.prompt) + len(q.a) + len(q.b), reverse=True)
    return [questions[start : start + size] for start in range(0, len(questions), size)]


def _mean_over_repeats(values: np.ndarray) -> np.ndarray:
    """Return the mean of [repeats, questions] over the repeats in which it is defined; NaN where there is none."""
    counts = np.maximum((~np.isnan(values)).sum(0), 1)
    return np.where(np.isnan(values).all(0), np.nan, np.nansum(values, 0) / counts)


def win(p: Any) -> np.ndarray:
    """Return b's win by P(b better): 1 above 1/2, 1/2 if equal, else 0; NaN stays NaN."""
    return (1 + np.sign(np.asarray(p, float) - 0.5)) / 2


def probabilities(verdicts: Iterable[Verdict]) -> np.ndarray:
    """Return P(b better) of each verdict; NaN if it could not be read."""
    return np.array([np.nan if v.p is None else v.p for v in verdicts], dtype=float)
