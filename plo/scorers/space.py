"""The space in which a variant is tuned: its learning rate, and the hyper-parameter that sets the strength of its loss."""

import contextlib
from collections.abc import Mapping
from typing import Any

from plo.configured import HyperParameterError
from plo.grid import TRAIN
from plo.losses import LossError
from plo.registry import hyper_parameters
from plo.scorers.variant import Term, Variant

FACTOR = 4.0  # a range without a declaration: from the default over this to the default times this
LR = f"{TRAIN}lr"

Space = dict[str, tuple[float, float]]


def search_space(variant: Variant, lr: float, given: Mapping[str, tuple[float, float]] | None = None) -> Space:
    """Return the ranges in which a variant is tuned, each from its low to its high end on a logarithmic scale.

    The learning rate comes first, from a quarter to four times `lr`. The second range is the one that the loss declares
    (`register_loss(search=...)`), or else a quarter to four times the default of `beta` or, without a `beta`, of its first
    hyper-parameter that is a positive number; of a sum, that of its first term. What the experiment sets by hand is fixed.

    Args:
        lr: the experiment's learning rate.
        given: ranges that the experiment gives for this loss, in place of these.
    """
    space = {} if "lr" in variant.train else {LR: (lr / FACTOR, lr * FACTOR)}
    return space | (dict(given) if given else strength_space(variant))


def strength_space(variant: Variant) -> Space:
    """Return the range in which tuning tries the strength of a variant's loss; empty if it has none, or it is set by hand."""
    term = variant.terms[0][1]
    declared = getattr(term.entry.facts, "search", None)
    defaults = {name: parameter.default for name, parameter in hyper_parameters(term.entry.load()).items()}
    positive = {name: value for name, value in defaults.items() if _is_positive(value)}
    name = "beta" if "beta" in positive else next(iter(positive), None)
    ranges: Space = dict(declared) if declared else {name: _around(term, name, positive[name])} if name else {}
    return {name: ends for name, ends in ranges.items() if name not in term.given}


def at_point(variant: Variant, point: Mapping[str, float]) -> Variant:
    """Return the variant with the values of a point of its search space.

    Raises:
        LossError, HyperParameterError: the loss has no such hyper-parameter, or it cannot have the value.
    """
    own = {name: value for name, value in point.items() if not name.startswith(TRAIN)}
    train = {name.removeprefix(TRAIN): value for name, value in point.items() if name.startswith(TRAIN)}
    (coefficient, first), *others = variant.terms
    terms = [(coefficient, first.with_params(own) if own else first), *others]
    return Variant(terms, {**variant.train, **train}, variant.origin)


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and value > 0


def _around(term: Term, name: str, default: float) -> tuple[float, float]:
    """Return a quarter to four times a default, or the default itself for an end that the hyper-parameter cannot have."""
    ends = [default, default]
    for place, end in enumerate((default / FACTOR, default * FACTOR)):
        with contextlib.suppress(LossError, HyperParameterError):
            term.with_params({name: end})
            ends[place] = end
    return ends[0], ends[1]
