"""TBPO ("TokenRatio") matches a Bradley-Terry model at every token under a Bregman divergence."""

from typing import Literal

import torch
from torch import Tensor, nn

from plo.losses.generators import Generator, GeneratorSpec, check_generator, get_generator
from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side

# exp(D_t) overflows float32 at 88 nats. At 50 the k3 estimate is 5e21 and log R is far outside its clamp.
K3_MAX_LOG_RATIO = 50.0
MAX_LOG_W = 10.0  # of the released code


def _needs(kl: str) -> tuple[str, ...]:
    return ("ref_logps", "kl_ref_pi") if kl == "full" else ("ref_logps",)


def _assumes_a(kl: str) -> str:
    return "token_a" if kl == "full" else "k3 at the logged token is not the KL of the state, on which R depends"


def _detached(kl: str, detach_kl: bool) -> tuple[str, ...]:
    return (("kl_ref_pi",) if kl == "full" else ("logps",)) if detach_kl else ()


def _check_a(generator: GeneratorSpec, lam: float, s: float) -> None:
    check_generator(generator, of=tbpo_a, lam=lam, s=s)


@register_loss("tbpo_a", needs=_needs, check=_check_a, assumes=_assumes_a, detached=_detached, paper="2605.12288")
def tbpo_a(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    generator: GeneratorSpec = "sba",
    lam: float = 0.0,
    s: float = 4.0,
    kl: Literal["full", "k3", "none"] = "full",
    detach_kl: bool = False,
    max_log_R: Positive | None = 30.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Match the t-th tokens of both responses by a Bregman divergence, with KLs for the values of their states.

        (1/T) sum_{t<=T} [h'(R_t) R_t - h(R_t) - h'(1/R_t)],  T = min(T_w, T_l),
        log R_t = beta (D_t(y_l) - D_t(y_w) + K_t(s_l) - K_t(s_w)),  K_t(s) = KL(ref || pi) at s_t

    D_t = log pi/ref of the t-th token. Tokens are paired by index and the longer response's tail is dropped. In
    log w_t = K_t(s_l) - K_t(s_w) the KLs replace the values of the states, so that R compares advantages.

    Idea: TBPO-A states a preference at every token index instead of one per response, each token in its own context.
        Credit goes to tokens without a second model; tokens of one index have little to do with each other once the
        responses have parted.
    Assumes: a Bradley-Terry model at every token index, of two tokens each in its own context, over advantages under
        the reference.
    Dispute: whether the KL is the full one (the authors' surrounding code) or k3 (the paper's text), and whether
        gradient flows through it, which the paper leaves open; here it does, as in the derivation.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        generator: a registered name, a `Generator`, or a function h(R).
        lam, s: passed to a generator that has them. The default is (R + log R - 1) / 4.
        kl: "full", over the vocabulary; "k3", (r - 1) - log r with r = pi/ref at the logged token (the
            paper's text): cheaper, but unbiased only for tokens drawn from ref, which logged ones are not.
            Log r is cut at 50 nats there. "none": K = 0, hence w = 1: the ablation of this loss and of `tbpo_q`.
        detach_kl: no gradient through K_t.
        max_log_R: log R is clamped to +- this. Outside, the gradient is **zero**. The default generator's
            slope in log R is (R + 1) / 4, which does not saturate. None: no clamp.

    Returns:
        (pairs,), mean over the T paired tokens. Metrics `margin`: mean_t of -log R_t before the clamp, nats;
        `policy_margin`: the policy's part of it, mean_t of beta (D_t(y_w) - D_t(y_l)); `log_w`: how large the other
        part is, mean_t of |beta log w_t|; `clamped`: share of the T tokens that the clamp cut (only with a clamp).

    Source: arXiv 2605.12288. The released A branch is empty: this follows the equations.
    """
    kl_chosen, kl_rejected = (_kl(side, kl) for side in (pairs.chosen, pairs.rejected))
    log_w = kl_rejected - kl_chosen
    log_w = log_w.detach() if detach_kl else log_w
    return _token_loss(pairs, log_w, beta, get_generator(generator, of=tbpo_a, lam=lam, s=s), max_log_R)


def _kl(side: Side, kl: str) -> Tensor:
    if kl == "none":
        return torch.zeros_like(side.logps)
    if kl == "full":
        return side.kl_ref_pi
    return torch.expm1(side.log_ratios.clamp(max=K3_MAX_LOG_RATIO)) - side.log_ratios


def _check_q(generator: GeneratorSpec, lam: float, s: float, center: bool, max_log_w: float | None) -> None:
    check_generator(generator, of=TBPOQ, lam=lam, s=s)
    if not center and max_log_w not in (None, MAX_LOG_W):
        raise ValueError(f"max_log_w={max_log_w} has no effect with center=False: it cuts what is centred.")


def _assumes_q(center: bool) -> str:
    return "centred, log w loses the baseline that stands for log Z" if center else "token_q"


@register_loss("tbpo_q", needs=("ref_logps", "hidden"), check=_check_q, assumes=_assumes_q, paper="2605.12288")
class TBPOQ(nn.Module):
    """Match the t-th tokens of both responses by a Bregman divergence, with a learned baseline for their states.

        (1/T) sum_{t<=T} [h'(R_t) R_t - h(R_t) - h'(1/R_t)],  T = min(T_w, T_l),
        log R_t = beta (D_t(y_l) - D_t(y_w) + log w_t),  log w_t = clamp(b_t - mean_t b_t),  b_t = b(s_l,t) - b(s_w,t)

    D_t = log pi/ref of the t-th token. b is a learned baseline for log Z of the state: an MLP (one hidden layer, GELU) on
    the policy's hidden state, detached, at the position that predicts y_t. The same loss trains it with the policy. The
    paper's equation, log w_t = b_t, is `center=False`.

    Idea: TBPO-Q is `tbpo_a` with a learned normaliser of the state instead of the KL. It reads hidden states where
        `tbpo_a` sums over the vocabulary; the baseline starts untrained and has a learning rate of its own to get right.
    Assumes: a Bradley-Terry model at every token index, as `tbpo_a`, over Q-values; the state's normaliser is learned.
    Dispute: the released code, which this follows, centres log w per pair and clamps it to +-10; the paper does neither.
        Uncentred, a prefix that reveals the side lets the baseline carry the margin: nine tenths of it in a toy problem,
        where the policy learnt a third less. Centred, the optimum of the paper's theorem is not recovered.

    Args:
        hidden_size: d of `hidden` (pairs, tokens, d). It is cast to the baseline's dtype.
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        generator, lam, s, max_log_R: as in `tbpo_a`.
        baseline_size: width of the hidden layer.
        baseline_lr: learning rate of the baseline, > 0 (its own AdamW); read back as `learning_rate`.
        center: take the masked mean over t off b_t, and clamp what is left (the released code). With one token in
            common nothing is left. False: log w_t = b_t (the paper).
        max_log_w: where the centred log w is clamped, > 0, with **zero** gradient outside; None: no clamp. Without
            effect, and refused, with `center=False`.

    Returns (forward):
        (pairs,), mean over the T paired tokens; metrics as in `tbpo_a`.

    Source: arXiv 2605.12288 and the early code of its authors.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        beta: Positive = 0.1,
        generator: GeneratorSpec = "sba",
        lam: float = 0.0,
        s: float = 4.0,
        baseline_size: int = 1024,
        baseline_lr: Positive = 1e-3,
        center: bool = True,
        max_log_w: Positive | None = MAX_LOG_W,
        max_log_R: Positive | None = 30.0,
    ):
        super().__init__()
        self.beta = beta
        self.generator = get_generator(generator, of=TBPOQ, lam=lam, s=s)
        self.learning_rate = baseline_lr
        self.center = center
        self.max_log_w = max_log_w
        self.max_log_R = max_log_R
        self.baseline = nn.Sequential(nn.Linear(hidden_size, baseline_size), nn.GELU(), nn.Linear(baseline_size, 1))

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        log_w = self._baseline(pairs.rejected) - self._baseline(pairs.chosen)
        if self.center:
            both = pairs.chosen.mask & pairs.rejected.mask
            mean = log_w.masked_fill(~both, 0).sum(-1, keepdim=True) / both.sum(-1, keepdim=True).clamp(min=1)
            log_w = log_w - mean
            if self.max_log_w is not None:
                log_w = log_w.clamp(-self.max_log_w, self.max_log_w)
        return _token_loss(pairs, log_w, self.beta, self.generator, self.max_log_R)

    def _baseline(self, side: Side) -> Tensor:
        dtype = next(self.baseline.parameters()).dtype
        return self.baseline(side.hidden.detach().to(dtype)).squeeze(-1)


def _token_loss(
    pairs: Pairs, log_w: Tensor, beta: float, generator: Generator, max_log_R: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    both = pairs.chosen.mask & pairs.rejected.mask
    count = both.sum(-1).clamp(min=1)
    of_policy = beta * (pairs.rejected.log_ratios - pairs.chosen.log_ratios)
    of_policy, of_w = (part.masked_fill(~both, 0) for part in (of_policy, beta * log_w))
    log_R = of_policy + of_w  # 0 off the common tokens before h: the tail must not overflow into a NaN gradient
    metrics = {
        "margin": -log_R.sum(-1) / count,
        "policy_margin": -of_policy.sum(-1) / count,
        "log_w": of_w.abs().sum(-1) / count,
    }
    if max_log_R is not None:
        metrics["clamped"] = (log_R.abs() > max_log_R).sum(-1) / count
        log_R = log_R.clamp(-max_log_R, max_log_R)
    return generator.loss(log_R).masked_fill(~both, 0).sum(-1) / count, metrics
