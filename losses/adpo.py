"""ADPO ("Autoregressive DPO") is DPO with the sum over segments of the responses outside the logistic."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


def _check(window: int | str, segments: int | None) -> None:
    if segments is not None and window != 1:
        raise ValueError(f"window={window} has no effect with segments={segments}: give one of the two.")


def _assumes(window: int | str, segments: int | None) -> str:
    if segments == 1 or (segments is None and window == "all"):
        return "bradley_terry"
    return "a preference between segments, of which data with one preference per pair of responses say nothing"


@register_loss("adpo", needs=("ref_logps",), check=_check, assumes=_assumes, paper="2602.09533")
def adpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    window: PositiveInt | Literal["all"] = 1,
    segments: PositiveInt | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit a preference for the chosen response in every segment, by the segments' own log-ratio margins.

        -sum_s log sigma(beta h_s),  h_s = sum_{t in s} D_t(y_w) - sum_{t in s} D_t(y_l),  D_t = log pi/ref

    The static family (`window`) cuts both responses into windows of that many tokens. Where one response has ended, it
    counts 0. The adaptive family (`segments`) cuts each response into that many parts of equal length: token t of T
    belongs to part floor(t segments / T). One segment is `dpo`, to the last bit.

    Idea: DPO's logistic saturates once the whole response has a margin; here each segment has to earn its own. At
        pi = ref the gradient is DPO's, whatever the segments; afterwards segments without a margin are pulled on.
    Assumes: a Bradley-Terry model of prefixes: the chosen response is preferred in each segment given what precedes it.
    Dispute: what stands opposite a longer response's tail. Secondary texts say that the shorter response is padded; a
        log-ratio of 0 is that, and it pulls the tail up or down alone (`tbpo_a` drops it). The sum is not divided by
        the number of segments: a mean would have another beta in every pair. No code of the authors was found to
        check either, and their contrastive variant is absent. The name ADPO is also that of Anchored DPO (2510.18913).

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        window: tokens per segment, from the first token on; "all": the whole response.
        segments: number of equal parts of each response, in place of `window`. A part is empty where the response has
            fewer tokens than parts.

    Returns:
        (pairs,) nats; ln 2 per segment where pi is the reference. A segment that neither response reaches counts
        nothing. Metric `margin`: beta h of the whole responses.

    Source: arXiv 2602.09533, by its equation; padding: secondary texts.
    """
    if segments is not None:
        chosen, rejected = (_parts(side, segments) for side in (pairs.chosen, pairs.rejected))
    else:
        chosen, rejected = (_windows(side, window) for side in (pairs.chosen, pairs.rejected))
    margins = beta * (chosen[0] - rejected[0])
    reached = chosen[1] | rejected[1]
    loss = -(logsigmoid(margins) * reached).sum(-1)
    return loss, {"margin": margins.sum(-1)}


def _windows(side: Side, window: int | str) -> tuple[Tensor, Tensor]:
    """Return (pairs, segments) nats: the sums of D_t over windows of tokens; and whether the response reaches them."""
    if window == "all":
        return side.log_ratios.sum(-1, keepdim=True), side.mask.any(-1, keepdim=True)
    size = int(window)
    missing = -side.mask.shape[-1] % size
    ratios, mask = (pad(values, (0, missing)).unflatten(-1, (-1, size)) for values in (side.log_ratios, side.mask))
    return ratios.sum(-1), mask.any(-1)


def _parts(side: Side, segments: int) -> tuple[Tensor, Tensor]:
    """Return (pairs, segments) nats: the sums of D_t over equal parts of the response; and whether a part has tokens."""
    index = torch.arange(side.mask.shape[-1], device=side.mask.device)
    lengths = side.mask.sum(-1, keepdim=True).clamp(min=1)
    part = (index * segments // lengths).clamp(max=segments - 1)
    empty = side.logps.new_zeros(len(side.mask), segments)
    sums = empty.scatter_add(-1, part, side.log_ratios)
    return sums, empty.scatter_add(-1, part, side.mask.to(empty.dtype)) > 0
