"""R-DPO, length-normalised DPO and LD-DPO take the length of the responses into account."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive, Share
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _assumes_length_dpo(alpha: float) -> str:
    return "its optimum is that of the reward less alpha times the length" if alpha else "bradley_terry"


@register_loss("length_dpo", needs=("ref_logps",), assumes=_assumes_length_dpo, paper="2403.19159")
def length_dpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and demand less of it from a pair that the longer response won.

        -log sigma(beta h + alpha (T_w - T_l)),  h = D(y_w) - D(y_l),  T the tokens of a response

    The sign follows from the reward r - alpha |y|.

    Idea: R-DPO lets length explain a part of each preference, against answers that grow under DPO: a pair won by the
        longer response teaches less, one won by the shorter more. The price of a token has to be tuned to the data's
        lengths.
    Assumes: Bradley-Terry preferences over a reward that is reduced by alpha for every token.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        alpha: price of a token in units of the argument of sigma (outside beta), >= 0; 0 is DPO.

    Returns:
        (pairs,) nats. Metric `margin`: beta h, without the length term.

    Source: arXiv 2403.19159; the sign by derivation from that reward.
    """
    margin = beta * pairs.log_ratio_margin()
    return -logsigmoid(margin + alpha * (pairs.chosen.lengths - pairs.rejected.lengths)), {"margin": margin}


@register_loss(
    "sigmoid_norm",
    needs=("ref_logps",),
    assumes="log-ratios divided by length: rewards are means over tokens, DPO's optimum only for equal lengths",
    paper="2411.15124",
)
def sigmoid_norm(pairs: Pairs, *, beta: Positive = 5.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's loss on log-ratios averaged over the tokens of a response.

        -log sigma(beta (D(y_w)/T_w - D(y_l)/T_l))

    Idea: The mean keeps a pair's weight from growing with its length. beta has to be larger by about the length of a
        response, and the optimum is no longer that of the KL to the reference.
    Assumes: Bradley-Terry preferences over the mean log-ratio of a token, which is not what the KL-regularised
        objective behind DPO derives.

    Args:
        beta: scale of the mean log-ratios, > 0. Means are as many times smaller than sums as a response has
            tokens: 5 is Tulu 3's, and TRL's default of .1 hardly moves.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: Tulu 3, arXiv 2411.15124; TRL's `sigmoid_norm`.
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    margin = beta * (chosen.mean(chosen.log_ratios) - rejected.mean(rejected.log_ratios))
    return -logsigmoid(margin), {"margin": margin}


def _assumes_ld_dpo(alpha: float) -> str:
    shorter = "the tail beyond the shorter response counts less: DPO's optimum only for equal lengths"
    return shorter if alpha < 1 else "bradley_terry"


@register_loss("ld_dpo", needs=("ref_logps",), assumes=_assumes_ld_dpo, paper="2409.06411")
def ld_dpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: Share = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and count less of what the longer response says after the shorter one has ended.

        -log sigma(beta (D'(y_w) - D'(y_l))),  D'(y) = sum_{t<=m} D_t + alpha sum_{t>m} D_t,  m = min(T_w, T_l)

    Idea: LD-DPO lies between DPO and a comparison of equal lengths. Where length is what makes an answer better, it
        ignores that.
    Assumes: Bradley-Terry preferences as in DPO, and that what a response says beyond the other's length is mostly
        verbosity.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        alpha: in [0, 1], weight of the longer response's tail, for policy and reference alike; 1 is DPO, 0
            drops the tail.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2409.06411; TRL's `ld_alpha`.
    """
    both = pairs.chosen.mask & pairs.rejected.mask  # left-aligned: the first m tokens
    chosen, rejected = (
        torch.where(both, side.log_ratios, alpha * side.log_ratios).sum(-1) for side in (pairs.chosen, pairs.rejected)
    )
    margin = beta * (chosen - rejected)
    return -logsigmoid(margin), {"margin": margin}
