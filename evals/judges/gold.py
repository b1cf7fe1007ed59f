"""Known reward functions as judges."""

from collections.abc import Callable, Sequence

from plo.evals.judges.judge import Judge, Question, Verdict
from plo.evals.judges.template import Template
from plo.identity import code_identity
from plo.registry import Registry

GOLDS = Registry("gold reward", group="plo.golds")


def register_gold(name: str, *, replace: bool = False) -> Callable:
    """Register a function text -> reward, so that `gold:<name>` is a judge.

    Example:
        >>> @register_gold("short")
        ... def short(text):
        ...     return -len(text)
    """
    return GOLDS.register(name, replace=replace)


class Gold(Judge):
    """The judge `gold:<name>`: p = 1, 1/2 or 0 where the reward of b is higher than that of a, equal, or lower.

    It reads the answers alone, neither the question nor the judge prompt. It costs nothing and is not cached.

    Raises:
        RegistryError: there is no such gold reward.
    """

    pointwise = True
    cached = False
    repeatable = False

    def __init__(self, argument: str, template: Template):
        self.name, self.reward = f"gold:{argument}", GOLDS[argument].load()
        self.version = code_identity(self.reward)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return [Verdict(_compared(self.reward(q.a), self.reward(q.b))) for q in questions]


def _compared(a: float, b: float) -> float | None:
    """Return p, or None where a reward is NaN."""
    return None if a != a or b != b else (b > a) + 0.5 * (b == a)


GOLDS.register("sentiment", "plo.evals.sentiment:compound")
