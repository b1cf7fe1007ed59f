"""Key of a recorded evaluation: a digest of what two findings must share to be compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plo.evals import ModelEvaluation
from plo.evals.judges import JudgeSession
from plo.identity import code_identity, sha256
from plo.paths import content_digest
from plo.subjects.engines import DEFAULT, setting_of
from plo.subjects.sampling import VERSION


@dataclass(frozen=True)
class EvaluationKey:
    """Key that two findings of an evaluation must share to be compared.

    Attributes:
        digest: hash of the evaluation's code with the code it calls, the way of sampling, its options with the content of files they name, the
            model compared with, and the judge with the version of its weights and prompt.
        but_judge: the same hash without the judge.
        params: readable part of the key: options that differ from their defaults, judge, and model compared with.
    """

    judging: JudgeSession | None
    digest: str
    but_judge: str
    params: dict[str, str]

    @classmethod
    def of(
        cls,
        evaluation: ModelEvaluation,
        judging: JudgeSession | None,
        against: Any = None,
        engine: str = DEFAULT,
    ) -> "EvaluationKey":
        """Return the key of an evaluation.

        Args:
            against: the subject compared with, unless it is a part of what is evaluated.
            engine: what samples. Samples of two kinds of engines have different noise; where a server is does not count.

        Raises:
            JudgeError, TemplateError: the judge cannot be loaded.
        """
        params = {option: str(value) for option, value in evaluation.changed.items()}
        parts: list[Any] = [evaluation.entry.name, code_identity(evaluation.entry.load()), VERSION]
        parts += [[option, _content(value)] for option, value in sorted(evaluation.options.items())]
        if (sampler := setting_of(engine)) != DEFAULT:
            parts, params = [*parts, sampler], params | {"sampler": sampler}
        if against is not None and evaluation.compares:
            parts, params = [*parts, against.identity], params | {"against": against.name}
        if not evaluation.asks_judge or judging is None:
            return cls(None, sha256(parts), sha256(parts), params)
        judge = judging.judge(evaluation.options.get("template", "instruction"))
        params |= {"judge": judging.name}
        asked = [judge.name, judge.version]
        if judging.repeats > 1:
            asked, params = [*asked, judging.repeats], params | {"repeats": str(judging.repeats)}
        return cls(judging, sha256([*parts, *asked]), sha256(parts), params)


def _content(option: Any) -> str:
    """Return an option's value as text; for a file or folder, the digest of its content."""
    if isinstance(option, Path) and option.expanduser().exists():
        return content_digest(option.expanduser())
    return str(option)
