"""`Loss` is a registered loss with its hyper-parameters set, which is called on `Pairs`."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from plo.configured import HyperParameterError, accepted, full_name, resolve_params, shown
from plo.losses.register import UPDATES, LossError, LossFacts, check_assumption, check_names, when_updated
from plo.pairs import MissingStatistic, Pairs, Side
from plo.registry import Entry


@dataclass
class LossValue:
    """Output of a loss: values, their mask at token level, and metrics, each (pairs,) and detached."""

    values: Tensor
    mask: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class Loss(nn.Module):
    """A registered loss with its hyper-parameters, which is called on `Pairs`. The backbone takes the mean.

    A loss that needs `weights` reads them from the pairs. `plo.scorers.Variant` joins it to the token scorer that makes
    them.

    Attributes:
        name: registered name plus the hyper-parameters that differ from their defaults, "bpo(lam=0.5)".
        params: every hyper-parameter.
        needs, level, assumes, detached, against: as registered, for these hyper-parameters.
        target_margin: as registered, for these hyper-parameters; None where there is none.
        terms: ((coefficient, Loss), ...): the loss itself, or the terms of a sum.
    """

    def __init__(self, entry: Entry[LossFacts], params: Mapping[str, Any]):
        super().__init__()
        self.entry: Entry[LossFacts] | None = entry
        self.target = entry.load()
        if "scorer" in params:
            raise LossError(
                f"The loss {entry.name!r} takes no scorer: a loss with its token scorer is a variant, "
                f"plo.get_variant('{entry.name}(scorer=...)')."
            )
        try:
            self.params: dict[str, Any] = resolve_params("loss", entry, params)
        except HyperParameterError as error:
            raise LossError(str(error)) from None
        facts = entry.facts
        if facts.check is not None:
            _run_check(facts.check, entry.name, self.params)
        self.level = facts.level
        self.needs, self.detached, self.against = (
            check_names(entry.name, fact, _resolve(declared, self.params))
            for fact, declared in (("needs", facts.needs), ("detached", facts.detached), ("against", facts.against))
        )
        self.assumes: str | None = check_assumption(entry.name, _resolve(facts.assumes, self.params))
        self.target_margin: float | None = _resolve(facts.target_margin, self.params)
        self.name = full_name(entry, self.params)
        self.module: nn.Module | None = None

    @property
    def terms(self) -> tuple[tuple[float, "Loss"], ...]:
        """Terms ((coefficient, Loss), ...): the loss itself, or those of a sum."""
        return ((1.0, self),)

    @property
    def has_parameters(self) -> bool:
        """True if the loss has parameters or state of its own and must be built before training."""
        return inspect.isclass(self.target)

    @property
    def updated(self) -> str | None:
        """When the loss updates its buffers, "before" or "after" each optimiser step; None: it keeps no state."""
        return when_updated(self.target)

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the loss's own parameters; None: the policy's."""
        return getattr(self.module, "learning_rate", None)

    def build(self, hidden_size: int) -> "Loss":
        """Create the loss's own parameters, if it has any, for hidden states of size `hidden_size`."""
        if self.has_parameters:
            # The generator is forked, or one seed would not give every loss the same dropout.
            with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
                self.module = self.target(hidden_size, **self.params)
        return self

    def evaluate(self, pairs: Pairs) -> LossValue:
        """Return the loss's values with their mask and metrics. The loss sees the statistics it needs and no others."""
        pairs = pairs.only(self.needs)
        module = self._module_for(pairs.chosen)
        returned = self.target(pairs, **self.params) if module is None else module(pairs)
        return self._checked_value(returned, pairs)

    @property
    def observes_completions(self) -> bool:
        """True if the state depends on completions that are not the pairs' own, and on nothing else of the pairs."""
        return hasattr(self.target, "observe_completions")

    def observe(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return what the loss's state depends on, {name: (pairs,)}, without gradient; empty if it keeps no state."""
        if self.updated is None:
            return {}
        if self.observes_completions:
            return self.observe_completions(pairs.completions)
        pairs = pairs.only(self.needs)
        module: Any = self._module_for(pairs.chosen)
        with torch.no_grad():
            return self._observed(module.observe(pairs), len(pairs))

    def observe_completions(self, completions: Mapping[str, Side]) -> dict[str, Tensor]:
        """Return what the loss's state depends on, {name: (pairs,)}, for a loss that `observes_completions`."""
        first = next(iter(completions.values()), None)
        if first is None:
            raise MissingStatistic(
                f"The loss {self.name!r} needs {', '.join(self.needs)}, and the pairs have no completions."
            )
        module: Any = self._module_for(first)
        with torch.no_grad():
            return self._observed(module.observe_completions(completions), len(first.mask))

    def _observed(self, found: Mapping[str, Tensor], pairs: int) -> dict[str, Tensor]:
        observed = {name: values.detach() for name, values in found.items()}
        self._check_shapes("observation", observed, pairs)
        return observed

    def update(self, step: Mapping[str, Tensor]) -> None:
        """Update the loss's buffers from what `observe` returned for all pairs of an optimiser step."""
        if self.updated is not None and self.module is not None:
            with torch.no_grad():
                getattr(self.module, UPDATES[self.updated])(step)

    def forward(self, pairs: Pairs) -> Tensor | tuple[Tensor, Tensor]:
        """Return (pairs,) one loss per pair; at token level ((pairs, tokens) values, (pairs, tokens) mask)."""
        value = self.evaluate(pairs)
        return value.values if value.mask is None else (value.values, value.mask)

    def extra_repr(self) -> str:
        """Return the name, which nn.Module prints."""
        return self.name

    def _checked_value(self, returned: Any, pairs: Pairs) -> LossValue:
        tensors: list[Any] = list(cast(Sequence[Any], returned)) if isinstance(returned, tuple) else [returned]
        metrics: dict[str, Any] = dict(tensors.pop()) if isinstance(tensors[-1], Mapping) else {}
        shape = tuple(pairs.chosen.mask.shape) if self.level == "token" else (len(pairs),)
        expected = 2 if self.level == "token" else 1
        got = [_shape(tensor) for tensor in tensors]
        if got != [shape] * expected:
            what = "(values, mask)" if self.level == "token" else "one tensor (pairs,)"
            raise LossError(
                f"The loss {self.name!r} ({self.origin}) at level {self.level!r} must return {what} "
                f"of shape {shape}, and returned {got}."
            )
        self._check_shapes("metric", metrics, len(pairs))
        metrics = {name: values.detach() for name, values in metrics.items()}
        if self.level != "token":
            return LossValue(tensors[0], None, metrics)
        mask = tensors[1].bool()
        return LossValue(tensors[0].masked_fill(~mask, 0), mask, metrics)

    def _check_shapes(self, what: str, values: Mapping[str, Any], pairs: int) -> None:
        for name, each in values.items():
            if _shape(each) != (pairs,):
                raise LossError(
                    f"The {what} {name!r} of the loss {self.name!r} ({self.origin}) must be a tensor of shape "
                    f"{(pairs,)}, one number a pair, not {_shape(each)}."
                )

    def _module_for(self, side: Side) -> nn.Module | None:
        """Return the loss's own module, built now if a loss that is called by hand was not; None for a function."""
        if self.has_parameters and self.module is None:
            self.build(side.hidden.shape[-1] if "hidden" in self.needs else 0).to(side.logps)
        return self.module

    @property
    def origin(self) -> str:
        """File and line of the registered function or class."""
        return self.entry.origin if self.entry is not None else "a sum"


class LossSum(Loss):
    """A weighted sum of losses, "dpo + 0.2*sft", in which each term keeps its own mean, over pairs or over tokens."""

    def __init__(self, terms: Sequence[tuple[float, Loss]]):
        nn.Module.__init__(self)
        losses = [loss for _, loss in terms]
        self._coefficients = [float(coefficient) for coefficient, _ in terms]
        self._losses = nn.ModuleList(losses)
        self.needs = tuple(dict.fromkeys(need for loss in losses for need in loss.needs))
        self.detached = tuple(dict.fromkeys(name for loss in losses for name in loss.detached))
        self.against = tuple(dict.fromkeys(name for loss in losses for name in loss.against))
        self.assumes = self.target_margin = self.entry = None
        self.level = "batch" if any(loss.level == "batch" for loss in losses) else "pair"
        self.name = sum_name((coefficient, loss.name) for coefficient, loss in terms)
        self.params = {loss.name: loss.params for loss in losses}

    @property
    def terms(self) -> tuple[tuple[float, Loss], ...]:
        """Terms of the sum, ((coefficient, Loss), ...)."""
        return tuple(zip(self._coefficients, cast(list[Loss], self._losses), strict=True))

    @property
    def has_parameters(self) -> bool:
        """True if any term of the sum has parameters or state of its own and must be built before training."""
        return any(loss.has_parameters for _, loss in self.terms)

    @property
    def updated(self) -> str | None:
        """Return None: the state of a sum is that of its terms."""
        return None

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the first term that has one of its own; None: the policy's."""
        return next((loss.learning_rate for _, loss in self.terms if loss.learning_rate is not None), None)

    def build(self, hidden_size: int) -> Loss:
        """Create the parameters of every term that has its own."""
        for _, loss in self.terms:
            loss.build(hidden_size)
        return self

    def evaluate(self, pairs: Pairs) -> LossValue:
        """Return (pairs,) each pair's share of the sum: their mean is the batch's loss, token means included.

        Metrics are named after their term, "dpo/margin".
        """
        total = torch.zeros(len(pairs), dtype=pairs.chosen.logps.dtype, device=pairs.chosen.logps.device)
        metrics: dict[str, Tensor] = {}
        for coefficient, loss in self.terms:
            value = loss.evaluate(pairs)
            metrics.update({f"{loss.name}/{name}": values for name, values in value.metrics.items()})
            if value.mask is None:
                total = total + coefficient * value.values
            else:
                total = total + coefficient * value.values.sum(-1) * len(pairs) / value.mask.sum().clamp(min=1)
        return LossValue(total, None, metrics)


def sum_name(terms: Iterable[tuple[float, str]]) -> str:
    """Return the name of a weighted sum of named terms, "dpo + 0.2*sft"."""
    return " + ".join(
        name if coefficient == 1 else f"{shown(float(coefficient))}*{name}" for coefficient, name in terms
    )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _run_check(check: Callable[..., object], loss: str, params: Mapping[str, Any]) -> None:
    try:
        check(**accepted(check, params))
    except ValueError as error:
        raise LossError(f"The loss {loss!r}: {error}") from error


def _resolve(fact: Any, params: Mapping[str, Any]) -> Any:
    """Return a fact; one that is a function of hyper-parameters is called with them."""
    return fact(**accepted(fact, params)) if callable(fact) else fact
