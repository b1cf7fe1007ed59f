"""`register_loss`, and `Loss`: a registered loss with its hyper-parameters set, to be called on `Pairs`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from plo.configured import HyperParameterError, accepted, changed, full_name, resolve_params, shown
from plo.errors import PloError
from plo.identity import code_identity, sha256
from plo.losses.generators import GENERATORS
from plo.pairs import Pairs, Side
from plo.registry import Entry, Registry, RegistryError, check_signature
from plo.scorers import Scorer, get_scorer

LEVELS = ("pair", "token", "batch")
# What a loss may assume of the preferences it is trained on; `plo.verify.problems` has each with its optimal policy.
MODELS = ("bradley_terry", "flipped_bradley_terry", "identity", "chosen", "advantage", "token_q", "token_a")

# Ranges stand in the signature, `beta: Positive = 0.1`: checked when the loss is configured, not in its first
# batch.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


@dataclass(frozen=True)
class LossFacts:
    """Facts that `register_loss` declares of a loss; its arguments describe them."""

    needs: tuple[str, ...] | Callable[..., tuple[str, ...]] = ()
    level: str = "pair"
    check: Callable[..., None] | None = None
    scorer: str = "uniform"
    model: str | Callable[..., str] | None = None
    detached: tuple[str, ...] | Callable[..., tuple[str, ...]] = ()
    against: tuple[str, ...] | Callable[..., tuple[str, ...]] = ()
    target_margin: float | Callable[..., float | None] | None = None
    presets: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]] = field(default_factory=dict)
    paper: str = ""
    recipe: tuple[str, str] | None = None


LOSSES = Registry("loss", group="plo.losses", facts=LossFacts)


class LossError(PloError, ValueError):
    """A hyper-parameter that a loss does not have or cannot take, or a loss that returns the wrong thing."""


def register_loss(
    name: str,
    *,
    needs: tuple[str, ...] | Callable[..., tuple[str, ...]] = (),
    level: str = "pair",
    check: Callable[..., None] | None = None,
    scorer: str = "uniform",
    model: str | Callable[..., str] | None = None,
    detached: tuple[str, ...] | Callable[..., tuple[str, ...]] = (),
    against: tuple[str, ...] | Callable[..., tuple[str, ...]] = (),
    target_margin: float | Callable[..., float | None] | None = None,
    presets: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]] | None = None,
    paper: str = "",
    replace: bool = False,
) -> Callable:
    """Register a preference loss: a function of `Pairs`, or an `nn.Module` class if it has own parameters.

    The keyword-only arguments are the hyper-parameters; their hints are what a value is checked against,
    ranges included (`Positive`, or any pydantic `Annotated`). A class is built as `cls(hidden_size,
    **hyper_parameters)` and may set `self.learning_rate` for its parameters.

    Args:
        name: what users write in experiments.
        needs: statistics beside `logps`, e.g. `("ref_logps", "kl_ref_pi", "column:margin")`; or a function of
            the hyper-parameters that returns them.
        level: `"pair"` returns (pairs,), each depending on its own pair alone; `"token"` returns (pairs,
            tokens) values and their mask; `"batch"` returns (pairs,) that depend on the whole batch. Any of
            them may add a dict of (pairs,) metrics as a last element; `"margin"` is the loss's own margin.
        check: a function of hyper-parameters that raises ValueError where they do not fit each other; called
            when the loss is configured, before any model is loaded.
        scorer: the token scorer of a loss that needs `weights`, where none is given: `twdpo(scorer=...)`.
        model: what it assumes of the preferences, one of `MODELS`, so that `plo verify` can try whether it
            recovers that model's optimal policy; or a sentence that says why there is none to recover; or a
            function of the hyper-parameters that returns either. None: not said.
        detached: the statistics behind a stop-gradient, `("chosen.kl_ref_pi",)`, without a side for both; or a
            function of the hyper-parameters that returns them. There alone may the gradient differ from the
            derivative.
        against: the sides that the loss pulls against the preference on purpose, `("chosen",)` where it makes chosen
            responses less likely; or a function of the hyper-parameters that returns them. Any other loss that does
            so fails `plo verify`.
        target_margin: the value of the metric `margin` at which the loss is least, where there is one; or a function of the
            hyper-parameters that returns it. A training that ends under a tenth of it is told so.
        presets: settings by name, for `name(preset=...)`: hyper-parameters that differ from the defaults, each with the
            weight of its term, `{"hh": [(1.0, {"lam": 1.2})]}`; several terms are a sum.
        paper: arXiv number or citation.

    Raises:
        LossError: level, model or a side of `against` is none of the known ones; a text where names in a tuple belong.
        RegistryError: the name is taken or cannot be written; a hyper-parameter is not keyword-only.

    Example:
        >>> @register_loss("hinge2", needs=("ref_logps",))
        ... def hinge2(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
        ...     return torch.relu(1 - beta * pairs.log_ratio_margin()).square()
    """
    LOSSES.check_name(name)
    if level not in LEVELS:
        raise LossError(f"level={level!r} of the loss {name!r} must be one of {', '.join(LEVELS)}.")
    _check_model(name, model)
    for fact, names in (("needs", needs), ("detached", detached), ("against", against)):
        _check_names(name, fact, names)

    facts = LossFacts(needs, level, check, scorer, model, detached, against, target_margin, presets or {}, paper)

    def register(target):
        check_signature("loss", name, target, given="hidden_size" if inspect.isclass(target) else "pairs")
        return LOSSES.register(name, facts=facts, replace=replace)(target)

    return register


@dataclass
class LossValue:
    """What a loss returned: values, their mask at token level, and metrics, each (pairs,) and detached."""

    values: Tensor
    mask: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Loss(nn.Module):
    """A registered loss and its hyper-parameters. Call it on `Pairs`; the backbone takes the mean.

    Attributes:
        name: registered name plus the hyper-parameters that differ from their defaults, "bpo(lam=0.5)".
        params: every hyper-parameter, and `scorer` where the loss needs token weights.
        needs, level, model, detached, against: as registered, for these hyper-parameters.
        target_margin: as registered, for these hyper-parameters; None where there is none.
        scorer: makes the token weights; None for a loss that needs none.
        terms: ((weight, Loss), ...): itself, or the terms of a sum.
    """

    def __init__(self, entry: Entry, params: Mapping[str, Any]):
        super().__init__()
        self.entry = entry
        self.target = entry.load()
        params = dict(params)
        scorer = params.pop("scorer", None)
        try:
            self._own = self.params = resolve_params("loss", entry, params)
        except HyperParameterError as error:
            raise LossError(str(error)) from None
        if check := entry.facts.check:
            _run_check(check, entry.name, self.params)
        self.level = entry.facts.level
        self.needs, self.detached, self.against = (
            _check_names(entry.name, fact, _fact(entry, fact, self.params)) for fact in ("needs", "detached", "against")
        )
        self.model = _check_model(entry.name, _fact(entry, "model", self.params))
        self.target_margin: float | None = _fact(entry, "target_margin", self.params)
        self.name = full_name(entry, self.params)
        self.scorer: Scorer | None = None
        if self.is_recipe and scorer is None:
            self.scorer = self.target.configured_scorer(self.params)
        elif "weights" in self.needs and not self.is_recipe:
            self.scorer = self._scorer(scorer or entry.facts.scorer)
        elif scorer is not None:
            raise LossError(
                f"The loss {entry.name!r} takes no scorer={scorer!r}: only losses that need token weights do."
            )
        self.module: nn.Module | None = None

    @property
    def terms(self) -> tuple[tuple[float, "Loss"], ...]:
        return ((1.0, self),)

    @property
    def given(self) -> dict[str, Any]:
        """The hyper-parameters that differ from their defaults, and `scorer` where the loss needs token weights."""
        scorer = {} if self.scorer is None or self.is_recipe else {"scorer": self.scorer}
        return {**changed(self.entry, self._own), **scorer}

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter by the name that `with_params` takes, those of the scorer as `scorer.gamma`."""
        inner = {} if self.scorer is None or self.is_recipe else self.scorer.params
        return {**self.params, **{f"scorer.{name}": value for name, value in inner.items()}}

    def with_params(self, changes: Mapping[str, Any]) -> "Loss":
        """Make the same loss with some of its `settings` changed; the others keep their values.

        Raises:
            LossError, HyperParameterError: it has no such hyper-parameter, or they do not fit each other.

        Example:
            >>> get_loss("twdpo").with_params({"scorer": "position_decay", "scorer.gamma": 0.5}).name  # doctest: +SKIP
            'twdpo(scorer=position_decay(gamma=0.5))'
        """
        params, inner = self.given, {}
        for name, value in changes.items():
            if name.startswith("scorer."):
                inner[name.removeprefix("scorer.")] = value
            else:
                params[name] = value
        if inner:
            params["scorer"] = get_scorer(params["scorer"]).with_params(inner)
        return Loss(self.entry, params)

    def each_term(self, change: "Callable[[Loss], Loss]") -> "Loss":
        """Apply `change` to the loss, or to every term of a sum."""
        return change(self)

    @property
    def source(self) -> str:
        """Hash that identifies the loss: its code with the code it calls, and its hyper-parameters, code among them too."""
        plain = str | int | float | tuple | list | None
        params = {name: value for name, value in self.params.items() if isinstance(value, plain)}
        code = [self.target.loss.load() if self.is_recipe else self.target]
        code += [value for value in self.params.values() if not isinstance(value, plain)]
        generator = self.params.get("generator")
        if isinstance(generator, str):
            entry = GENERATORS[generator]
            code += [entry.load(), entry.facts.closed_form]
        base = self.params.get("base")  # of a loss that changes another one
        parts = [self.scorer.source if self.scorer is not None else None]
        if isinstance(base, str):
            from plo.losses.get import get_loss  # which imports this module

            parts.append(get_loss(base).source)
        own = [repr(params), self.needs, self.level, *parts]
        return sha256([*own, code_identity(*code, through=(Pairs, Side))])

    @property
    def is_recipe(self) -> bool:
        """Whether it is another loss under the name of a token scorer's paper (see `plo.losses.recipe`)."""
        return self.entry.facts.recipe is not None

    @property
    def has_parameters(self) -> bool:
        """Whether the loss trains parameters of its own and must be built before training."""
        return inspect.isclass(self.target)

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the loss's own parameters; None: the policy's."""
        return getattr(self.module, "learning_rate", None)

    def build(self, hidden_size: int) -> "Loss":
        """Create the loss's own parameters, if it has any, for hidden states of size `hidden_size`."""
        if self.has_parameters:
            with torch.random.fork_rng(devices=[]):  # or one seed would not give every loss the same dropout
                self.module = self.target(hidden_size, **self._own)
        return self

    def evaluate(self, pairs: Pairs) -> LossValue:
        """The loss's values with their mask and metrics. The loss sees the statistics it needs, no others."""
        pairs = pairs.only(self.needs)
        if self.has_parameters and self.module is None:
            self.build(pairs.chosen.hidden.shape[-1]).to(pairs.chosen.logps)
        returned = self.module(pairs) if self.has_parameters else self.target(pairs, **self._own)
        return self._checked_value(returned, pairs)

    def forward(self, pairs: Pairs) -> Tensor | tuple[Tensor, Tensor]:
        """(pairs,) one loss per pair; at token level ((pairs, tokens) values, (pairs, tokens) mask)."""
        value = self.evaluate(pairs)
        return value.values if value.mask is None else (value.values, value.mask)

    def extra_repr(self) -> str:
        return self.name

    def _scorer(self, spec: Any) -> Scorer:
        scorer = get_scorer(spec)
        self.params = {**self._own, "scorer": scorer.name}
        if scorer.name != self.entry.facts.scorer:
            inner = self.name.removeprefix(self.entry.name)[1:-1]
            self.name = f"{self.entry.name}({', '.join(filter(None, [f'scorer={scorer.name}', inner]))})"
        return scorer

    def _checked_value(self, returned: Any, pairs: Pairs) -> LossValue:
        parts = returned if isinstance(returned, tuple) else (returned,)
        metrics = parts[-1] if isinstance(parts[-1], Mapping) else {}
        tensors = parts[:-1] if isinstance(parts[-1], Mapping) else parts
        shape = tuple(pairs.chosen.mask.shape) if self.level == "token" else (len(pairs),)
        expected = 2 if self.level == "token" else 1
        got = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in tensors]
        if got != [shape] * expected:
            what = "(values, mask)" if self.level == "token" else "one tensor (pairs,)"
            raise LossError(
                f"The loss {self.name!r} ({self.entry.origin}) at level {self.level!r} must return {what} "
                f"of shape {shape}, and returned {got}."
            )
        for name, values in metrics.items():
            if not isinstance(values, Tensor) or tuple(values.shape) != (len(pairs),):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise LossError(
                    f"The metric {name!r} of the loss {self.name!r} ({self.entry.origin}) must be a tensor of shape "
                    f"{(len(pairs),)}, one number a pair, not {got}."
                )
        metrics = {name: values.detach() for name, values in metrics.items()}
        if self.level == "token":
            values, mask = tensors
            return LossValue(values.masked_fill(~mask.bool(), 0), mask.bool(), metrics)
        return LossValue(tensors[0], None, metrics)


class LossSum(Loss):
    """A weighted sum of losses, "dpo + 0.2*sft". Each term keeps its own mean: over pairs, or over tokens."""

    def __init__(self, terms: list[tuple[float, Loss]]):
        nn.Module.__init__(self)
        self._weights = [float(weight) for weight, _ in terms]
        self._losses = nn.ModuleList([loss for _, loss in terms])
        self.needs = tuple(dict.fromkeys(need for _, loss in terms for need in loss.needs))
        self.detached, self.against = (
            tuple(dict.fromkeys(name for _, loss in terms for name in getattr(loss, fact)))
            for fact in ("detached", "against")
        )
        self.model = self.target_margin = None
        self.level = "batch" if any(loss.level == "batch" for _, loss in terms) else "pair"
        self.name = " + ".join(
            loss.name if weight == 1 else f"{shown(float(weight))}*{loss.name}" for weight, loss in terms
        )
        self.params = {loss.name: loss.params for _, loss in terms}
        self.entry = None
        scorers = {loss.scorer.name: loss.scorer for _, loss in terms if loss.scorer is not None}
        if len(scorers) > 1:
            raise LossError(
                f"The terms of {self.name!r} want different token weights ({', '.join(scorers)}): one scorer a sum."
            )
        self.scorer = next(iter(scorers.values()), None)

    @property
    def terms(self) -> tuple[tuple[float, Loss], ...]:
        return tuple(zip(self._weights, self._losses, strict=True))

    def each_term(self, change: Callable[[Loss], Loss]) -> Loss:
        return LossSum([(weight * inner, term) for weight, loss in self.terms for inner, term in change(loss).terms])

    @property
    def source(self) -> str:
        return "\n".join(loss.source for loss in self._losses)

    @property
    def has_parameters(self) -> bool:
        return any(loss.has_parameters for loss in self._losses)

    @property
    def learning_rate(self) -> float | None:
        return next((loss.learning_rate for loss in self._losses if loss.learning_rate is not None), None)

    def build(self, hidden_size: int) -> Loss:
        for loss in self._losses:
            loss.build(hidden_size)
        return self

    def evaluate(self, pairs: Pairs) -> LossValue:
        """(pairs,) each pair's share of the sum: their mean is the batch's loss, token means included.

        Metrics are named after their term, "dpo/margin"."""
        total = torch.zeros(len(pairs), dtype=pairs.chosen.logps.dtype, device=pairs.chosen.logps.device)
        metrics = {}
        for weight, loss in self.terms:
            value = loss.evaluate(pairs)
            metrics.update({f"{loss.name}/{name}": values for name, values in value.metrics.items()})
            if value.mask is None:
                total = total + weight * value.values
            else:
                total = total + weight * value.values.sum(-1) * len(pairs) / value.mask.sum().clamp(min=1)
        return LossValue(total, None, metrics)


def _run_check(check: Callable[..., None], loss: str, params: Mapping[str, Any]) -> None:
    try:
        check(**accepted(check, params))
    except ValueError as error:
        raise LossError(f"The loss {loss!r}: {error}") from error


def _fact(entry: Entry, name: str, params: Mapping[str, Any]) -> Any:
    fact = getattr(entry.facts, name)
    return fact(**accepted(fact, params)) if callable(fact) else fact


def _check_names(loss: str, fact: str, names: Any) -> tuple[str, ...]:
    if callable(names):
        return ()
    if isinstance(names, str):
        raise LossError(f"{fact}={names!r} of the loss {loss!r} must be a tuple of names: {fact}=({names!r},).")
    names = tuple(names or ())
    if fact == "against" and (unknown := [side for side in names if side not in ("chosen", "rejected")]):
        raise LossError(f"against={names} of the loss {loss!r}: {unknown[0]!r} is neither 'chosen' nor 'rejected'.")
    return names


def _check_model(loss: str, model: Any) -> Any:
    if isinstance(model, str) and " " not in model and model not in MODELS:
        raise LossError(f"model={model!r} of the loss {loss!r} must be one of {', '.join(MODELS)}, or a sentence.")
    return model


__all__ = ["LOSSES", "Loss", "LossError", "LossSum", "LossValue", "RegistryError", "register_loss"]
