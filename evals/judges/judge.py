"""What a judge is, and the registry of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plo.configured import checked, full_name
from plo.evals.judges.template import Template, get_template
from plo.registry import Registry, source_of

JUDGES = Registry("judge", group="plo.judges")


class JudgeError(ValueError):
    """A judge that cannot be had or asked. The message names it, the place and the remedy."""


@dataclass(frozen=True)
class Question:
    """Which answer to `prompt` is better, `a` (shown first) or `b`?"""

    prompt: str
    a: str
    b: str

    def swapped(self) -> "Question":
        return Question(self.prompt, self.b, self.a)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one question in one order.

    Attributes:
        p: P(b is better), in [0, 1]; None where the answer could not be read.
        answer: what the judge said, where it said something.
        cost: money spent on it, in the currency of the judge's prices.
    """

    p: float | None
    answer: str = ""
    cost: float = 0.0


class Judge:
    """Answers questions. A subclass gives `judge`; `get_judge` makes one of a callable `(prompt, a, b) -> P(b better)`.

    Attributes:
        name: what tables call it: "openai:gpt-4o".
        version: everything its verdicts depend on beside its name and the question (judge prompt, settings, weights).
        pointwise: it scores each answer alone, so that the order cannot matter: asked in one order only.
        cached: its verdicts are worth keeping, and depend on nothing but name, version and question.
        recorded: it reads its verdicts from a record, so that asking it again tells nothing.
        batch: how many questions it wants at a time.
        concurrency: how many such batches may be under way at once.
    """

    name = "judge"
    version = ""
    pointwise = False
    cached = True
    recorded = False
    batch = 1
    concurrency = 1

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, in the order of the questions."""
        raise NotImplementedError

    def estimate(self, questions: Sequence[Question]) -> float:
        """Money that these questions will cost at most, about; 0 for a judge that is free, NaN where nobody knows."""
        return 0.0

    def __call__(self, prompt: str, a: str, b: str) -> float | None:
        """P(b better)."""
        return self.judge([Question(prompt, a, b)])[0].p


def register_judge(name: str, *, replace: bool = False, **facts: Any) -> Callable:
    """Register a kind of judge: a subclass of `Judge`, or a function `(prompt, a, b, *, options...) -> P(b better)`.

    A subclass is built as `Kind(argument, template, **options)`, where `argument` is what stands after the colon
    ("gpt-4o" of "openai:gpt-4o", "" without one) and `template` the judge's prompt.

    Example:
        >>> @register_judge("longer")
        ... def longer(prompt, a, b):
        ...     return float(len(b) > len(a)) if len(a) != len(b) else 0.5
    """
    return JUDGES.register(name, replace=replace, **facts)


def get_judge(spec: str | Mapping[str, Any] | Callable | Judge, template: str | Template = "instruction") -> Judge:
    """A judge by "kind:argument", {"kind:argument": {option: value}}, a callable, or a judge.

    A callable given as it is may depend on anything, so its verdicts are kept in the cache only where it has an
    attribute `version`; a registered function's version is the text of its file.

    Args:
        template: the judge's prompt, by name or file; judges that read no prompt ignore it.

    Raises:
        JudgeError: the specification holds more than one name, or an argument that the judge does not take.
        RegistryError: no such kind. HyperParameterError: no such option.
    """
    if isinstance(spec, Judge):
        return spec
    if isinstance(spec, Mapping):
        if len(spec) != 1:
            raise JudgeError(
                f"The judge {dict(spec)!r} is not one name with its options: write {{name: {{option: value}}}}."
            )
        ((spec, options),) = spec.items()
    else:
        options = {}
    if not isinstance(spec, str):
        version = getattr(spec, "version", None)
        judge = _Function(spec, getattr(spec, "__name__", type(spec).__name__), {}, str(version))
        judge.cached = version is not None
        return judge
    kind, _, argument = spec.partition(":")
    entry = JUDGES[kind]
    target, params = entry.load(), checked("judge", entry, options or {})
    if isinstance(target, type) and issubclass(target, Judge):
        return target(argument, get_template(template), **params)
    if argument:
        raise JudgeError(
            f"The judge {kind!r} is a function and takes nothing after a colon: write {kind!r}, not {spec!r}."
        )
    return _Function(target, full_name(entry, params), params, source_of(target))


class _Function(Judge):
    def __init__(self, function: Callable, name: str, params: dict[str, Any], version: str):
        self.function, self.name, self.params, self.version = function, name, params, version

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        answers = [self.function(q.prompt, q.a, q.b, **self.params) for q in questions]
        return [Verdict(None if p is None else float(p)) for p in answers]
