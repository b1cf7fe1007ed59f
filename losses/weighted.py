"""TwDPO is DPO on token-weighted log-ratios, the loss of AttentionPO, D2PO, TGDPO, SamPO and TIS-DPO."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


def _needs(kl: float) -> tuple[str, ...]:
    return ("ref_logps", "weights", "kl_pi_ref") if kl else ("ref_logps", "weights")


def _check(loss_type: str, kl: float) -> None:
    if kl and loss_type != "sigmoid":
        raise ValueError(f"kl={kl} has no effect with loss_type={loss_type!r}: it belongs to 'sigmoid'.")


def _target_margin(loss_type: str, beta: float) -> float | None:
    return 1 / (2 * beta) if loss_type == "ipo" else None


def _assumes(loss_type: str, kl: float) -> str:
    if loss_type == "sigmoid" and not kl:
        return "bradley_terry"  # with weights of 1: other weights make another reward of it
    return "the optimum is known for the sigmoid without KL alone"


@register_loss("twdpo", needs=_needs, check=_check, assumes=_assumes, target_margin=_target_margin, paper="2605.21883")
def twdpo(
    pairs: Pairs, *, beta: Positive = 0.1, loss_type: Literal["sigmoid", "ipo"] = "sigmoid", kl: NonNegative = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin with a weight on each token's log-ratio.

        -log sigma(beta [h' - kl (K'(y_w) - K'(y_l))]),  h' = sum_t a_t D_t(y_w) - sum_t a'_t D_t(y_l)

    a are the weights of the tokens, K'(y) = sum_t a_t KL(pi || ref) at s_t, with gradient (the other direction than
    TDPO's). With all weights 1 and no KL it is `dpo`, to the last bit. AttentionPO: attention of a judge; D2PO: gamma^t;
    TGDPO: 1 + a r_t (chosen) and 1 - a r_t (rejected); SamPO: 1 on tokens drawn from the longer response, else 0;
    TIS-DPO: ranks of two models' log-ratio.

    Idea: This is the loss of several papers, which differ in the token scorer that makes the weights. Weights that do
        not sum to the length change what beta means.
    Assumes: Bradley-Terry preferences over a reward that is a weighted sum over tokens, with weights known beforehand.
    Dispute: the KL belongs to TIS-DPO's derivation (its code's `token_level`, kl .5), but its released configuration
        leaves it out, and so does the default.

    Args:
        beta: scale of the log-ratios, > 0, not rescaled by the weights: with weights that do not sum to the
            length, one beta does not mean the same. AttentionPO's is .005.
        loss_type: "sigmoid" as above; "ipo" (in D2PO's code), (h'' - 1/(2 beta))^2 with h'' from the weighted
            sums each divided by the response's length, not by its sum of weights.
        kl: weight of the KL, >= 0; for "sigmoid" alone.

    Returns:
        (pairs,) nats ("ipo": squared). Metric `margin`: the argument of sigma ("ipo": h'', nats per token).

    Source: arXiv 2605.21883; also 2506.14574 (TGDPO), 2410.04350 and its code (TIS-DPO), and the code of D2PO and SamPO.
    """
    chosen, rejected = weighted_sum(pairs.chosen), weighted_sum(pairs.rejected)
    if loss_type == "ipo":
        margin = chosen / pairs.chosen.lengths - rejected / pairs.rejected.lengths
        return (margin - 1 / (2 * beta)).square(), {"margin": margin}
    margin = chosen - rejected
    if kl:
        in_chosen, in_rejected = ((side.weights * side.kl_pi_ref).sum(-1) for side in (pairs.chosen, pairs.rejected))
        margin = margin - kl * (in_chosen - in_rejected)
    margin = beta * margin
    return -logsigmoid(margin), {"margin": margin}


def weighted_sum(side: Side) -> Tensor:
    """Return (pairs,) nats: sum_t a_t D_t."""
    return (side.weights * side.log_ratios).sum(-1)
