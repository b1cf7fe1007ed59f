"""SePO is SimPO on the tokens that an oracle selects, the best of chosen, the worst of rejected."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Portion, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


@register_loss(
    "sepo",
    needs=("weights",),
    scorer="log_ratio",
    assumes="no reference, and a selection of tokens: it has no optimum relative to a reference",
    paper="2408.13518",
    search={
        "gamma": (0.5, 8.0)
    },  # a quarter to four times SimPO's 2, near what the paper searched; the code's 1 is in it
)
def sepo(
    pairs: Pairs,
    *,
    gamma: Positive = 1.0,
    k: Portion = 0.3,
    k_rejected: Portion | None = None,
    skip_first: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit SimPO's margin on the tokens that an oracle's rewards select: the best of chosen, the worst of rejected.

        -log sigma(gamma (u(y_w) - u(y_l))),  u(y) = mean over the kept tokens of log pi(y_t | s_t)

    `weights` are the oracle's raw scores, log oracle(y_t) - log oracle_ref(y_t). The max(1, int(k N)) tokens of N with
    the highest scores are kept of the chosen response, those with the lowest of the rejected one; of equal scores the
    earlier token. With k = 1 it is SimPO with beta = gamma and no target margin.

    Idea: SePO trains on some 30% of each response. A small oracle trained on part of the data serves a large policy; if
        the oracle learnt a shortcut (length, an opening), that is what gets selected.
    Assumes: a DPO-trained oracle's log-ratio is the token's share of the reward, and the tokens at its extremes carry
        the preference.
    Dispute: the released code never scores the first token, by an offset in what it stores, and keeps none where
        k N < 1, which gives NaN; the paper searched gamma in 2.1 to 2.5, the code has 1.

    Args:
        gamma: scale, > 0.
        k: portion of the chosen response's tokens to keep, in (0, 1].
        k_rejected: portion of the rejected response's tokens to keep; None: k.
        skip_first: leave the first token out of the choice and of N, as the released code does. A response of one
            token keeps it all the same.

    Returns:
        (pairs,) nats. Metrics `margin`: the argument of sigma; `kept`: share of both responses' tokens kept.

    Source: arXiv 2408.13518 and its code.
    """
    portions = (k, k if k_rejected is None else k_rejected)
    kept = [
        select(side.weights, _candidates(side, skip_first), portion, highest)
        for side, portion, highest in zip((pairs.chosen, pairs.rejected), portions, (True, False), strict=True)
    ]
    counts = [mask.sum(-1) for mask in kept]
    chosen, rejected = (
        (side.logps * mask).sum(-1) / count.clamp(min=1)
        for side, mask, count in zip((pairs.chosen, pairs.rejected), kept, counts, strict=True)
    )
    margin = gamma * (chosen - rejected)
    share = (counts[0] + counts[1]) / (pairs.chosen.lengths + pairs.rejected.lengths)
    return -logsigmoid(margin), {"margin": margin, "kept": share}


def select(scores: Tensor, candidates: Tensor, k: float, highest: bool) -> Tensor:
    """Return (pairs, tokens) bool: the max(1, int(k N)) of a row's N candidates with the highest or lowest scores.

    Of equal scores the earlier token is kept, as by repeated argmax. A row without candidates keeps none.
    """
    keys = scores if not highest else -scores
    keys = keys.masked_fill(~candidates, torch.inf)
    order = keys.sort(dim=-1, stable=True).indices
    count = (k * candidates.sum(-1, keepdim=True).double()).long().clamp(min=1)  # double: int(k N) as Python has it
    first = torch.arange(keys.shape[-1], device=keys.device) < count
    return torch.zeros_like(candidates).scatter(-1, order, first) & candidates


def _candidates(side: Side, skip_first: bool) -> Tensor:
    if not skip_first:
        return side.mask
    later = side.mask.clone()
    later[:, 0] &= side.mask.sum(-1) == 1
    return later
