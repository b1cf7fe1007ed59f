"""What an evaluation is, the registry of them, and `evaluate`, which runs some on a frame of samples.

A **samples frame** has one row a continuation, drawn by the sampler from the policy at T = 1:

| column    | type  | meaning                                                                             |
|-----------|-------|-------------------------------------------------------------------------------------|
| prompt_id | int   | which held-out prompt                                                               |
| sample    | int   | which of the prompt's samples                                                       |
| prompt    | str   | the prompt                                                                          |
| text      | str   | the continuation alone                                                              |
| tokens    | int   | its length in tokens, EOS included                                                  |
| finished  | bool  | it ended with EOS                                                                   |
| kl        | float | nats: sequence KL(pi || ref), full distribution, summed over this sample's tokens   |
| entropy   | float | nats: full-vocabulary entropy of the policy, mean over the sample's tokens          |
| ref_nll   | float | nats a token: -log ref(text | prompt) / tokens (fluency)                            |
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from plo.configured import changed, full_name, resolve_params
from plo.errors import PloError
from plo.evals.findings import Findings
from plo.evals.judges import JudgeSession
from plo.metric import ARROWS, BUILT_IN, Metric, matching, usual_bounds
from plo.registry import Entry, Registry
from plo.subjects import Subject


@dataclass(frozen=True)
class EvaluationFacts:
    """Facts that `register_evaluation` declares of an evaluation, all but `level` by metric."""

    level: str = "sample"
    higher_is_better: Mapping[str, bool | None] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    digits: Mapping[str, int | None] = field(default_factory=dict)
    meaning: Mapping[str, str | None] = field(default_factory=dict)


EVALUATIONS = Registry("evaluation", group="plo.evaluations", facts=EvaluationFacts)
NUMBERS = ("tokens", "finished", "kl", "entropy", "ref_nll")
COLUMNS = ("prompt_id", "sample", "prompt", "text", *NUMBERS)


class EvaluationError(PloError, ValueError):
    """An evaluation cannot be run, or returned something else than it declared."""


@dataclass(frozen=True)
class SampleResults:
    """What `evaluate` found.

    Attributes:
        samples: the samples frame with the columns of the sample-level evaluations added.
        prompts: one row a prompt (index `prompt_id`): every metric, averaged over the prompt's samples.
        metrics: mean over the prompts of every metric, and `kl_se`.
    """

    samples: pd.DataFrame
    prompts: pd.DataFrame
    metrics: dict[str, float]


def register_evaluation(
    name: str,
    *,
    level: str = "sample",
    higher_is_better: bool | Mapping[str, bool | None] | None = None,
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    digits: int | Mapping[str, int] | None = None,
    meaning: str | Mapping[str, str] | None = None,
) -> Callable:
    """Register a function of a samples frame as the evaluation `name`.

    Args:
        level: "sample": returns a frame with the samples' own index; "prompt": a frame indexed by prompt_id.
            Prompt-level evaluations run after all sample-level ones and see the columns that those added.
            "model": is given a `plo.subjects.Subject` instead, asks it for text of its own prompts, and returns
            `Findings`; with an argument `judging` it is given the run's judge. Its keyword-only arguments are its options;
            one that compares with the subject's reference has an option `against`, one with prompts of its own for the judge
            an option `template`.
        higher_is_better: by metric (a column of the returned frame each); None where neither direction is
            better. One value alone: the evaluation returns one metric, called `name`. At level "model" a name may
            be a pattern ("win_rate*").
        bounds: the least and the greatest value that a metric can have, (0, 1) of a share; None: no bounds are known.
        digits: behind the point in tables; None: 3.
        meaning: what a metric is, with its unit, for the legend under the table.

    `bounds`, `digits` and `meaning` are given by metric, or once for all of them; with the direction they are recorded with
    every run, and tables show what was recorded. A prompt-level evaluation with a second argument `reference` is given the reference model's samples frame.

    Example:
        >>> @register_evaluation("shouting", higher_is_better=False, meaning="exclamation marks a sample")
        ... def shouting(samples):
        ...     return samples.text.str.count("!").to_frame("shouting")
    """
    if level not in ("sample", "prompt", "model"):
        raise EvaluationError(f"Evaluation {name!r}: level is 'sample', 'prompt' or 'model', not {level!r}.")
    directions = higher_is_better if isinstance(higher_is_better, Mapping) else {name: higher_is_better}
    each = [dict(given) if isinstance(given, Mapping) else {"*": given} for given in (bounds, digits, meaning)]
    return EVALUATIONS.register(name, facts=EvaluationFacts(level, dict(directions), *each))


def describe_metric(entry: Entry, name: str) -> Metric:
    """Return the `Metric` to record for a metric's name: as the evaluation declared it, else plo's built-in description of that name."""
    of_model = entry.facts.level == "model"
    better = ARROWS[matching(entry.facts.higher_is_better, name)]
    table = entry.name if of_model else "reward" if better else "text"
    own = (getattr(entry.load(), "__module__", None) or "").startswith("plo.")
    plain = Metric(name, name.replace("_", " "), better=better, table=table)
    if own:
        plain = replace(plain, bounds=usual_bounds(name)) if of_model else BUILT_IN.get(name, plain)
    declared = {fact: matching(getattr(entry.facts, fact), name) for fact in ("bounds", "digits", "meaning")}
    return replace(plain, **{fact: value for fact, value in declared.items() if value is not None})


def describe_metrics(names: Iterable[str], recorded: Iterable[str]) -> list[Metric]:
    """Return the `Metric` of each final metric of a run that `evaluate` measured with these evaluations."""
    recorded, found = set(recorded), []
    for entry in (EVALUATIONS[name] for name in dict.fromkeys(names)):
        found += [describe_metric(entry, name) for name in entry.facts.higher_is_better]
    declared = {metric.name: metric for metric in found}
    return [metric for name, metric in (BUILT_IN | declared).items() if name in recorded]


@dataclass(frozen=True)
class ModelEvaluation:
    """An evaluation of level "model" with its options set.

    Attributes:
        name: the registered name, and in brackets the options that differ from their defaults.
    """

    entry: Entry
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return full_name(self.entry, self.options)

    @property
    def judged(self) -> bool:
        """Whether it asks a judge."""
        return "judging" in inspect.signature(self.entry.load()).parameters

    @property
    def compares(self) -> bool:
        """Whether it compares with the subject's reference: it has an option `against`."""
        return "against" in self.options

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return changed(self.entry, self.options)

    def __call__(self, subject: Subject, judging: JudgeSession | None = None) -> Findings:
        """Run it.

        Raises:
            EvaluationError: it wants a judge and there is none, or it returned something else than `Findings`.
        """
        arguments = (subject,)
        if self.judged:
            if judging is None:
                raise EvaluationError(
                    f"The evaluation {self.name!r} asks a judge, and none is named: give one, such as "
                    f"--judge openai:MODEL or --judge hf:FOLDER (in a file: evaluation: {{judge: ...}})."
                )
            arguments += (judging,)
        found = self.entry.load()(*arguments, **self.options)
        if not isinstance(found, Findings):
            raise EvaluationError(
                f"The evaluation {self.name!r} ({self.entry.origin}) returned {type(found).__name__}, not Findings."
            )
        return found


def get_model_evaluation(name: str, options: Mapping[str, Any] | None = None) -> ModelEvaluation:
    """The evaluation `name` of level "model", its options checked.

    Raises:
        EvaluationError: it is one of samples. RegistryError: no such evaluation. HyperParameterError: no such option.
    """
    entry = EVALUATIONS[name]
    if entry.facts.level != "model":
        raise EvaluationError(f"The evaluation {name!r} reads samples ({entry.facts.level} level), not a model.")
    return ModelEvaluation(entry, resolve_params("evaluation", entry, options or {}))


def evaluate(samples: pd.DataFrame, names: Iterable[str], reference: pd.DataFrame | None = None) -> SampleResults:
    """Run the evaluations `names` on a samples frame.

    A metric is averaged over the samples of a prompt and then over the prompts, so that every prompt counts
    once. A prompt where a prompt-level metric is undefined (self-BLEU of one sample) is left out of that
    metric's mean; a sample-level NaN is a fault of the run and makes the mean NaN. `kl_se` is the standard
    error of the mean `kl`, prompts as clusters: sd of the prompts' means / sqrt(prompts); NaN for one prompt.

    Args:
        reference: samples of the reference model on the same prompts, for evaluations that compare with it.

    Raises:
        EvaluationError: a column is missing, there are no rows, or an evaluation broke its declaration.
    """
    _check(samples, "samples")
    entries = [EVALUATIONS[name] for name in dict.fromkeys(names)]
    if models := [entry.name for entry in entries if entry.facts.level == "model"]:
        raise EvaluationError(f"{', '.join(models)} asks a model for text and cannot be run on a frame of samples.")
    sample_level = [entry for entry in entries if entry.facts.level == "sample"]
    prompt_level = [entry for entry in entries if entry.facts.level == "prompt"]
    samples = _add(samples, sample_level)
    if reference is not None:
        _check(reference, "reference")
        missing = [e for e in sample_level if not set(e.facts.higher_is_better) <= set(reference.columns)]
        reference = _add(reference, missing)

    own = [*NUMBERS, *(metric for entry in sample_level for metric in entry.facts.higher_is_better)]
    prompts = samples.groupby("prompt_id", sort=True)[own].mean(skipna=False).astype(float)
    metrics = prompts.mean(skipna=False).to_dict()
    metrics["kl_se"] = float(prompts["kl"].std(ddof=1) / math.sqrt(len(prompts)))
    for entry in prompt_level:
        frame = _run(entry, samples, reference)
        prompts = _join(prompts, frame, entry)
        metrics |= frame.mean().to_dict()  # skips prompts where the metric is undefined
    return SampleResults(samples, prompts, {name: float(value) for name, value in metrics.items()})


def _check(samples: pd.DataFrame, which: str) -> None:
    missing = [column for column in COLUMNS if column not in samples.columns]
    if missing:
        raise EvaluationError(
            f"The {which} frame lacks the columns {', '.join(missing)}. "
            f"plo.evals.evaluation lists what the sampler makes."
        )
    if samples.empty:
        raise EvaluationError(f"The {which} frame has no rows: sample at least one continuation.")


def _add(samples: pd.DataFrame, entries: list[Entry]) -> pd.DataFrame:
    ours = {metric for entry in entries for metric in entry.facts.higher_is_better}
    samples = samples.drop(columns=[c for c in samples.columns if c in ours and c not in COLUMNS])
    for entry in entries:
        samples = _join(samples, _run(entry, samples, None), entry)
    return samples


def _run(entry: Entry, samples: pd.DataFrame, reference: pd.DataFrame | None) -> pd.DataFrame:
    function, declared = entry.load(), list(entry.facts.higher_is_better)
    arguments = (samples,)
    if "reference" in inspect.signature(function).parameters:
        if reference is None:
            raise EvaluationError(
                f"The evaluation {entry.name!r} compares with the reference model's samples: pass "
                f"evaluate(..., reference=frame). For the reference itself that is its own frame."
            )
        arguments += (reference,)
    frame = function(*arguments)
    if sorted(frame.columns) != sorted(declared):
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) declared the metrics {sorted(declared)} "
            f"but returned {sorted(frame.columns)}. "
            f"List them in register_evaluation(higher_is_better={{...}})."
        )
    return frame[declared].astype(float)


def _join(left: pd.DataFrame, right: pd.DataFrame, entry: Entry) -> pd.DataFrame:
    taken = [column for column in right.columns if column in left.columns]
    if taken:
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) returned {', '.join(taken)}, "
            f"which is there already. Rename its metric."
        )
    rows = "samples" if entry.facts.level == "sample" else "prompts"
    if not right.index.sort_values().equals(left.index.sort_values()):
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) returned {len(right)} rows with another index "
            f"than the {len(left)} {rows}. It keeps one row for each of them, with their index."
        )
    if left.index.equals(right.index):  # also right where an index has duplicates
        return pd.concat([left, right], axis=1)
    return left.join(right)
