"""BPO matches the ratio of a pair under a Bregman divergence; DPO is one of its generators."""

import math
from typing import Literal

from torch import Tensor

from plo.losses.f_dpo import f_margin
from plo.losses.generators import GeneratorSpec, check_generator, get_generator
from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs

Clip = tuple[float | None, float | None] | None
Ratio = Literal["dpo", "simpo", "forward_kl", "js", "alpha"]


def _check(
    generator: GeneratorSpec,
    lam: float,
    s: float,
    clip: Clip,
    ratio: Ratio,
    gamma_beta_ratio: float | None,
    alpha: float | None,
) -> None:
    check_generator(generator, of=bpo, lam=lam, s=s)
    _log_range(clip)
    for name, value, of in (("gamma_beta_ratio", gamma_beta_ratio, "simpo"), ("alpha", alpha, "alpha")):
        if value is not None and ratio != of:
            raise ValueError(f"{name}={value} has no effect with ratio={ratio!r}: it belongs to {of!r}.")


def _needs(ratio: Ratio) -> tuple[str, ...]:
    return () if ratio == "simpo" else ("ref_logps",)


def _assumes(ratio: Ratio) -> str:
    return (
        "bradley_terry" if ratio == "dpo" else "its ratio is another one than DPO's, whose optimum is not pi* of the KL"
    )


# The settings of the paper's experiments. SimPO's beta and gamma on Llama-3 are not published: `simpo`'s defaults.
SIMPO = {"ratio": "simpo", "beta": 2.0}
PRESETS = {
    "hh": [(1.0, {"lam": 1.2, "clip": (0.01, None)})],
    "tldr": [(1.0, {"beta": 0.5, "lam": -0.5, "clip": (0.025, None)})],
    "llama3": [(0.05, {**SIMPO, "lam": -0.5, "clip": (0.01, 100.0)}), (0.95, {**SIMPO, "generator": "lr"})],
}


@register_loss("bpo", needs=_needs, check=_check, assumes=_assumes, presets=PRESETS, paper="2505.19601")
def bpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    generator: GeneratorSpec = "sba",
    lam: float = -0.5,
    s: float = 4.0,
    clip: Clip = None,
    ratio: Ratio = "dpo",
    gamma_beta_ratio: float | None = None,
    alpha: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Match the policy's ratio of a pair to the data's odds under a Bregman divergence of choice.

        h'(R) R - h(R) - h'(1/R),  R = exp(-beta (D(y_w) - D(y_l))),  D(y) = sum_t log pi/ref

    Generator `lr` is DPO. The default, sba with lam -.5 and s 4, is sqrt(R) - 1, whose slope is positive everywhere. On
    the authors' HH it stays behind DPO's win rate (48.0 to 48.5), and lam 1.2 with a clip is best (57.0).

    The settings of the authors' experiments have names: `bpo(preset=hh)` is lam 1.2 with R >= .01; `preset=tldr` is beta
    .5, lam -.5 with R >= .025; `preset=llama3` is the sum of .05 times sba, lam -.5, R in (.01, 100), and .95 times lr,
    both of SimPO's ratio. Other hyper-parameters may be set with a preset. The beta and gamma of SimPO's ratio are not
    published: they are those of `simpo`. The first two have no upper bound on R, as published: float32 overflows near a
    margin h of -400 (hh) and -350 nats (tldr).

    Idea: BPO reads DPO as the matching of a likelihood ratio and lets the divergence vary. The generator decides how
        strongly won and lost pairs pull; a generator without a floor keeps pulling at won pairs and needs a clip.
    Assumes: Bradley-Terry preferences, so that the data's odds of the rejected response are a density ratio, to which R
        is fitted under a Bregman divergence.
    Dispute: the paper prints the loss of `lsif` as R^2 - 2R, which does not follow from its own h and has no gradient at
        R = 1, where training starts; here it is what h gives, R^2 - 2/R. No code was released: constants are such that
        L(R=1) = -h(1), whatever lam.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        generator: a registered name (lr, kliep, lsif, ba, sba, ...), a `Generator`, or a function h(R).
        lam, s: passed to a generator that has them; sba and ba have lam, sba has s.
        clip: (low, high) range of R, None for no bound. Outside it the loss is constant and its gradient
            **zero**: with a low bound a pair that is won stops pulling. The authors: low .01 (HH), .025
            (TL;DR), (.01, 100) (Llama-3). Generators unbounded below (all but lr and sba with -1 < lam < 0)
            need a low bound. Without a high one sba lam -.5 overflows float32 at beta h = -177.
        ratio: the margin of which R = exp(-margin) is made: "dpo" as above; "simpo", SimPO's less gamma, without a
            reference (beta near 2); "forward_kl", "js" or "alpha", f-DPO's. forward_kl and alpha put an
            exponential into an exponential: every generator but lr needs a clip.
        gamma_beta_ratio: for ratio "simpo", as in `simpo`; None: .5.
        alpha: for ratio "alpha", as in `f_dpo`; None: .5.

    Returns:
        (pairs,), L(R=1) = -h(1) at R = 1: where pi is the reference, but for "simpo" (0 for sba). Metrics
        `margin`: -log R before the clip, nats (beta h for "dpo"); `clipped`: 1 where the clip cut (only with a
        clip).

    Source: arXiv 2505.19601.
    """
    if ratio == "simpo":
        means = pairs.chosen.mean(pairs.chosen.logps) - pairs.rejected.mean(pairs.rejected.logps)
        margin = beta * (means - (0.5 if gamma_beta_ratio is None else gamma_beta_ratio))
    else:
        margin = f_margin(pairs, beta, "reverse_kl" if ratio == "dpo" else ratio, alpha)
    log_R, metrics = -margin, {"margin": margin}
    if clip is not None:
        log_R = log_R.clamp(*_log_range(clip))
        metrics["clipped"] = (log_R != -margin).to(margin.dtype)
    return get_generator(generator, of=bpo, lam=lam, s=s).loss(log_R), metrics


def _log_range(clip: Clip) -> tuple[float, float]:
    low, high = clip if clip is not None else (None, None)
    low, high = 0.0 if low is None else low, math.inf if high is None else high
    if not (low >= 0 and high > low):
        raise ValueError(f"clip={clip} must be (low, high), 0 < low < high on R itself (not log R); None for no bound.")
    return (math.log(low) if low > 0 else -math.inf), math.log(high)
