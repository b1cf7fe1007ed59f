"""Plan of the evaluations of trained models: how many texts they draw, and how often they ask the judge at which cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plo.config import EvaluationConfig
from plo.data import Pair
from plo.evals import ModelEvaluation
from plo.evals.judges import JudgeSession, Question
from plo.evals.judges.judge import is_light, kind_property

LOOKED_AT = 32  # held-out pairs that stand for the questions, of which the cost is estimated


@dataclass(frozen=True)
class PlannedEvaluation:
    """An evaluation of level "model", as each cell gets it.

    Attributes:
        name: with the options that differ from their defaults.
        texts: number of texts that the model draws; None: not known.
        tokens: maximum number of tokens of a text.
        calls: maximum number of questions to the judge; None: not known.
        money: roughly their cost, in the currency of the judge's prices; NaN: the judge has no prices.
    """

    name: str
    texts: int | None
    tokens: int
    calls: int | None
    money: float


def plan_evaluations(
    evaluations: Sequence[ModelEvaluation], config: EvaluationConfig, pairs: Sequence[Pair], points: int = 1
) -> tuple[PlannedEvaluation, ...]:
    """Return the plan of the evaluations of one trained model. No judge is asked, and none is loaded.

    Args:
        pairs: held-out pairs, whose texts stand for the questions.
        points: number of evaluation points of a training.
    """
    judging = JudgeSession(config.judge) if config.judge is not None else None
    return tuple(_planned(evaluation, judging, config, pairs, points) for evaluation in evaluations)


def _planned(
    evaluation: ModelEvaluation,
    judging: JudgeSession | None,
    config: EvaluationConfig,
    pairs: Sequence[Pair],
    points: int,
) -> PlannedEvaluation:
    options = evaluation.options
    facts = evaluation.entry.facts
    texts = texts_of(evaluation) if facts.draws else 0
    tokens = int(options.get("max_new_tokens") or 0)
    calls, money = 0, 0.0
    if evaluation.asks_judge and judging is not None:
        once = options.get(facts.asked_once) if isinstance(facts.asked_once, str) else facts.asked_once
        each = judging.repeats * (1 if once or kind_property(judging.spec, "pointwise") else 2)
        judged = texts if facts.draws else points * _drawn_already(options, config)
        calls = None if judged is None else judged * _opponents(options) * each
        money = math.nan if calls is None else calls * price_of(judging, pairs, options.get("template", "instruction"))
    return PlannedEvaluation(evaluation.name, texts, tokens, calls, money)


def texts_of(evaluation: ModelEvaluation) -> int | None:
    """Return how many texts an evaluation draws by its options, or by its registration where they do not say; else None."""
    options, facts = evaluation.options, evaluation.entry.facts
    named = (options.get(name) for name in ("instructions", "questions", "prompts"))
    asked, whole = next(filter(None, named), None), facts.texts
    if asked is not None:
        asked *= facts.texts_each
        whole = asked if whole is None else min(asked, whole)
    if whole is None or "max_new_tokens" not in options:
        return None
    return whole * options.get("samples", 1) * len(set(options.get("temperatures", (1.0,))))


def _opponents(options: dict[str, Any]) -> int:
    """Return with how many opponents an evaluation compares each text."""
    against = options.get("against") or "one"
    return 1 if isinstance(against, str) else len(set(against))


def _drawn_already(options: dict[str, Any], config: EvaluationConfig) -> int:
    """Return how many of the samples of one evaluation point an evaluation reads."""
    prompts, samples = options.get("prompts", config.prompts), options.get("samples", config.samples)
    return min(prompts, config.prompts) * min(samples, config.samples)


def price_of(judging: JudgeSession, pairs: Sequence[Pair], template: str = "instruction") -> float:
    """Return the cost of a question; 0 for a judge that runs on this machine.

    Args:
        pairs: pairs whose texts stand for the questions.
    """
    if not is_light(judging.spec):
        return 0.0
    rows = [pair.row for pair in pairs[:LOOKED_AT] if pair.row is not None]
    questions = [
        Question(pair.prompt, _text(row.chosen), _text(row.rejected)) for pair, row in zip(pairs, rows, strict=False)
    ]
    return judging.judge(template).estimate(questions) / len(questions) if questions else math.nan


def _text(response: Any) -> str:
    return response if isinstance(response, str) else "\n".join(message["content"] for message in response)
