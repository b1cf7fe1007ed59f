"""f-DPO is DPO with another divergence than the reverse KL between policy and reference."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.generators import box_cox
from plo.losses.numbers import Positive, largest_exponent
from plo.losses.register import register_loss
from plo.pairs import Pairs

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
MAX_ALPHA_EXPONENT = 80.0  # TRL's, for every dtype


def _check(divergence: Divergence, alpha: float | None) -> None:
    if alpha is not None and divergence != "alpha":
        raise ValueError(f"alpha={alpha} has no effect with divergence={divergence!r}: it belongs to 'alpha'.")


def _assumes(divergence: Divergence) -> str:
    other = "its optimum is that of another divergence than the KL, which is not enumerated here"
    return "bradley_terry" if divergence == "reverse_kl" else other


@register_loss("f_dpo", needs=("ref_logps",), check=_check, assumes=_assumes, paper="2309.16240")
def f_dpo(
    pairs: Pairs, *, beta: Positive = 0.1, divergence: Divergence = "js", alpha: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin as derived with another divergence from the reference than the reverse KL.

        -log sigma(beta (f'(r_w) - f'(r_l))),  r = pi(y)/ref(y) = exp D(y), f the divergence's generator

        reverse_kl  log r                forward_kl  -1/r
        js          log(2r / (1 + r))    alpha       (r^(alpha-1) - 1) / (alpha - 1)

    The ratio is of whole responses, so forward_kl and alpha soon meet numbers such as exp(80). r is cut where 1/r would
    leave the dtype (log r < -88.7 in float32, beta <= 1), and r^(alpha-1) at exp(80), as in TRL. Beyond the cut the
    gradient is **zero**; just before it, it is huge.

    Idea: The divergence decides how reward is traded for diversity. `js` is bounded above and calm; forward_kl and alpha
        act on ratios of whole responses and grow violent with length.
    Assumes: Bradley-Terry preferences over the reward that the f-regularised objective implies, whose normaliser
        cancels in a pair.
    Dispute: alpha is TRL's, for which 1 is reverse_kl and 0 forward_kl; the paper has 1 - alpha in its place. Both agree
        at .5.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        divergence: "reverse_kl" is DPO; TRL writes js_divergence and alpha_divergence for the last two.
        alpha: alpha of the divergence "alpha"; None: .5.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2309.16240; TRL's `f_divergence_type`.
    """
    margin = f_margin(pairs, beta, divergence, alpha)
    return -logsigmoid(margin), {"margin": margin}


def f_margin(pairs: Pairs, beta: float, divergence: Divergence, alpha: float | None) -> Tensor:
    """Return (pairs,) beta (f'(r_w) - f'(r_l)), without the constants of f'."""
    chosen, rejected = (
        _score(side.log_ratio(), beta, divergence, 0.5 if alpha is None else alpha)
        for side in (pairs.chosen, pairs.rejected)
    )
    return beta * (chosen - rejected)


def _score(log_r: Tensor, beta: float, divergence: Divergence, alpha: float) -> Tensor:
    if divergence == "forward_kl":
        return -torch.exp((-log_r).clamp(max=largest_exponent(log_r.dtype, beta)))
    if divergence == "js":
        return logsigmoid(log_r)
    if divergence == "alpha" and alpha != 1:
        power = alpha - 1
        limit = MAX_ALPHA_EXPONENT / power
        return box_cox(log_r.clamp(max=limit) if power > 0 else log_r.clamp(min=limit), power)
    return log_r
