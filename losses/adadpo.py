"""AdaDPO scales the chosen side of a loss, pair by pair, so that the pair pulls up as hard as it pushes down."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from plo.losses.get import get_loss
from plo.losses.loss import Loss
from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side

# Losses of one margin that is linear in the chosen response's log-probs, with what of them must be switched off.
BASES: Mapping[str, Mapping[str, float]] = {
    "dpo": {},
    "robust": {},
    "hinge": {},
    "ipo": {},
    "length_dpo": {},
    "sigmoid_norm": {},
    "ld_dpo": {},
    "simpo": {},
    "cpo": {"alpha": 0},
}

Space = Literal["ratio", "policy"]


def _base(base: str, beta: float) -> Loss:
    plain = get_loss(base)
    name = plain.entry.name if plain.entry is not None else base
    if name not in BASES:
        raise ValueError(
            f"base={base!r} is no loss of one margin that is linear in the chosen response's log-probs: take one of "
            f"{', '.join(BASES)}."
        )
    if on := [key for key, value in BASES[name].items() if plain.params[key] != value]:
        raise ValueError(
            f"base={base!r}: its likelihood term would be scaled, too. Write base='{name}({on[0]}=0)', and add the term as a "
            f"loss of its own, 'adadpo(base={name}({on[0]}=0)) + sft'."
        )
    if plain.params["beta"] != get_loss(name).params["beta"]:
        raise ValueError(f"base={base!r}: set beta separately, adadpo(base=..., beta=...).")
    return get_loss(base, beta=beta)


def _needs(base: str, beta: float, space: Space) -> tuple[str, ...]:
    own = ("ref_logps",) if space == "ratio" else ()
    return tuple(dict.fromkeys((*_base(base, beta).needs, *own)))


def _detached(space: Space) -> tuple[str, ...]:
    return ("logps", "ref_logps") if space == "ratio" else ("logps",)


@register_loss(
    "adadpo",
    needs=_needs,
    check=_base,
    assumes="coefficients move with the policy and are held fixed in its gradient, so that it minimises no one loss",
    detached=_detached,
    paper="2605.28440",
)
def adadpo(
    pairs: Pairs,
    *,
    base: str = "dpo",
    beta: Positive = 0.1,
    ceiling: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0,
    space: Space = "ratio",
    length_norm: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scale the chosen response's log-ratio so that both responses' probabilities get gradients of one size.

        -log sigma(beta_w D(y_w) - beta D(y_l)),  beta_w = beta sg[min(exp(u(y_w) - u(y_l)), ceiling)]

        u(y) = D(y) / T ("ratio") or log pi(y) / T ("policy"), T the response's tokens; without `length_norm` the sums

    With `length_norm` off and below the ceiling, the gradients by the ratios r = pi/ref of both responses ("ratio"), or by their
    probabilities ("policy"), are equal and opposite. Another `base` has its own loss of the same scaled margin.

    Idea: DPO's gradient by a probability is that of its logarithm over the probability. As the chosen response becomes
        likelier than the rejected one it is promoted ever less than the other is suppressed. A larger coefficient for the
        chosen response makes up for it, and a smaller one where the rejected response is the likelier.
    Assumes: what the base loss assumes. Coefficients are a correction of the step; no objective is known that they descend.
    Dispute: what the value of the loss says, because the margin itself is scaled. A coefficient above 1 lowers it where what is scaled
        is negative: always around `simpo` and `cpo`, elsewhere where D(y_w) < 0. So the value may rise in training while the policy
        learns the preference; judge by `log_ratios/*` and `accuracy`. The paper reports both spaces to do alike and calls the reference optional; that "ratio" is the default is from a third party's implementation,
        as no code of the authors was found. ORPO, which the paper names too, is not among the bases: its log-odds are not
        linear in log-probs, and how its coefficient is formed could not be checked.

    Args:
        base: the loss whose chosen side is scaled: dpo, robust, hinge, ipo, length_dpo (R-DPO), sigmoid_norm, ld_dpo, simpo,
            cpo(alpha=0); with hyper-parameters other than beta, "ipo(reduction=sum)".
        beta: beta of the base loss, > 0. The paper tries .005 to .1 for DPO; another base may need another one.
        ceiling: largest coefficient in units of beta, >= 1; 2 is the paper's. There is no lower bound.
        space: what is balanced: "ratio", the ratios pi/ref; "policy", the probabilities, which needs no reference of its own.
        length_norm: whether the coefficient is formed per token (the paper's stable form, used in all its results).

    Returns:
        (pairs,) in the base's unit; the base's value where pi is the reference ("ratio"). Metrics: the base's, and
        `coefficient`: beta_w / beta.

    Source: arXiv 2605.28440 (coefficient, ceiling, per-token form; by secondary texts and a third party's implementation).
    """
    loss = _base(base, beta)
    chosen, rejected = (_level(side, space, length_norm).detach() for side in (pairs.chosen, pairs.rejected))
    coefficient = (chosen - rejected).clamp(max=math.log(ceiling)).exp()
    names = {"logps", "ref_logps"} & {"logps", *loss.needs}
    scaled = {name: coefficient[:, None] * getattr(pairs.chosen, name) for name in names}
    value = loss.evaluate(Pairs(chosen=Side(mask=pairs.chosen.mask, **scaled), rejected=pairs.rejected))
    return value.values, {**value.metrics, "coefficient": coefficient}


def _level(side: Side, space: Space, length_norm: bool) -> Tensor:
    """Return (pairs,) u(y), nats per token or nats."""
    values = side.log_ratios if space == "ratio" else side.logps
    return side.mean(values) if length_norm else values.sum(-1)
