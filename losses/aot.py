"""AOT, alignment by optimal transport, compares distributions over the batch, whose quantiles are its sorted values."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive, Smoothing
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss("aot", needs=("ref_logps",), level="batch", paper="2406.05882")
def aot(pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Move the distribution of log-ratios over the batch above the reference's, quantile by quantile.

        -log sigma(beta (sort[log pi(y_w) - log pi(y_l)]_i - sort[log ref(y_w) - log ref(y_l)]_i)), i over the batch

    Idea: AOT compares distributions over a batch instead of the responses of a pair. A batch of few pairs says little
        about a distribution, and accumulation is refused.
    Assumes: the policy's distribution of log-ratios between chosen and rejected should dominate the reference's in the
        first order (every quantile of it larger).

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        label_smoothing: e in [0, .5): (1-e) of the loss above plus e of its mirror image.

    Returns:
        (pairs,) nats, one value per quantile, not per pair; ln 2 where pi is the reference. Metric `margin`: beta h
        of each pair.

    Source: arXiv 2406.05882 (paired data); TRL's `aot`.
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    policy = chosen.logp() - rejected.logp()
    reference = chosen.ref_logps.sum(-1) - rejected.ref_logps.sum(-1)
    delta = policy.sort().values - reference.sort().values
    return _logistic(beta * delta, label_smoothing), {"margin": beta * pairs.log_ratio_margin()}


@register_loss("aot_unpaired", needs=("ref_logps",), level="batch", paper="2406.05882")
def aot_unpaired(
    pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Move the distribution of the chosen responses' rewards above that of the rejected ones', whatever the pairing.

        -log sigma(beta (sort[D(y_w)]_i - sort[D(y_l)]_i)), i over the batch, D(y) = sum_t log pi/ref

    Idea: AOT for data whose pairing is arbitrary: which rejected response belongs to which chosen one does not matter.
        It compares rewards of different prompts, which their normalisers do not justify.
    Assumes: the rewards of chosen responses, over all prompts, should dominate those of rejected ones in the first
        order.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        label_smoothing: e in [0, .5), as in `aot`.

    Returns:
        (pairs,) nats, one value per quantile, not per pair; ln 2 where pi is the reference. Metric `margin`: beta h
        of each pair.

    Source: arXiv 2406.05882 (unpaired data); TRL's `aot_unpaired`.
    """
    delta = pairs.chosen.log_ratio().sort().values - pairs.rejected.log_ratio().sort().values
    return _logistic(beta * delta, label_smoothing), {"margin": beta * pairs.log_ratio_margin()}


def _logistic(logit: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)
