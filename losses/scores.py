"""ODPO, reward-aware RPO and MaPPO read how much better the chosen response was scored, from columns of the data set."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _needs(score: str, less: str | None) -> tuple[str, ...]:
    columns = (score,) if less is None else (score, less)
    return ("ref_logps", *(f"column:{name}" for name in columns))


def _check(score: str, less: str | None) -> None:
    if score == less:
        raise ValueError(f"score and less both name the column {score!r}, whose difference is 0: name two columns.")


def _gap(pairs: Pairs, score: str, less: str | None) -> Tensor:
    """Return (pairs,) in units of the scores: how much better the chosen response was scored than the rejected one."""
    return pairs.columns[score] if less is None else pairs.columns[score] - pairs.columns[less]


def _needs_odpo(alpha: float, score: str, less: str | None) -> tuple[str, ...]:
    return _needs(score, less) if alpha else ("ref_logps",)


def _assumes_odpo(alpha: float) -> str:
    return "the offset asks for a margin beyond the log-odds of the labels" if alpha else "bradley_terry"


@register_loss("odpo", needs=_needs_odpo, check=_check, assumes=_assumes_odpo, paper="2402.10571")
def odpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    scale: Literal["log", "linear"] = "log",
    score: str = "margin",
    less: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin beyond an offset, which grows with how much better the chosen response was scored.

        -log sigma(beta h - alpha f(g)),  f(g) = log g or g,  g = score(y_w) - score(y_l)

    A pair with g <= 0 has no logarithm: under "log" it counts 0, which is the limit for g -> 0.

    Idea: DPO treats a near tie and a clear win alike. The offset demands a larger margin of the clear win. Under "log"
        the offset is negative below g = 1, so that the unit of the scores matters.
    Assumes: Bradley-Terry preferences whose noise is that of a difference of scores with an offset known beforehand.
    Dispute: pairs whose label and scores disagree. The authors' code takes the logarithm of a negative number there,
        which is nan.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0. The authors': .7 with alpha .5
            (sentiment), .05 (toxicity), .5 (summaries).
        alpha: weight of the offset, >= 0; 1 is the code's, 0 is DPO.
        scale: "log", the paper's f; "linear", f(g) = g, which is defined for g <= 0 too.
        score: column that holds g, or the score of the chosen response if `less` is given.
        less: column that holds the score of the rejected response, as in `score=score_chosen, less=score_rejected` for
            UltraFeedback.

    Returns:
        (pairs,) nats. Metrics `margin`: beta h, without the offset; `offset`: alpha f(g), 0 for pairs that count 0.

    Source: arXiv 2402.10571 and its authors' code.
    """
    margin = beta * pairs.log_ratio_margin()
    if not alpha:
        return -logsigmoid(margin), {"margin": margin}
    gap = _gap(pairs, score, less)
    if scale == "linear":
        offset = alpha * gap
        return -logsigmoid(margin - offset), {"margin": margin, "offset": offset}
    counts = gap > 0
    offset = alpha * torch.where(counts, gap, 1.0).log()
    return -logsigmoid(margin - offset) * counts, {"margin": margin, "offset": offset}


@register_loss(
    "rpo_reward",
    needs=_needs,
    check=_check,
    assumes="its targets are differences of scores, and the labels are not used",
    paper="2406.11704",
)
def rpo_reward(
    pairs: Pairs,
    *,
    beta: Positive = 0.2,
    eta: Positive = 1.0,
    distance: Literal["backward_kl", "forward_kl", "squared"] = "backward_kl",
    score: str = "margin",
    less: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Match the difference between the responses' rewards, as the policy implies it, to the difference of their scores.

        D[beta h || eta g],  h = D(y_w) - D(y_l),  g = score(y_w) - score(y_l)

        backward_kl  KL(sigma(eta g) || sigma(beta h))    forward_kl  KL(sigma(beta h) || sigma(eta g))
        squared      (beta h - eta g)^2

    Both KLs are between two coins. For eta g -> infinity backward_kl is `dpo`; where sigma(eta g) = 1 - e it is `dpo`
    with label smoothing e, less the entropy of the target.

    Idea: Reward-aware preference optimisation knows how much better a response is, so that near ties are not pulled
        apart and margins do not run away. It trusts the scores: their scale (eta) sets how far the policy goes.
    Assumes: scores are rewards up to a constant of the prompt and the scale eta; which response was chosen is not used,
        as a pair with its sides exchanged has the same loss.

    Args:
        beta: weight of the KL to the reference, > 0; .2 is the code's default.
        eta: units of reward of one unit of the scores, > 0; 1 is the code's default.
        distance: "backward_kl" is Nemotron-4's; NeMo-Aligner writes rpo_bwd_kl, rpo_fwd_kl and rpo_sq.
        score: column that holds g, or the score of the chosen response if `less` is given.
        less: column that holds the score of the rejected response, as in `score=score_chosen, less=score_rejected` for
            UltraFeedback.

    Returns:
        (pairs,) nats ("squared": squared), 0 where beta h = eta g. Metric `margin`: beta h.

    Source: Nemotron-4 340B, arXiv 2406.11704; NeMo-Aligner's code.
    """
    margin, target = beta * pairs.log_ratio_margin(), eta * _gap(pairs, score, less)
    if distance == "squared":
        return (margin - target).square(), {"margin": margin}
    first, second = (target, margin) if distance == "backward_kl" else (margin, target)
    return _coin_kl(first, second), {"margin": margin}


def _coin_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(sigma(first) || sigma(second)), any shape, nats."""
    heads = torch.sigmoid(first) * (logsigmoid(first) - logsigmoid(second))
    return heads + torch.sigmoid(-first) * (logsigmoid(-first) - logsigmoid(-second))


@register_loss(
    "mappo",
    needs=_needs,
    check=_check,
    assumes="the rejected response counts by its score: not the log-odds of a pair",
    paper="2507.21183",
)
def mappo(
    pairs: Pairs, *, beta: Positive = 0.1, scale: Positive = 1.0, score: str = "margin", less: str | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin with the rejected response weighted by how much worse it was scored.

        -log sigma(beta [D(y_w) - g D(y_l)]),  g = scale (score(y_w) - score(y_l)), cut to [0, 1]

    g = 1 is `dpo`, a constant g is `dpo_shift`. At g = 0 the rejected response is left alone.

    Idea: In a near tie the rejected response is nearly as good as the chosen one, and DPO would unlearn it. MaPPO reads
        the difference of scores as prior knowledge of the rewards and pushes down in proportion.
    Assumes: scores in [0, 1], which make a prior over rewards; the loss is then a maximum a posteriori estimate.
    Dispute: how the scores of a reward model come to lie in [0, 1] is not in the paper's equations. Here `scale` sets
        their unit, and what lies outside is cut; a pair whose label and scores disagree has g = 0.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        scale: factor that brings differences of scores into [0, 1], > 0: .1 for scores from 0 to 10.
        score: column that holds the difference, or the score of the chosen response if `less` is given.
        less: column that holds the score of the rejected response, as in `score=score_chosen, less=score_rejected` for
            UltraFeedback.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metrics `margin`: the argument of sigma; `factor`: g.

    Source: arXiv 2507.21183, eq. 8 of its fifth version.
    """
    factor = (scale * _gap(pairs, score, less)).clamp(0, 1)
    margin = beta * (pairs.chosen.log_ratio() - factor * pairs.rejected.log_ratio())
    return -logsigmoid(margin), {"margin": margin, "factor": factor}
