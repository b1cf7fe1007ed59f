"""Key of a recorded evaluation: what two findings of one evaluation share if they can be compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plo.evals import ModelEvaluation
from plo.evals.judges import JudgeSession
from plo.identity import code_identity, sha256
from plo.paths import content_digest


@dataclass(frozen=True)
class EvaluationKey:
    """All that two findings of an evaluation must share to be compared.

    Attributes:
        judging: the judge, where one is asked.
        digest: of the evaluation's code and the code it calls, its options with the content of the files they name, the model compared
            with, the judge with its version (of weights and prompt).
        but_judge: the same without the judge.
        params: what of that is shown: options that differ from their defaults, judge, against.
    """

    judging: JudgeSession | None
    digest: str
    but_judge: str
    params: dict[str, str]

    @classmethod
    def of(cls, evaluation: ModelEvaluation, judging: JudgeSession | None, against: Any = None) -> "EvaluationKey":
        """Of an evaluation; `against`: the subject compared with, where that is not a part of what is evaluated.

        Raises:
            JudgeError, TemplateError: the judge cannot be had.
        """
        params = {option: str(value) for option, value in evaluation.changed.items()}
        parts: list[Any] = [evaluation.entry.name, code_identity(evaluation.entry.load())]
        parts += [[option, _content(value)] for option, value in sorted(evaluation.options.items())]
        if against is not None and evaluation.compares:
            parts, params = [*parts, against.identity], params | {"against": against.name}
        if not evaluation.asks_judge or judging is None:
            return cls(None, sha256(parts), sha256(parts), params)
        judge = judging.judge(evaluation.options.get("template", "instruction"))
        params |= {"judge": judging.name}
        return cls(judging, sha256([*parts, judge.name, judge.version]), sha256(parts), params)


def _content(option: Any) -> str:
    """An option's value; of a file or a folder its content, wherever it lies."""
    if isinstance(option, Path) and option.expanduser().exists():
        return content_digest(option.expanduser())
    return str(option)
