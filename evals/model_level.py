"""Evaluations of level "model": an evaluation with its options set, ready to run on a subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plo.configured import changed, full_name, resolve_params
from plo.evals.findings import Findings
from plo.evals.judges import JudgeSession
from plo.evals.registry import EVALUATIONS, EvaluationError, EvaluationFacts
from plo.registry import Entry
from plo.subjects import Subject


@dataclass(frozen=True)
class ModelEvaluation:
    """An evaluation of level "model" with its options set."""

    entry: Entry[EvaluationFacts]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The registered name, followed by the options that differ from their defaults in brackets."""
        return full_name(self.entry, self.options)

    @property
    def asks_judge(self) -> bool:
        """True if the evaluation asks a judge."""
        return self.entry.facts.asks_judge

    @property
    def compares(self) -> bool:
        """True if the evaluation compares with the subject's reference, that is, has an option `against`."""
        return "against" in self.options

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return changed(self.entry, self.options)

    def __call__(self, subject: Subject, judging: JudgeSession | None = None) -> Findings:
        """Run the evaluation on a subject.

        Raises:
            EvaluationError: it needs a judge and there is none, or it returned something other than `Findings`.
        """
        arguments: tuple[Any, ...] = (subject,)
        if self.asks_judge:
            if judging is None:
                raise EvaluationError(
                    f"The evaluation {self.name!r} asks a judge, and none is named: name one, such as "
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
    """Return the evaluation `name` of level "model" with these options, which are checked.

    Raises:
        EvaluationError: the evaluation reads samples.
        RegistryError: there is no such evaluation.
        HyperParameterError: it has no such option, or cannot take that value.
    """
    entry = EVALUATIONS[name]
    if entry.facts.level != "model":
        raise EvaluationError(f"The evaluation {name!r} reads samples ({entry.facts.level} level), not a model.")
    return ModelEvaluation(entry, resolve_params("evaluation", entry, options or {}))
