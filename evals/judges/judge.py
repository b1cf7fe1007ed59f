"""The protocol of judges, their registry, and specifications such as "openai:MODEL(price_in=2.5)"."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plo.configured import HyperParameterError, full_name, read_call, resolve_params, shown
from plo.errors import PloError
from plo.evals.judges.template import Template, get_template
from plo.identity import code_identity
from plo.registry import Entry, Registry

JUDGES = Registry("judge", group="plo.judges")
MOST_REPEATS = 100


class JudgeError(PloError, ValueError):
    """A judge cannot be made or asked. The message names the judge, the cause and the remedy."""


class TransientError(JudgeError):
    """A call failed and may succeed when retried: a rate limit, a time-out, a garbled reply.

    Args:
        wait: seconds to wait as the server demands; None: it does not say.
        cost: money that the failed call may have cost.
    """

    def __init__(self, message: str, wait: float | None = None, cost: float = 0.0):
        super().__init__(message)
        self.wait, self.cost, self.later = wait, cost, True


@dataclass(frozen=True)
class Question:
    """The question which answer to `prompt` is better, `a` (shown first) or `b`.

    Attributes:
        repeat: 0 when the question is asked for the first time, 1 when it is asked once more, and so on. Every repeat has a
            verdict of its own.
    """

    prompt: str
    a: str
    b: str
    repeat: int = 0

    def swapped(self) -> "Question":
        """Return the question with its answers in the other order."""
        return Question(self.prompt, self.b, self.a, self.repeat)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one question in one order.

    Attributes:
        p: P(b is better), in [0, 1]; None if the answer could not be read.
        answer: text of the judge's answer, if any.
        cost: money spent, in the currency of the judge's prices; an estimate where the server does not report usage.
        refused: the judge rejects this question (too long, filtered), for the reason in `answer`. It is not asked again in
            this run, but in the next.
    """

    p: float | None
    answer: str = ""
    cost: float = 0.0
    refused: bool = False


class Judge:
    """Base class of judges: a subclass implements `judge`; `get_judge` wraps a callable `(prompt, a, b) -> P(b better)`.

    Attributes:
        name: name in tables: "openai:my-judge".
        template: the judge prompt; None: the judge reads none.
        version: all that verdicts depend on besides name and question (judge prompt, settings, weights).
        pointwise: it scores each answer by itself, so that order cannot matter and one order is asked.
        cached: its verdicts are worth keeping, and depend on name, version and question alone.
        recorded: its verdicts come from a record, so that asking again gives nothing new.
        repeatable: asking the same question again may give another verdict.
        light: creating the judge loads nothing and calls no server; see `is_light`.
        concurrency: maximum number of simultaneous calls.
        batch: number of questions that one call of `judge` gets.
        retries: how often `JudgeSession` retries a call that failed with `TransientError`.
        timeout: maximum duration of a call in seconds; None: unknown.
    """

    name = "judge"
    template: Template | None = None
    version = ""
    pointwise = False
    cached = True
    recorded = False
    repeatable = True
    light = True
    concurrency = 1
    batch = 1
    retries = 0
    timeout: float | None = None

    @classmethod
    def is_light(cls, argument: str) -> bool:
        """Return whether creating the judge with this text after the colon loads nothing and calls no server."""
        return cls.light

    @property
    def remarks(self) -> list[str]:
        """Notes to print with this judge's verdicts, one sentence each, from its calls so far."""
        return []

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in order; one call each, without retries."""
        raise NotImplementedError

    def estimate(self, questions: Sequence[Question]) -> float:
        """Return roughly the most that these questions cost; 0 for a free judge, NaN where prices are unknown."""
        return 0.0

    def __call__(self, prompt: str, a: str, b: str) -> float | None:
        """Return P(b better)."""
        return self.judge([Question(prompt, a, b)])[0].p


JudgeSpec = str | Mapping[str, Any] | Callable | Judge


def register_judge(name: str, *, replace: bool = False) -> Callable:
    """Register a kind of judge: a subclass of `Judge`, or a function `(prompt, a, b, *, options...) -> P(b better)`.

    A subclass is created as `Kind(argument, template, **options)`, where `argument` is the text after the colon
    ("my-judge" of "openai:my-judge", "" without one) and `template` the judge prompt.

    Example:
        >>> @register_judge("longer")
        ... def longer(prompt, a, b):
        ...     return float(len(b) > len(a)) if len(a) != len(b) else 0.5
    """
    return JUDGES.register(name, replace=replace)


def read_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Parse `"openai:m(price_in=2.5)"` or `{"openai:m": {"price_in": 2.5}}` into ("openai:m", {"price_in": 2.5}).

    In a mapping the name is taken literally, so that a name which ends in brackets ("hf:my model (2)") can be given there.

    Raises:
        JudgeError: the specification has neither form.
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
        except HyperParameterError:  # brackets in a folder's name
            continue
    raise JudgeError(
        f"The options of the judge {spec!r} cannot be read: write KIND:NAME(option=value, ...), with texts and "
        f"names of fields in quotes. Give a name that itself ends in brackets as {{name: {{option: value}}}}."
    )


def split_repeats(spec: JudgeSpec) -> tuple[JudgeSpec, int]:
    """Return a specification without its option `repeats`, which every judge has, and its value: 1 where there is none.

    Raises:
        JudgeError: `repeats` is not a whole number from 1 to 100, or the judge always repeats its verdict.

    Example:
        >>> split_repeats("openai:m(repeats=3)")
        ('openai:m', 3)
    """
    if not isinstance(spec, str | Mapping):
        return spec, 1
    name, options = read_spec(spec)
    if "repeats" not in options:
        return spec, 1
    repeats = options.pop("repeats")
    repeats = int(repeats) if isinstance(repeats, str) and repeats.isdecimal() else repeats
    if type(repeats) is not int or not 1 <= repeats <= MOST_REPEATS:
        raise JudgeError(
            f"The judge {name} has repeats={repeats!r}, which is how often each question is asked: a whole number from 1 to "
            f"{MOST_REPEATS}."
        )
    rest = {name: options} if options else name
    check_repeats(name, kind_property(rest, "repeatable"), repeats)
    return rest, repeats


def check_repeats(judge: str, repeatable: bool, repeats: int) -> None:
    """Raise a JudgeError if a judge that always gives the same verdict is to be asked several times."""
    if repeats > 1 and not repeatable:
        raise JudgeError(
            f"The judge {judge} gives the same verdict whenever it is asked, so repeats={repeats} would only cost time: leave "
            f"repeats out."
        )


def kind_property(spec: JudgeSpec, name: str) -> Any:
    """Return an attribute of the kind of judge that a specification names, without making or loading the judge."""
    kind: Any = _registered(spec)[0].load() if isinstance(spec, str | Mapping) else spec
    return getattr(kind, name, getattr(Judge, name))


def is_light(spec: JudgeSpec) -> bool:
    """Return whether `get_judge` makes a specification's judge without loading a model or calling a server."""
    if not isinstance(spec, str | Mapping):
        return True
    kind, _, argument = read_spec(spec)[0].partition(":")
    made = JUDGES[kind].load()
    return made.is_light(argument) if isinstance(made, type) and issubclass(made, Judge) else True


def spec_name(spec: JudgeSpec) -> str:
    """Return the name of a specification's judge, without options."""
    if isinstance(spec, str | Mapping):
        return read_spec(spec)[0]
    return spec.name if isinstance(spec, Judge) else getattr(spec, "__name__", type(spec).__name__)


def spec_text(spec: JudgeSpec) -> str:
    """Return a specification as the command line takes it, with its options in brackets."""
    if not isinstance(spec, Mapping):
        return spec if isinstance(spec, str) else spec_name(spec)
    name, options = read_spec(spec)
    return f"{name}({', '.join(f'{key}={shown(value)}' for key, value in options.items())})" if options else name


def check_spec(spec: JudgeSpec, template: str | Template = "instruction") -> None:
    """Raise the errors of `get_judge` that show without loading a model or calling a server."""
    if is_light(spec):
        get_judge(spec, template)
    elif isinstance(spec, str | Mapping):
        _registered(spec)  # kind and options


def get_judge(spec: JudgeSpec, template: str | Template = "instruction") -> Judge:
    """Return the judge of "kind:argument(option=value)", {"kind:argument": {option: value}}, a callable, or a judge.

    A callable may depend on anything, so its verdicts are cached only if it has an attribute `version`; the version of a
    registered function is the hash of its code.

    Args:
        template: the judge prompt, by name or file; judges that read no prompt ignore it.

    Raises:
        JudgeError: the specification cannot be read, or has an argument that the judge does not take.
        RegistryError: there is no such kind.
        HyperParameterError: there is no such option.

    Example:
        >>> get_judge("openai:my-judge@http://localhost:8000/v1(timeout=9, request={'seed': 1})").name
        'openai:my-judge@http://localhost:8000/v1'
    """
    if isinstance(spec, Judge):
        return spec
    if not isinstance(spec, str | Mapping):
        if not callable(spec):
            raise JudgeError(f"Cannot make a judge from {spec!r}: give a name, a mapping or a function (prompt, a, b).")
        version = getattr(spec, "version", None)
        judge = _Function(spec, spec_name(spec), {}, str(version))
        judge.cached = version is not None
        return judge
    entry, argument, params = _registered(spec)
    target = entry.load()
    if isinstance(target, type) and issubclass(target, Judge):
        return entry.load()(argument, get_template(template), **params)
    if argument:
        raise JudgeError(
            f"The judge {entry.name!r} is a function and takes no argument after a colon: write {entry.name!r}, not "
            f"{spec!r}."
        )
    try:
        inspect.signature(target).bind("", "", "", **params)
    except TypeError as error:
        raise JudgeError(
            f"The judge {entry.name!r} cannot be asked with a prompt and two answers, {error}: define it as "
            f"{target.__name__}(prompt, a, b), with options as keyword-only arguments."
        ) from None
    return _Function(target, full_name(entry, params), params, code_identity(target))


def _registered(spec: str | Mapping[str, Any]) -> tuple[Entry, str, dict[str, Any]]:
    """Return the kind of judge, the text after the colon, and all its options."""
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
