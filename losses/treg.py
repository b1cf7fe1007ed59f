"""T-REG is DPO with a regulariser that spreads the reward of a response over its tokens as given token rewards do."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


def _assumes(alpha: float) -> str:
    return (
        "the regulariser's weight moves with the policy and is held fixed in its gradient" if alpha else "bradley_terry"
    )


def _needs(alpha: float) -> tuple[str, ...]:
    return ("ref_logps", "weights") if alpha else ("ref_logps",)


def _detached(alpha: float) -> tuple[str, ...]:
    return ("logps", "ref_logps") if alpha else ()


@register_loss(
    "treg",
    needs=_needs,
    scorer="contrastive_prompts",
    assumes=_assumes,
    detached=_detached,
    paper="2412.02685",
)
def treg(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 0.25) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and raise or lower each token by a reward that was given to it, in pairs that are not learnt yet.

        -log sigma(beta h) + alpha sg[sigma(-beta h)] [R(y_w) + R(y_l)],  R(y) = -beta sum_t r_t log pi(y_t | s_t)

    r are the token rewards that the scorer makes, signed, in [-.5, .5] by `contrastive_prompts`. With alpha 0 it is `dpo`.

    Idea: DPO's own token rewards, beta log pi/ref, say nothing of which tokens earned the preference. The regulariser is
        their product with given rewards: it raises tokens with r > 0, in the rejected response too, and lowers those with
        r < 0. sigma(-beta h) is the weight of the pair in DPO's gradient, so that both terms fade together.
    Assumes: given rewards that are right more often than not; they are a weak signal, and alpha says how weak.
    Dispute: how much finer than DPO it is. Its gradient is DPO's with each token of the chosen response weighted 1 + alpha r_t
        and each of the rejected one 1 - alpha r_t: the weights of `tgdpo`, at the pair's weight in DPO. With |r| <= .5 and
        alpha .25 they lie between .875 and 1.125. The authors' SimPO-REG, the same around `simpo`, is absent. Their code
        could not be had: this is the paper's equation as detailed accounts give it.

    Args:
        beta: weight of the KL to the reference in the objective that DPO solves, > 0.
        alpha: weight of the regulariser, >= 0; the paper searches .1, .25 and .5.

    Returns:
        (pairs,) nats. Metrics `margin`: beta h; `regulariser`: sigma(-beta h) [R(y_w) + R(y_l)], without alpha.

    Source: arXiv 2412.02685 (ACL 2025), by accounts of its equations.
    """
    margin = beta * pairs.log_ratio_margin()
    if not alpha:
        return -logsigmoid(margin), {"margin": margin}
    spread = _regulariser(pairs.chosen, beta) + _regulariser(pairs.rejected, beta)
    regulariser = (-margin).sigmoid().detach() * spread
    return -logsigmoid(margin) + alpha * regulariser, {"margin": margin, "regulariser": regulariser}


def _regulariser(side: Side, beta: float) -> Tensor:
    """Return (pairs,) nats: -beta sum_t r_t log pi(y_t | s_t)."""
    return -beta * (side.weights * side.logps).sum(-1)
