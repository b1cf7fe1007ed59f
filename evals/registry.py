"""The registry of evaluations: what one declares about itself, and how a table describes its metrics."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from plo.errors import PloError
from plo.metric import ARROWS, BUILT_IN, Metric, matching, usual_bounds
from plo.registry import Entry, Registry

Function = TypeVar("Function", bound=Callable[..., Any])
LEVELS = ("sample", "prompt", "model")


class EvaluationError(PloError, ValueError):
    """An evaluation cannot run, or returned something other than it declared."""


@dataclass(frozen=True)
class EvaluationFacts:
    """Properties that an evaluation declares when it is registered; `register_evaluation` explains them.

    Attributes:
        asks_judge: it takes a judge, the argument `judging`.
        texts: number of texts that it draws from a model where no option says how many; None: unknown.
        texts_each: number of texts that it draws for each of the prompts that an option counts.
        asked_once: the judge is asked about a text in one order alone; a text: the option that makes it so.
        draws: it asks its subject for text; otherwise it reads what was drawn during training.
    """

    level: str = "sample"
    main_score: str = ""
    higher_is_better: Mapping[str, bool | None] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    digits: Mapping[str, int | None] = field(default_factory=dict)
    meaning: Mapping[str, str | None] = field(default_factory=dict)
    asks_judge: bool = False
    license: str = ""
    citation: str = ""
    texts: int | None = None
    asked_once: bool | str = False
    draws: bool = True
    texts_each: int = 1


EVALUATIONS = Registry("evaluation", group="plo.evaluations", facts=EvaluationFacts)


def register_evaluation(
    name: str,
    *,
    level: str = "sample",
    main_score: str = "",
    higher_is_better: bool | Mapping[str, bool | None] | None = None,
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    digits: int | Mapping[str, int] | None = None,
    meaning: str | Mapping[str, str] | None = None,
    license: str = "",
    citation: str = "",
    texts: int | None = None,
    asked_once: bool | str = False,
    draws: bool = True,
    texts_each: int = 1,
) -> Callable[[Function], Function]:
    """Register a function as the evaluation `name`.

    A function of level "sample" or "prompt" gets a samples frame (see `plo.evals.sample_level`), and the reference model's
    frame if it has a second argument `reference`. One of level "model" gets a subject, asks it for text of its own
    prompts, and returns `Findings`; its keyword-only arguments are its options. With an argument `judging` it gets the
    run's judge, with an option `against` it compares with the subject's reference, and an option `template` is the judge
    prompt it uses.

    Args:
        level: "sample": returns a frame with the samples' own index; "prompt": a frame indexed by prompt_id;
            "model": see above. Prompt-level evaluations run after all sample-level ones and see the columns they added.
        main_score: the headline metric, or a pattern of it; default: the first one that `higher_is_better` names.
        higher_is_better: direction by metric, which is a column of the returned frame; None where neither direction is
            better. One value alone: the evaluation returns one metric, called `name`. At level "model" a name may
            be a pattern ("win_rate*").
        bounds: least and greatest value that a metric can have, such as (0, 1) for a share; None: not known.
        digits: digits after the decimal point in tables; None: 3.
        meaning: what a metric is, with its unit, for the legend under the table.
        license: SPDX identifiers of the data and code that the evaluation takes from others.
        citation: the paper or repository to cite.
        texts: number of texts that it draws where its options do not say how many, for plans.
        texts_each: number of texts that it draws for each prompt, if its options say how many prompts, for plans.
        asked_once: for plans, whether the judge is asked once about a text instead of in both orders, or the name of the option
            that makes it so.
        draws: False for an evaluation of level "model" that draws no texts but reads `subject.trajectory()`.

    `bounds`, `digits` and `meaning` are given by metric, or once for all of them. They are recorded with every run, as is
    the direction, and tables show what was recorded.

    Example:
        >>> @register_evaluation("shouting", higher_is_better=False, meaning="exclamation marks per sample")
        ... def shouting(samples):
        ...     return samples.text.str.count("!").to_frame("shouting")
    """
    EVALUATIONS.check_name(name)
    if level not in LEVELS:
        raise EvaluationError(f"Evaluation {name!r}: level must be one of {', '.join(LEVELS)}, not {level!r}.")
    directions = dict(higher_is_better) if isinstance(higher_is_better, Mapping) else {name: higher_is_better}
    if main_score and not matching(dict.fromkeys(directions, True), main_score):
        raise EvaluationError(
            f"Evaluation {name!r}: main_score={main_score!r} is none of its metrics ({', '.join(directions)}). "
            f"Add it to higher_is_better."
        )
    main = main_score or next(iter(directions), "")
    each: list[Any] = [given if isinstance(given, Mapping) else {"*": given} for given in (bounds, digits, meaning)]

    def register(function: Function) -> Function:
        judged = "judging" in inspect.signature(function).parameters
        facts = EvaluationFacts(
            level, main, directions, each[0], each[1], each[2], judged, license, citation, texts, asked_once, draws,
            texts_each,
        )  # fmt: skip
        EVALUATIONS.register(name, function, facts=facts)
        return function

    return register


def describe_metric(entry: Entry[EvaluationFacts], name: str) -> Metric:
    """Return the `Metric` to record for a metric: as the evaluation declares it, or plo's built-in one of that name."""
    of_model = entry.facts.level == "model"
    better = ARROWS[matching(entry.facts.higher_is_better, name)]
    table = entry.name if of_model else "reward" if better else "text"
    plain = Metric(name, name.replace("_", " "), better=better, table=table)
    if (getattr(entry.load(), "__module__", None) or "").startswith("plo."):
        plain = replace(plain, bounds=usual_bounds(name)) if of_model else BUILT_IN.get(name, plain)
    declared = {fact: matching(getattr(entry.facts, fact), name) for fact in ("bounds", "digits", "meaning")}
    return replace(plain, **{fact: value for fact, value in declared.items() if value is not None})


def describe_metrics(names: Iterable[str], recorded: Iterable[str]) -> list[Metric]:
    """Return the `Metric` of each recorded metric of a run that was evaluated with the evaluations `names`."""
    known = dict(BUILT_IN)
    for entry in map(EVALUATIONS.__getitem__, dict.fromkeys(names)):
        known |= {metric: describe_metric(entry, metric) for metric in entry.facts.higher_is_better}
    kept = set(recorded)
    return [metric for name, metric in known.items() if name in kept]
