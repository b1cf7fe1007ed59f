"""NCA, BCO, SPPO and APO judge each response of a pair by itself against the reference; Cal-DPO does so alongside DPO."""

from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid

from plo.losses.dpo import dpo
from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _rewards(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    chosen, rejected = beta * pairs.chosen.log_ratio(), beta * pairs.rejected.log_ratio()
    return chosen, rejected, {"margin": chosen - rejected}


@register_loss(
    "nca_pair",
    needs=("ref_logps",),
    assumes="each response is pulled on its own, the chosen one down too: not the log-odds of a pair",
    paper="2402.05369",
)
def nca_pair(pairs: Pairs, *, beta: Positive = 0.01) -> tuple[Tensor, dict[str, Tensor]]:
    """Pull the chosen response up to a fixed reward and push the rejected one down, each by itself.

        -log sigma(r_w) - .5 log sigma(-r_w) - .5 log sigma(-r_l),  r = beta D(y)

    Idea: NCA keeps the log-probs of chosen responses from falling: their reward is pulled to ln 2 and no further. How
        much better the one response was than the other has no effect.
    Assumes: noise contrastive estimation: both responses were drawn from the reference (the halves are 1/K, K = 2),
        and the chosen one also from its reward-tilted target.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0; TRL's default is .1.

    Returns:
        (pairs,) nats; 2 ln 2 where pi is the reference. Metric `margin`: r_w - r_l.

    Source: arXiv 2402.05369 and its authors' code (beta); TRL's `nca_pair`.
    """
    chosen, rejected, metrics = _rewards(pairs, beta)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected), metrics


@register_loss(
    "bco_pair",
    needs=("ref_logps",),
    assumes="each response is classified on its own: its optimum depends on who is compared with whom",
    paper="2404.04656",
)
def bco_pair(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify each response as good or bad, with its reward as the logit.

        -log sigma(r_w) - log sigma(-r_l),  r = beta D(y)

    Idea: Each response counts by itself, as with thumbs up and down. That one was preferred to the other is not used.
    Assumes: a binary classifier of good and bad responses whose logit is the implicit reward.
    Dispute: BCO shifts both rewards by their running mean; TRL's `bco_pair`, which this follows, has no shift. `bco` has.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns:
        (pairs,) nats; 2 ln 2 where pi is the reference. Metric `margin`: r_w - r_l.

    Source: arXiv 2404.04656; TRL's `bco_pair`.
    """
    chosen, rejected, metrics = _rewards(pairs, beta)
    return -logsigmoid(chosen) - logsigmoid(-rejected), metrics


@register_loss(
    "sppo_hard",
    needs=("ref_logps",),
    assumes="hard labels instead of win probabilities: its optimum is not normalised to the reference's",
    paper="2405.00675",
)
def sppo_hard(pairs: Pairs, *, beta: Positive = 1e-3) -> tuple[Tensor, dict[str, Tensor]]:
    """Regress each response's log-ratio on a fixed target, above 0 for the chosen one and as far below for the other.

        (D(y_w) - 1/(2 beta))^2 + (D(y_l) + 1/(2 beta))^2

    Idea: No margin runs away, and targets are the same for near ties and clear wins.
    Assumes: preferences are a game, not a reward; the squares fit one step of multiplicative weights, with win
        probabilities 1 and 0 for the two responses.
    Dispute: the paper estimates win probabilities with a preference model, on the policy's own samples of each
        iteration; on logged pairs this is its loss alone.

    Args:
        beta: sets the targets, > 0: they are +-1 / (2 beta) nats (beta is 1 / eta of the paper). At the
            authors' 1e-3 they are 500 nats away, so that every pair is pulled alike; at TRL's default, .1, 5 nats.

    Returns:
        (pairs,) nats squared; 1 / (2 beta^2) where pi is the reference. Metric `margin`: D(y_w) - D(y_l), nats.

    Source: arXiv 2405.00675, eq. 4.7, and its authors' code (beta); TRL's `sppo_hard`.
    """
    chosen, rejected, metrics = _rewards(pairs, 1.0)
    target = 1 / (2 * beta)
    return (chosen - target).square() + (rejected + target).square(), metrics


@register_loss(
    "cal_dpo",
    needs=("ref_logps",),
    assumes="fixed targets of both responses: its optimum is not normalised to the reference's",
    paper="2412.14516",
)
def cal_dpo(pairs: Pairs, *, beta: Positive = 1e-3, weight: NonNegative = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and regress each response's log-ratio on a fixed reward, so that the chosen one's is above 0.

        -log sigma(h) + weight [(D(y_w) - 1/(2 beta))^2 + (D(y_l) + 1/(2 beta))^2],  h = D(y_w) - D(y_l)

    It is the sum `dpo(beta=1) + 0.5*sppo_hard` under a name of its own.

    Idea: DPO fixes differences of rewards and leaves their level open, so that both responses may fall. The squares
        calibrate the level. At the default beta the targets are 500 nats away and the squares outweigh the logistic by
        far, so that it trains nearly as `sppo_hard` does.
    Assumes: rewards of +-1/2 for chosen and rejected responses, with beta their price in nats; Bradley-Terry for the rest.
    Dispute: the weight of the squares. The paper's is 1 by secondary texts, the authors' code has .5, which is the default
        here. The logistic has no beta in either.

    Args:
        beta: sets the targets, > 0: they are +-1 / (2 beta) nats.
        weight: weight of the squares, >= 0; 0 is DPO at its beta of 1.

    Returns:
        (pairs,) nats, squared for the second term. Metric `margin`: h, nats.

    Source: arXiv 2412.14516 and its authors' code (beta, weight).
    """
    contrast, metrics = dpo(pairs, beta=1.0)
    squares, _ = sppo_hard(pairs, beta=beta)
    return contrast + weight * squares, metrics


@register_loss(
    "apo_zero",
    needs=("ref_logps",),
    assumes="each response is pushed on its own: it saturates instead of settling",
    paper="2408.06266",
)
def apo_zero(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the chosen response above the reference and lower the rejected one below it.

        [1 - sigma(r_w)] + sigma(r_l),  r = beta D(y)

    Idea: APO-zero is meant for a policy that is worse than the chosen responses of the data. Both terms saturate, so
        that a pair far on the wrong side is given up.
    Assumes: chosen responses are better than what the reference writes, rejected ones worse.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns:
        (pairs,) in (0, 2); 1 where pi is the reference. Metric `margin`: r_w - r_l.

    Source: arXiv 2408.06266, eq. 7 (which leaves the constant 1 out); TRL's `apo_zero`.
    """
    chosen, rejected, metrics = _rewards(pairs, beta)
    return sigmoid(-chosen) + sigmoid(rejected), metrics


@register_loss(
    "apo_down",
    needs=("ref_logps",),
    assumes="the chosen response is pushed down on its own, so no one pair's log-odds is its optimum",
    against=("chosen",),
    paper="2408.06266",
)
def apo_down(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Lower both responses, the rejected one further.

        sigma(r_w) + [1 - sigma(r_w - r_l)],  r = beta D(y)

    Idea: APO-down is meant for a policy that is better than the chosen responses of the data already. Any other policy
        unlearns good answers.
    Assumes: even chosen responses are worse than what the reference writes. Where that is false, the loss teaches
        against the data.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns:
        (pairs,) in (0, 2); 1 where pi is the reference. Both terms saturate. Metric `margin`: r_w - r_l.

    Source: arXiv 2408.06266, eq. 8 (which leaves the constant 1 out); TRL's `apo_down`.
    """
    chosen, rejected, metrics = _rewards(pairs, beta)
    return sigmoid(chosen) + sigmoid(rejected - chosen), metrics
