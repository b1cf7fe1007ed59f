"""f-DPO is DPO with another divergence than the reverse KL; chi-PO and SquaredPO are two more of its kind."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.generators import box_cox
from plo.losses.numbers import Positive, largest_exponent
from plo.losses.register import register_loss
from plo.pairs import Pairs

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
AnyDivergence = Literal["reverse_kl", "forward_kl", "js", "alpha", "chi2"]
MAX_ALPHA_EXPONENT = 80.0  # TRL's, for every dtype
MAX_CHI_EXPONENT = 20.0  # of beta r in chi-PO, for every dtype
OTHER_DIVERGENCE = "its optimum is that of another divergence than the KL, which is not enumerated here"


def _check(divergence: AnyDivergence, alpha: float | None) -> None:
    if alpha is not None and divergence != "alpha":
        raise ValueError(f"alpha={alpha} has no effect with divergence={divergence!r}: it belongs to 'alpha'.")


def _assumes(divergence: AnyDivergence) -> str:
    return "bradley_terry" if divergence == "reverse_kl" else OTHER_DIVERGENCE


@register_loss("f_dpo", needs=("ref_logps",), check=_check, assumes=_assumes, paper="2309.16240")
def f_dpo(
    pairs: Pairs, *, beta: Positive = 0.1, divergence: AnyDivergence = "js", alpha: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin as derived with another divergence from the reference than the reverse KL.

        -log sigma(beta (f'(r_w) - f'(r_l))),  r = pi(y)/ref(y) = exp D(y), f the divergence's generator

        reverse_kl  log r                forward_kl  -1/r
        js          log(2r / (1 + r))    alpha       (r^(alpha-1) - 1) / (alpha - 1)
        chi2        2 (r - 1)

    The ratio is of whole responses, so forward_kl, alpha and chi2 soon meet numbers such as exp(80). r is cut where 1/r
    (chi2: r) would leave the dtype (log r < -88.7 in float32, beta <= 1; chi2: > 88), and r^(alpha-1) at exp(80), as in
    TRL. Beyond the cut the gradient is **zero**; just before it, it is huge.

    Idea: The divergence decides how reward is traded for diversity. `js` is bounded above and calm; forward_kl, alpha and
        chi2 act on ratios of whole responses and grow violent with length.
    Assumes: Bradley-Terry preferences over the reward that the f-regularised objective implies, whose normaliser
        cancels in a pair.
    Dispute: alpha is TRL's, for which 1 is reverse_kl and 0 forward_kl; the paper has 1 - alpha in its place. Both agree
        at .5. chi2 (f = (r-1)^2) is in BPO's comparison (2505.19601), not in f-DPO's own: f'(0) = -2 is finite, so that
        some rewards have no optimal policy with r > 0. `chi_po` adds the KL for that reason.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        divergence: "reverse_kl" is DPO; TRL writes js_divergence and alpha_divergence for the last two.
        alpha: alpha of the divergence "alpha"; None: .5.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2309.16240; TRL's `f_divergence_type`; chi2: arXiv 2505.19601.
    """
    if divergence == "chi2":
        margin = _margin(pairs, beta, lambda log_r: _slope_of_chi2(log_r, beta))
    else:
        margin = f_margin(pairs, beta, divergence, alpha)
    return -logsigmoid(margin), {"margin": margin}


@register_loss("chi_po", needs=("ref_logps",), assumes=OTHER_DIVERGENCE, paper="2407.13399")
def chi_po(pairs: Pairs, *, beta: Positive = 0.05, r_max: Positive | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin as derived with the chi-squared divergence added to the KL, which holds the policy back harder.

        -log sigma(clip(beta (phi(r_w) - phi(r_l)), -2 r_max, 2 r_max)),  phi(r) = r + log r,  r = exp D(y)

    phi is f' of f(r) = r log r + (r - 1)^2 / 2, up to a constant.

    Idea: The error of a reward learned from the reference's samples grows with the chi-squared divergence from it, not
        with the KL. chi-PO holds the policy where the reward is known: at the optimum r grows linearly with a large
        reward, under DPO exponentially. The ratio is of whole responses, so that the loss grows violent with length.
    Assumes: Bradley-Terry preferences over a reward in [0, r_max], and a policy class that holds the optimum.
    Dispute: the paper's algorithm clips the margin, and a clipped pair has **zero** gradient, also one that is lost. No
        value of r_max and no code of the authors could be found, so the default does not clip. beta r is cut at e^20, as
        in a public re-implementation; beyond, only log r has a gradient.

    Args:
        beta: weight of the regulariser, > 0. The paper reports .05 and .005 on TL;DR.
        r_max: bound on the true reward, which bounds the margin to 2 r_max; None: no clip.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2407.13399, algorithm 1; its figures: a reader's notes.
    """
    most = MAX_CHI_EXPONENT - math.log(beta)
    margin = _margin(pairs, beta, lambda log_r: log_r + log_r.clamp(max=most).exp())
    if r_max is not None:
        margin = margin.clamp(-2 * r_max, 2 * r_max)
    return -logsigmoid(margin), {"margin": margin}


@register_loss(
    "squared_po",
    needs=("ref_logps",),
    assumes=OTHER_DIVERGENCE,
    against=("rejected",),
    paper="2602.06788",
)
def squared_po(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin as derived with the squared log-ratio for a divergence, whose least value is at the reference.

        -log sigma(beta (log r_w / r_w - log r_l / r_l)),  r = exp D(y)

    log r / r is f' of f(r) = (log r)^2 / 2, which is not convex. r is cut where log r / r would leave the dtype (log r
    < -84 in float32, beta <= 1), with **zero** gradient beyond.

    Idea: r log r is least at r = 1/e, so that DPO's optimum may lower the chosen response too; a divergence that is least
        at 1 or above need not, and this one is least at 1. Below the reference the pull is exponential, above it fades.
    Assumes: Bradley-Terry preferences over the reward that the f-regularised objective implies.
    Dispute: whether it does what it is for above the reference. log r / r rises to 1/e at r = e and falls beyond, so that a
        response that is more than e times as likely as under the reference is moved **against** the preference.
        The paper's conditions, as secondary texts give them, are on f near 0 and on where f is least, and allow it.

    Args:
        beta: weight of the divergence from the reference, > 0.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2602.06788: its f, from secondary texts; the loss by derivation from f', as for `f_dpo`.
    """
    margin = _margin(pairs, beta, lambda log_r: _slope_of_squared_log(log_r, beta))
    return -logsigmoid(margin), {"margin": margin}


def _margin(pairs: Pairs, beta: float, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (pairs,) beta (f'(r_w) - f'(r_l)) for f' as a function of log r."""
    return beta * (slope(pairs.chosen.log_ratio()) - slope(pairs.rejected.log_ratio()))


def _slope_of_chi2(log_r: Tensor, beta: float) -> Tensor:
    """Return 2 (r - 1) from log r, any shape; cut where it, or beta times it, would leave the dtype."""
    return 2 * torch.expm1(log_r.clamp(max=largest_exponent(log_r.dtype, 2 * max(beta, 1.0))))


def _slope_of_squared_log(log_r: Tensor, beta: float) -> Tensor:
    """Return log r / r from log r, any shape; cut where it, its slope or beta times them would leave the dtype."""
    widest = largest_exponent(log_r.dtype) + 2  # bounds |log r| and |1 - log r| before the cut
    log_r = log_r.clamp(min=-largest_exponent(log_r.dtype, max(beta, 1.0) * widest))
    return log_r * torch.exp(-log_r)


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
