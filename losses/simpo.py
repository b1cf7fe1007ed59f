"""SimPO is DPO's loss on mean log-probs, without a reference; AlphaPO bends its reward."""

from typing import Literal

from torch import Tensor, relu
from torch.nn.functional import logsigmoid

from plo.losses.generators import box_cox
from plo.losses.numbers import Positive, Smoothing, largest_exponent
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


def _check(loss_type: str, label_smoothing: float) -> None:
    if loss_type == "hinge" and label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} has no effect with loss_type='hinge'.")


@register_loss(
    "simpo",
    check=_check,
    assumes="no reference, and rewards are means over tokens: it has no optimum relative to a reference",
    paper="2405.14734",
)
def simpo(
    pairs: Pairs,
    *,
    beta: Positive = 2.0,
    gamma_beta_ratio: float = 0.5,
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
    label_smoothing: Smoothing = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's loss on mean log-probs with a target margin, without a reference.

        -log sigma(beta (mean_t log pi(y_w) - mean_t log pi(y_l)) - gamma),  gamma = beta * gamma_beta_ratio

    Idea: SimPO trains what generation ranks by, the mean log-prob of a token. It needs no pass over the reference; with
        nothing to stay near, learning rate and length of training alone bound how far it goes.
    Assumes: Bradley-Terry preferences over the mean log-probability of a token, with a margin to be won by.

    Args:
        beta: scale of the length-normalised reward, > 0; about 20 times DPO's, since the mean over tokens is
            small.
        gamma_beta_ratio: gamma / beta, the target margin in nats per token.
        loss_type: "sigmoid" as above; "hinge" (the code's other one), max(0, 1 - the argument of sigma).
        label_smoothing: e in [0, .5): (1-e) of the loss above plus e of its mirror image; not with "hinge".

    Returns:
        (pairs,) nats. Metric `margin`: beta times the difference of means, before gamma is subtracted.

    Source: arXiv 2405.14734 and its code (ratio parametrisation).
    """
    margin = beta * (pairs.chosen.mean(pairs.chosen.logps) - pairs.rejected.mean(pairs.rejected.logps))
    logit = margin - beta * gamma_beta_ratio
    if loss_type == "hinge":
        return relu(1 - logit), {"margin": margin}
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit), {"margin": margin}


@register_loss(
    "alphapo",
    assumes="no reference, and rewards are means over tokens: it has no optimum relative to a reference",
    paper="2501.03884",
)
def alphapo(
    pairs: Pairs, *, beta: Positive = 2.0, gamma_beta_ratio: float = 0.5, alpha: float = 0.25
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit SimPO's loss on a bent reward, whose shape decides whether unlikely or likely responses weigh more.

        -log sigma(beta (r_w - r_l) - gamma),  r = (1 - pbar^-alpha) / alpha,  pbar = exp(mean_t log pi(y_t))

    alpha -> 0 is SimPO. With alpha > 0 an unlikely response weighs more than in SimPO, a likely one less. The power is
    cut where beta pbar^-alpha / |alpha| would leave the dtype, with **zero** gradient beyond.

    Idea: AlphaPO adds one hyper-parameter to SimPO and, for unlikely responses, an exponential: watch for gradients that
        explode.
    Assumes: Bradley-Terry preferences over that reward, an alpha-divergence's counterpart of SimPO's.

    Args:
        beta, gamma_beta_ratio: as in `simpo`; gamma = beta * gamma_beta_ratio.
        alpha: shape of the reward, of either sign; 0: log pbar.

    Returns:
        (pairs,) nats. Metric `margin`: beta (r_w - r_l), before gamma is subtracted.

    Source: arXiv 2501.03884; TRL's (experimental) CPO with `loss_type="alphapo"`.
    """
    margin = beta * (_alpha_reward(pairs.chosen, alpha, beta) - _alpha_reward(pairs.rejected, alpha, beta))
    return -logsigmoid(margin - beta * gamma_beta_ratio), {"margin": margin}


def _alpha_reward(side: Side, alpha: float, beta: float) -> Tensor:
    log_p = side.mean(side.logps)
    if alpha > 0:  # with alpha < 0 the power is below 1
        log_p = log_p.clamp(min=-largest_exponent(log_p.dtype, max(beta, 1.0) / min(alpha, 1.0)) / alpha)
    return box_cox(log_p, -alpha)
