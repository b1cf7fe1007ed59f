"""`register_loss`, the registry of losses, and the checks of what a loss declares."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from plo.errors import PloError
from plo.registry import Registry, check_signature

LEVELS = ("pair", "token", "batch")
# Models of preferences that a loss may assume; `plo.verify.problems` has the optimal policy of each.
PREFERENCE_MODELS = (
    "bradley_terry",
    "flipped_bradley_terry",
    "identity",
    "chosen",
    "advantage",
    "token_q",
    "token_a",
)
SIDES = ("chosen", "rejected")
OBSERVE = ("observe", "observe_completions")
UPDATES = {"before": "before_step", "after": "after_step"}  # when a loss updates its buffers, and its method that does

Names = tuple[str, ...] | Callable[..., tuple[str, ...]]
Target = TypeVar("Target", bound=Callable[..., Any])


class LossError(PloError, ValueError):
    """A loss does not have a hyper-parameter, cannot take its value, or returns the wrong thing."""


@dataclass(frozen=True)
class LossFacts:
    """Facts that `register_loss` declares of a loss; its arguments describe them."""

    needs: Names = ()
    level: str = "pair"
    check: Callable[..., object] | None = None
    scorer: str = "uniform"
    assumes: str | Callable[..., str] | None = None
    detached: Names = ()
    against: Names = ()
    target_margin: float | Callable[..., float | None] | None = None
    presets: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]] = field(default_factory=dict[str, Any])
    paper: str = ""
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, Any])
    ceiling: bool = False


LOSSES = Registry("loss", group="plo.losses", facts=LossFacts)


def register_loss(
    name: str,
    *,
    needs: Names = (),
    level: str = "pair",
    check: Callable[..., object] | None = None,
    scorer: str = "uniform",
    assumes: str | Callable[..., str] | None = None,
    detached: Names = (),
    against: Names = (),
    target_margin: float | Callable[..., float | None] | None = None,
    presets: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]] | None = None,
    paper: str = "",
    ceiling: bool = False,
    search: Mapping[str, tuple[float, float]] | None = None,
    replace: bool = False,
    model: str | Callable[..., str] | None = None,
) -> Callable[[Target], Target]:
    """Register a preference loss: a function of `Pairs`, or an `nn.Module` class if it has parameters or state of its own.

    The keyword-only arguments are the hyper-parameters. A value is checked against the argument's type hint, which may
    be a range (`Positive`, or any pydantic `Annotated`). A class is built as `cls(hidden_size, **hyper_parameters)` and
    may set `self.learning_rate` for its parameters.

    State is a class's buffers (running means), which are saved, restored and reset with its parameters. They change once
    an optimiser step: `observe(pairs)` returns `{name: (pairs,)}`, and `before_step(step)` or `after_step(step)` gets what it
    returned for all pairs of the step, of all micro-batches and processes, `{name: (pairs of the step,)}`, in no fixed
    order. `observe_completions(completions)` instead of `observe` gets `pairs.completions` alone, for which the pairs need no
    pass. `before_step` runs before the loss of the step is computed: with several micro-batches that takes a pass without
    gradient. `after_step` runs after it and costs nothing: the loss sees the state of the previous step.

    Args:
        name: the name that experiments use.
        needs: statistics in addition to `logps`, e.g. `("ref_logps", "kl_ref_pi")`, with arguments where they have some,
            `"logps_at(temperature=1.1)"`; columns of the data set, `"column:margin"`; completions that are not the pair's
            own, `"completion:mismatched(side=chosen)"`; or a function of the hyper-parameters that returns them.
        level: `"pair"` returns (pairs,), each depending on its own pair alone; `"token"` returns (pairs, tokens) values
            and their mask; `"batch"` returns (pairs,) that depend on the whole batch. Any of them may add a dict of
            (pairs,) metrics as a last element; `"margin"` is the loss's own margin.
        check: a function of hyper-parameters that raises ValueError where they do not fit each other; called when the
            loss is configured, before any model is loaded.
        scorer: name of the token scorer that makes `weights` where an experiment names none.
        assumes: the preference model that the loss assumes, one of `PREFERENCE_MODELS`, so that `plo verify` checks that
            the loss recovers its optimal policy; or a sentence that says why there is none to recover; or a function of
            the hyper-parameters that returns either. None: not declared.
        detached: the statistics behind a stop-gradient, `("chosen.kl_ref_pi",)`, or without a side for both; or a
            function of the hyper-parameters that returns them. There alone may the gradient differ from the derivative.
        against: the sides that the loss moves against the preference on purpose, `("chosen",)` where it makes chosen
            responses less likely; or a function of the hyper-parameters that returns them. Any other loss that does so
            fails `plo verify`.
        target_margin: the value of the metric `margin` at which the loss is least, where there is one; or a function of
            the hyper-parameters that returns it. A training that ends below a tenth of it is reported.
        presets: settings by name, for `name(preset=...)`: hyper-parameters that differ from the defaults, each with the
            coefficient of its term, `{"hh": [(1.0, {"lam": 1.2})]}`; several terms are a sum.
        paper: arXiv number or citation.
        ceiling: whether the loss reads the truth that a task knows, such as the gold advantages of tokens. Tables show it
            as an upper bound, and it takes no part in ranks.
        search: the range in which tuning tries the hyper-parameter that sets the loss's strength, low to high on a
            logarithmic scale, `{"beta": (0.025, 0.4)}`. None: a quarter to four times the default of `beta`.
        replace: replace a loss that is registered under this name.
        model: deprecated name of `assumes`.

    Raises:
        LossError: an unknown level, preference model or side; a text instead of a tuple of names; or a class that observes
            and does not update, or the other way round.
        RegistryError: the name is taken or cannot be written; or a hyper-parameter is not keyword-only.

    Example:
        >>> @register_loss("hinge_squared", needs=("ref_logps",))
        ... def hinge_squared(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
        ...     return torch.relu(1 - beta * pairs.log_ratio_margin()).square()
    """
    if model is not None:
        warnings.warn(f"register_loss({name!r}, model=...): the argument is called assumes.", DeprecationWarning, 2)
        assumes = model
    LOSSES.check_name(name)
    if level not in LEVELS:
        raise LossError(f"level={level!r} of the loss {name!r} must be one of {', '.join(LEVELS)}.")
    check_assumption(name, assumes)
    for fact, names in (("needs", needs), ("detached", detached), ("against", against)):
        check_names(name, fact, names)
    facts = LossFacts(
        needs,
        level,
        check,
        scorer,
        assumes,
        detached,
        against,
        target_margin,
        presets or {},
        paper,
        search or {},
        ceiling,
    )

    def register(target: Target) -> Target:
        made: object = target
        check_signature("loss", name, target, given="hidden_size" if inspect.isclass(made) else "pairs")
        when_updated(target)
        LOSSES.register(name, target, facts=facts, replace=replace)
        return target

    return register


def check_names(loss: str, fact: str, names: Any) -> tuple[str, ...]:
    """Return the names that a fact of a loss declares, as a tuple; () for a function of the hyper-parameters.

    Raises:
        LossError: a text instead of a tuple of names, or an unknown side in `against`.
    """
    if callable(names):
        return ()
    if isinstance(names, str):
        raise LossError(f"{fact}={names!r} of the loss {loss!r} must be a tuple of names: {fact}=({names!r},).")
    names = tuple(names or ())
    if fact == "against" and (unknown := [side for side in names if side not in SIDES]):
        raise LossError(f"against={names} of the loss {loss!r}: {unknown[0]!r} is neither 'chosen' nor 'rejected'.")
    return names


def when_updated(target: Any) -> str | None:
    """Return when a loss updates its buffers, "before" or "after" an optimiser step; None if it keeps no state.

    Raises:
        LossError: a class that observes without one of `before_step` and `after_step`, or has one of them and does not.
    """
    if not inspect.isclass(target):
        return None
    found = [when for when, method in UPDATES.items() if hasattr(target, method)]
    observing = [name for name in OBSERVE if hasattr(target, name)]
    if len(found) != len(observing) or len(found) > 1:
        has = [name for name in (*OBSERVE, *UPDATES.values()) if hasattr(target, name)]
        raise LossError(
            f"{target.__name__} has {' and '.join(has)}: a loss with state has one of observe(pairs) and "
            f"observe_completions(completions), and one of before_step(step) and after_step(step)."
        )
    return found[0] if found else None


def check_assumption(loss: str, assumes: Any) -> Any:
    """Return what a loss assumes, unless it is one word that names no preference model.

    Raises:
        LossError: with the known preference models.
    """
    if isinstance(assumes, str) and " " not in assumes and assumes not in PREFERENCE_MODELS:
        known = ", ".join(PREFERENCE_MODELS)
        raise LossError(f"assumes={assumes!r} of the loss {loss!r} must be one of {known}, or a sentence.")
    return assumes
