"""What a judge is, and the registry of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plo.configured import HyperParameterError, full_name, read_call, resolve_params, shown
from plo.errors import PloError
from plo.evals.judges.template import Template, get_template
from plo.identity import code_identity
from plo.registry import Entry, Registry

JUDGES = Registry("judge", group="plo.judges")


class JudgeError(PloError, ValueError):
    """A judge that cannot be had or asked. The message names it, the place and the remedy."""


class TransientError(JudgeError):
    """A call that failed and may succeed when it is made again: a rate limit, a time-out, a garbled reply.

    Args:
        wait: seconds that the server asks to wait; None: it does not say.
        cost: money that the failed call may have cost.
    """

    def __init__(self, message: str, wait: float | None = None, cost: float = 0.0):
        super().__init__(message)
        self.wait, self.cost = wait, cost


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
        cost: money spent on it, in the currency of the judge's prices; estimated where the server does not say.
        refused: the judge does not take this question (too long, filtered); `answer` is its reason. It is not asked
            again in this run, and asked anew in the next.
    """

    p: float | None
    answer: str = ""
    cost: float = 0.0
    refused: bool = False


class Judge:
    """Answers questions. A subclass gives `judge`; `get_judge` makes one of a callable `(prompt, a, b) -> P(b better)`.

    Attributes:
        name: what tables call it: "openai:my-judge".
        template: the prompt it is asked with; None: it reads none.
        version: everything its verdicts depend on beside its name and the question (judge prompt, settings, weights).
        pointwise: it scores each answer alone, so that the order cannot matter: asked in one order only.
        cached: its verdicts are worth keeping, and depend on nothing but name, version and question.
        recorded: it reads its verdicts from a record, so that asking it again tells nothing.
        light: to make one loads nothing and calls nobody.
        concurrency: how many questions may be under way at once.
        retries: how often `JudgeSession` makes a call again that failed with `TransientError`.
        timeout: seconds after which a call ends at the latest; None: nothing is known of that.
    """

    name = "judge"
    template: Template | None = None
    version = ""
    pointwise = False
    cached = True
    recorded = False
    light = True
    concurrency = 1
    retries = 0
    timeout: float | None = None

    @property
    def remarks(self) -> list[str]:
        """Return notes to print with this judge's verdicts, a sentence each, from its calls so far."""
        return []

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, in the order of the questions; one call each, not made again where it fails."""
        raise NotImplementedError

    def estimate(self, questions: Sequence[Question]) -> float:
        """Money that these questions will cost at most, about; 0 for a judge that is free, NaN where nobody knows."""
        return 0.0

    def __call__(self, prompt: str, a: str, b: str) -> float | None:
        """P(b better)."""
        return self.judge([Question(prompt, a, b)])[0].p


def register_judge(name: str, *, replace: bool = False) -> Callable:
    """Register a kind of judge: a subclass of `Judge`, or a function `(prompt, a, b, *, options...) -> P(b better)`.

    A subclass is built as `Kind(argument, template, **options)`, where `argument` is what stands after the colon
    ("my-judge" of "openai:my-judge", "" without one) and `template` the judge's prompt.

    Example:
        >>> @register_judge("longer")
        ... def longer(prompt, a, b):
        ...     return float(len(b) > len(a)) if len(a) != len(b) else 0.5
    """
    return JUDGES.register(name, replace=replace)


def read_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`"openai:m(price_in=2.5)"` or `{"openai:m": {"price_in": 2.5}}` as ("openai:m", {"price_in": 2.5}).

    The name in a mapping is taken as it is, so that one which ends in brackets ("hf:my model (2)") can be given there.

    Raises:
        JudgeError: it is neither.
    """
    if isinstance(spec, Mapping):
        (name, options), *more = spec.items() or [(None, None)]
        if more or not isinstance(name, str) or not isinstance(options or {}, Mapping):
            raise JudgeError(
                f"The judge {dict(spec)!r} is not one name with its options: write {{name: {{option: value}}}}."
            )
        return name, dict(options or {})
    name = spec.strip()
    if not name.endswith(")"):
        return name, {}
    for start in (i for i, letter in enumerate(name) if letter == "("):
        try:
            return name[:start].rstrip(), read_call(f"judge{name[start:]}")[1]
        except HyperParameterError:  # brackets of a folder's name
            continue
    raise JudgeError(
        f"The options of the judge {spec!r} cannot be read: write KIND:NAME(option=value, ...), texts and names of "
        f"fields in quotes. A name that itself ends in brackets is given as {{name: {{option: value}}}}."
    )


def spec_name(spec: str | Mapping[str, Any] | Callable | Judge) -> str:
    """What a specification calls its judge, without options."""
    if isinstance(spec, str | Mapping):
        return read_spec(spec)[0]
    return spec.name if isinstance(spec, Judge) else getattr(spec, "__name__", type(spec).__name__)


def spec_text(spec: str | Mapping[str, Any] | Callable | Judge) -> str:
    """A specification as the command line takes it, its options in brackets."""
    if not isinstance(spec, Mapping):
        return spec if isinstance(spec, str) else spec_name(spec)
    name, options = read_spec(spec)
    return f"{name}({', '.join(f'{key}={shown(value)}' for key, value in options.items())})" if options else name


def check_spec(spec: str | Mapping[str, Any] | Callable | Judge, template: str | Template = "instruction") -> None:
    """Raise what `get_judge` would, as far as that shows without loading a model or calling anybody."""
    if isinstance(spec, str | Mapping):
        entry, _, _ = _registered(spec)
        if not getattr(entry.load(), "light", True):
            return
    get_judge(spec, template)


def get_judge(spec: str | Mapping[str, Any] | Callable | Judge, template: str | Template = "instruction") -> Judge:
    """A judge by "kind:argument(option=value)", {"kind:argument": {option: value}}, a callable, or a judge.

    A callable given as it is may depend on anything, so its verdicts are kept in the cache only where it has an
    attribute `version`; a registered function's version is the hash of its code.

    Args:
        template: the judge's prompt, by name or file; judges that read no prompt ignore it.

    Raises:
        JudgeError: the specification cannot be read, or has an argument that the judge does not take.
        RegistryError: no such kind. HyperParameterError: no such option.

    Example:
        >>> get_judge("openai:my-judge@http://localhost:8000/v1(timeout=9, request={'seed': 1})").name
        'openai:my-judge@http://localhost:8000/v1'
    """
    if isinstance(spec, Judge):
        return spec
    if not isinstance(spec, str | Mapping):
        if not callable(spec):
            raise JudgeError(f"Cannot make a judge of {spec!r}: give a name, a mapping or a function (prompt, a, b).")
        version = getattr(spec, "version", None)
        judge = _Function(spec, spec_name(spec), {}, str(version))
        judge.cached = version is not None
        return judge
    entry, argument, params = _registered(spec)
    target = entry.load()
    if isinstance(target, type) and issubclass(target, Judge):
        return target(argument, get_template(template), **params)
    if argument:
        raise JudgeError(
            f"The judge {entry.name!r} is a function and takes nothing after a colon: write {entry.name!r}, not "
            f"{spec!r}."
        )
    return _Function(target, full_name(entry, params), params, code_identity(target))


def _registered(spec: str | Mapping[str, Any]) -> tuple[Entry, str, dict[str, Any]]:
    """The kind of judge, what stands after the colon, and all its options."""
    name, options = read_spec(spec)
    kind, _, argument = name.partition(":")
    entry = JUDGES[kind]
    return entry, argument, resolve_params("judge", entry, options)


class _Function(Judge):
    def __init__(self, function: Callable, name: str, params: dict[str, Any], version: str):
        self.function, self.name, self.params, self.version = function, name, params, version

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        answers = [self.function(q.prompt, q.a, q.b, **self.params) for q in questions]
        return [Verdict(None if p is None else float(p)) for p in answers]
