"""Regression on the true advantages of tokens, which are known on the pocket task alone: a ceiling, not a method."""

from torch import Tensor

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "true_advantage",
    needs=("ref_logps", "weights"),
    scorer="gold_advantage",
    assumes="its targets are the truth; no preference is used",
    against=("chosen", "rejected"),
    ceiling=True,
    paper="the ceiling of the pocket task",
)
def true_advantage(pairs: Pairs, *, beta: Positive = 1.0) -> Tensor:
    """Regress the log-ratio of every token on its true advantage, in both responses: the ceiling of token credit.

        sum_t (D_t(y_w) - A_t / beta)^2 + sum_t (D_t(y_l) - A'_t / beta)^2

    D_t = log pi/ref of a token, A_t its advantage under the reference, which the scorer gives as its weight.

    Idea: It shows how near a model can be brought to the true advantages with these pairs and steps. What it lacks of a
        perfect correlation is due to the model, the data and the optimisation, and no loss should be blamed for it.
    Assumes: the weights are the true advantages, which only the pocket task has. Tables show it as a ceiling, without a rank.

    Args:
        beta: units of reward that a nat stands for, > 0; the smaller, the farther the policy moves.

    Returns:
        (pairs,) squared nats.

    Source: the squared error; it is no method of a paper.
    """
    sides = (pairs.chosen, pairs.rejected)
    errors = [(side.log_ratios - side.weights / beta).square().sum(-1) for side in sides]
    return errors[0] + errors[1]
