"""`evaluate`, which runs evaluations of level "sample" and "prompt" on a frame of samples.

A **samples frame** has one row per continuation, drawn by the sampler from the policy at T = 1:

| column    | type  | meaning                                                                             |
|-----------|-------|-------------------------------------------------------------------------------------|
| prompt_id | int   | number of the held-out prompt                                                       |
| sample    | int   | number of the sample among the prompt's samples                                     |
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from plo.evals.registry import EVALUATIONS, EvaluationError, EvaluationFacts
from plo.registry import Entry

NUMBERS = ("tokens", "finished", "kl", "entropy", "ref_nll")
COLUMNS = ("prompt_id", "sample", "prompt", "text", *NUMBERS)


@dataclass(frozen=True)
class SampleResults:
    """Results of `evaluate`.

    Attributes:
        samples: the samples frame with the columns of the sample-level evaluations added.
        prompts: one row per prompt (index `prompt_id`): every metric, averaged over the prompt's samples.
        metrics: mean over the prompts of every metric, and `kl_se`.
    """

    samples: pd.DataFrame
    prompts: pd.DataFrame
    metrics: dict[str, float]


def evaluate(samples: pd.DataFrame, names: Iterable[str], reference: pd.DataFrame | None = None) -> SampleResults:
    """Run the evaluations `names` on a samples frame.

    A metric is averaged over the samples of a prompt and then over the prompts, so that every prompt counts
    once. A prompt where a prompt-level metric is undefined (self-BLEU of one sample) is left out of that
    metric's mean; a sample-level NaN is an error of the run and makes the mean NaN. `kl_se` is the standard
    error of the mean `kl` with prompts as clusters: sd of the prompts' means / sqrt(prompts); NaN for one prompt.

    Args:
        reference: samples of the reference model on the same prompts, for evaluations that compare with it.

    Raises:
        EvaluationError: a column is missing, there are no rows, or an evaluation returned something it did not declare.
    """
    _check(samples, "samples")
    entries = [EVALUATIONS[name] for name in dict.fromkeys(names)]
    if models := [entry.name for entry in entries if entry.facts.level == "model"]:
        raise EvaluationError(f"{', '.join(models)} asks a model for text and cannot run on a frame of samples.")
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
    return SampleResults(samples, prompts, {str(name): float(value) for name, value in metrics.items()})


def _check(samples: pd.DataFrame, which: str) -> None:
    if missing := [column for column in COLUMNS if column not in samples.columns]:
        raise EvaluationError(
            f"The {which} frame lacks the columns {', '.join(missing)}. plo.evals.sample_level lists the columns of a "
            f"samples frame."
        )
    if samples.empty:
        raise EvaluationError(f"The {which} frame has no rows: sample at least one continuation.")


def _add(samples: pd.DataFrame, entries: Sequence[Entry[EvaluationFacts]]) -> pd.DataFrame:
    ours = {metric for entry in entries for metric in entry.facts.higher_is_better}
    samples = samples.drop(columns=[c for c in samples.columns if c in ours and c not in COLUMNS])
    for entry in entries:
        samples = _join(samples, _run(entry, samples, None), entry)
    return samples


def _run(entry: Entry[EvaluationFacts], samples: pd.DataFrame, reference: pd.DataFrame | None) -> pd.DataFrame:
    function, declared = entry.load(), list(entry.facts.higher_is_better)
    arguments: tuple[Any, ...] = (samples,)
    if "reference" in inspect.signature(function).parameters:
        if reference is None:
            raise EvaluationError(
                f"The evaluation {entry.name!r} compares with the reference model's samples: pass "
                f"evaluate(..., reference=frame). For the reference itself, pass its own frame."
            )
        arguments += (reference,)
    frame = function(*arguments)
    if sorted(frame.columns) != sorted(declared):
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) declared the metrics {sorted(declared)} but returned "
            f"{sorted(frame.columns)}. List them in register_evaluation(higher_is_better={{...}})."
        )
    return frame[declared].astype(float)


def _join(left: pd.DataFrame, right: pd.DataFrame, entry: Entry[EvaluationFacts]) -> pd.DataFrame:
    if taken := [column for column in right.columns if column in left.columns]:
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) returned {', '.join(taken)}, which is taken. Rename its metric."
        )
    rows = "samples" if entry.facts.level == "sample" else "prompts"
    if not right.index.sort_values().equals(left.index.sort_values()):
        raise EvaluationError(
            f"The evaluation {entry.name!r} ({entry.origin}) returned {len(right)} rows with another index "
            f"than the {len(left)} {rows}. Return one row for each of them, with their index."
        )
    if left.index.equals(right.index):  # also right where an index has duplicates
        return pd.concat([left, right], axis=1)
    return left.join(right)
