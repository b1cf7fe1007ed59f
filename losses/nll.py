"""CPO and RPO add the likelihood of the chosen response to a preference loss."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "cpo",
    assumes="no reference: likelihood and preference pull apart, and where they settle is no model's optimum",
    paper="2401.08417",
)
def cpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's loss as if every response were equally likely under the reference, and imitate the chosen response.

        -log sigma(beta (log pi(y_w) - log pi(y_l))) + alpha NLL(y_w),  NLL(y_w) = -mean_t log pi(y_t | s_t)

    log pi(y) is the sum over the response's tokens. With `alpha` 0 it is `dpo` under a uniform reference.

    Idea: CPO saves the pass over the reference, and the NLL keeps the policy near the chosen responses in its place. It
        was made for translations, where the references of a data set are good and not perfect. Sums of log-probs favour
        the shorter response: where lengths differ, `simpo` compares means.
    Assumes: Bradley-Terry preferences over the log-probability of a response, and that the chosen response is worth
        imitating.
    Dispute: how the NLL is averaged. The paper writes -log pi(y_w), a sum over the response. TRL takes the mean over all
        tokens of the batch, so that long responses weigh more. Here each pair has its own mean, so that a pair's loss
        does not depend on the rest of its batch.

    Args:
        beta: scale of the log-probs, > 0.
        alpha: weight of the NLL, >= 0; 1 is the paper's.

    Returns:
        (pairs,) nats. Metric `margin`: the argument of sigma.

    Source: arXiv 2401.08417; TRL's (experimental) CPO, `loss_type="sigmoid"`.
    """
    margin = beta * (pairs.chosen.logp() - pairs.rejected.logp())
    return -logsigmoid(margin) - alpha * pairs.chosen.mean(pairs.chosen.logps), {"margin": margin}


def _assumes_rpo(alpha: float) -> str:
    return "the NLL of the chosen response moves the optimum away from DPO's" if alpha else "bradley_terry"


@register_loss("rpo", needs=("ref_logps",), assumes=_assumes_rpo, paper="2404.19733")
def rpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's loss, and imitate the chosen response by its length-normalised likelihood.

        -log sigma(beta h) + alpha NLL(y_w),  h = D(y_w) - D(y_l),  NLL(y_w) = -mean_t log pi(y_t | s_t)

    Idea: Iterative RPO was made for reasoning, where DPO alone lets the likelihood of correct solutions fall. The NLL
        holds it up. The paper trains with it in iterations that sample pairs anew; the loss alone is this.
    Assumes: Bradley-Terry preferences as in DPO, and that the chosen response is worth imitating.
    Dispute: the paper's first version weighs the DPO term by alpha, its third the NLL, as here. TRL's mean is over all
        tokens of the batch, which `dpo + sft` computes; the paper divides each pair's NLL by that pair's own length, as
        here. "RPO" is also the name of reward-aware preference optimisation, `rpo_reward`.

    Args:
        beta: weight of the KL to the reference in the objective that DPO solves, > 0.
        alpha: weight of the NLL, >= 0; 1 is the paper's, 0 is DPO.

    Returns:
        (pairs,) nats. Metric `margin`: beta h.

    Source: arXiv 2404.19733, its third version; the difference of the versions: TRL's issue 1868.
    """
    margin = beta * pairs.log_ratio_margin()
    return -logsigmoid(margin) - alpha * pairs.chosen.mean(pairs.chosen.logps), {"margin": margin}
