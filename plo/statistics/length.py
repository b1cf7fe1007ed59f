"""Length-adjusted win rate on any data set: one fit over all models, without given difficulties of the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit

from plo.statistics.intervals import Array, StatisticsError

COLUMNS = ("model", "prompt_id", "win", "length", "base_length")
SLOPE_SD = 0.2
WEAK_SD = 10.0  # of w and phi, so that a model which always wins keeps a finite w
PROMPT_SDS = (0.1, 5.0)  # range in which the prompts' sd is estimated, in logits


@dataclass(frozen=True)
class LengthAdjusted:
    """Result of `length_adjusted`.

    Attributes:
        rates: one row per model (index `model`, sorted): rate and raw, shares in [0, 1]; slope phi + d_m, logits; se of the
            rate, from the infinitesimal jackknife over prompts (the limit of a bootstrap of whole prompts), both sds held
            fixed (with two models or 100 prompts it is somewhat too small).
        items: [prompts, models] pseudo-values of that jackknife: rate_m + n (the prompt's influence on it, centred). Their
            mean is the rate and their standard error is `se`, so that intervals and paired differences are computed of an
            adjusted rate as of any metric. They are not confined to [0, 1].
        prompt_sd, slope_sd: the standard deviations used, in logits.
    """

    rates: pd.DataFrame
    items: pd.DataFrame
    prompt_sd: float
    slope_sd: float


def length_adjusted(
    frame: pd.DataFrame, *, slope_sd: float = SLOPE_SD, prompt_sd: float | None = None
) -> LengthAdjusted:
    """Estimate the win rate that each model would have if its answers were as long as the opponent's.

        logit P(model m wins on prompt i) = w_m + g_i + (phi + d_m) tanh((length_mi - base_length_mi) / sd_m)
        g_i ~ N(0, prompt_sd^2),  d_m ~ N(0, slope_sd^2),  rate_m = mean over all prompts i of sigmoid(w_m + g_i)

    The model is fitted to all models at once by penalised maximum likelihood, with wins between 0 and 1 as soft labels; sd_m
    is the standard deviation (ddof 1) of the model's own length differences. It is *not* AlpacaEval's length-controlled
    rate, whose form it borrows and which takes each prompt's difficulty from other models: report it with the raw rate.

    `prompt_sd` is estimated (largest Laplace marginal likelihood). `slope_sd` is chosen: a model's own slope
    is confounded with its quality (it writes more where it knows more), and a model that is always shorter is
    extrapolated along that slope, so slopes are kept near the common one. The verdicts alone would give a wider prior,
    and every rate depends on it: report the value used.

    With a column `variant`, models that are seeds of one variant share d and sd: their slopes are the same in truth, and
    more seeds make it better known.

    Args:
        frame: one row per verdict, with columns model, prompt_id, win (share in [0, 1]; rows with NaN, an unreadable
            answer, are left out), length and base_length (of the model's and the opponent's text, in the same unit), and
            optionally variant. A model may lack prompts, or have several rows for one.
        slope_sd: standard deviation of d_m, in logits.
        prompt_sd: standard deviation of g_i, in logits; None: estimated.

    Raises:
        StatisticsError: a column or every verdict is missing, a win is outside [0, 1], or a length is not finite.

    Source: Dubois et al. 2024 (arXiv:2404.04475) for the form in length; the prompt effects and the shrinkage are plo's.
    """
    frame = _checked(frame)
    data = _Data.of(frame)
    if prompt_sd is None:
        low, high = np.log(PROMPT_SDS)
        search = minimize_scalar(lambda log: -_Fit(data, float(np.exp(log)), slope_sd).evidence, bounds=(low, high))
        prompt_sd = float(np.exp(search.x))
    fit = _Fit(data, prompt_sd, slope_sd)
    rates, influence = expit(fit.w[:, None] + fit.g).mean(1), fit.influence()
    n = influence.shape[1]
    items = rates[:, None] + n * (influence - influence.mean(1, keepdims=True))
    se = items.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(rates), np.nan)
    columns = {"rate": rates, "raw": frame.groupby("model")["win"].mean(), "slope": fit.slopes, "se": se}
    models = pd.Index(data.names, name="model")
    items = pd.DataFrame(items.T, pd.Index(data.asked, name="prompt_id"), models)
    return LengthAdjusted(pd.DataFrame(columns, models), items, prompt_sd, slope_sd)


def rate_range(
    frame: pd.DataFrame, slope_sds: Sequence[float] = (0.1, 0.2, 0.4, 0.8), prompt_sd: float | None = None
) -> pd.DataFrame:
    """Return the least and greatest length-adjusted rate of each model over the standard deviations a slope may have.

    The rate depends on the chosen `slope_sd` of `length_adjusted`; where the range is wide, length and quality cannot be
    told apart.

    Args:
        frame, prompt_sd: as for `length_adjusted`; the prompts' sd, if it is not given, is estimated at the middle slope_sd.
        slope_sds: standard deviations to try, in logits.

    Returns:
        One row per model: low, high.
    """
    if prompt_sd is None:
        prompt_sd = length_adjusted(frame, slope_sd=slope_sds[len(slope_sds) // 2]).prompt_sd
    fits = [length_adjusted(frame, slope_sd=sd, prompt_sd=prompt_sd).rates["rate"] for sd in slope_sds]
    rates = pd.concat(fits, axis=1)
    return pd.DataFrame({"low": rates.min(axis=1), "high": rates.max(axis=1)})


@dataclass(frozen=True)
class _Data:
    """The verdicts as matrices.

    Attributes:
        names: names of the models.
        asked: ids of the prompts.
        y: (rows,) wins.
        design: (rows, models + 1 + variants), columns of w, phi, d.
        variants: (models,) number of each model's variant.
        prompts: (rows, prompts), 1 at each row's prompt.
    """

    names: list[Any]
    asked: list[Any]
    y: Array
    design: Any  # a sparse array, whose operators have no types
    variants: npt.NDArray[np.intp]
    prompts: Any

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "_Data":
        model, names = pd.factorize(frame["model"], sort=True)
        prompt, asked = pd.factorize(frame["prompt_id"], sort=True)
        variant, _ = pd.factorize(frame["variant" if "variant" in frame else "model"], sort=True)
        difference = (frame["length"] - frame["base_length"]).to_numpy(float)
        sd = pd.Series(difference).groupby(variant).std().fillna(0).to_numpy()[variant]
        with np.errstate(divide="ignore", invalid="ignore"):  # a constant difference gives 0, or +-1
            x = np.tanh(np.where(difference == 0, 0.0, difference / sd))
        rows, slopes = np.arange(len(x)), np.eye(variant.max() + 1)[variant] * x[:, None]
        design = sparse.csr_array(np.column_stack([np.eye(len(names))[model], x, slopes]))
        prompts = sparse.csr_array((np.ones(len(x)), (rows, prompt)))
        of_model = np.zeros(len(names), dtype=np.intp)
        of_model[model] = variant
        return cls(list(names), list(asked), frame["win"].to_numpy(float), design, of_model, prompts)


class _Fit:
    """The penalised maximum, by Newton steps; the prompts' block of the Hessian is diagonal and eliminated."""

    residual: Array
    diagonal: Array
    cross: Array
    schur: Array

    def __init__(self, data: _Data, prompt_sd: float, slope_sd: float):
        self.data, models = data, len(data.names)
        self.weights = np.r_[np.full(models + 1, WEAK_SD), np.full(data.variants.max() + 1, slope_sd)] ** -2.0
        self.prompt_weight = prompt_sd**-2.0
        self.theta: Array = np.zeros(len(self.weights))
        self.g: Array = np.zeros(len(data.asked))
        loss = self._loss(self.theta, self.g)
        for _ in range(100):
            self._curvature()
            slope_theta: Array = data.design.T @ self.residual + self.weights * self.theta
            slope_g: Array = data.prompts.T @ self.residual + self.prompt_weight * self.g
            step = np.linalg.solve(self.schur, slope_theta - self.cross @ (slope_g / self.diagonal))
            step_g = (slope_g - self.cross.T @ step) / self.diagonal
            gain, size = float(slope_theta @ step + slope_g @ step_g), 1.0
            while (new := self._loss(self.theta - size * step, self.g - size * step_g)) > loss - 1e-4 * size * gain:
                size /= 2
            self.theta, self.g, loss = self.theta - size * step, self.g - size * step_g, new
            if gain < 1e-8 * (1 + loss):  # nats; a Newton step leaves an error of the order of its square
                break
        self._curvature()
        self.w, self.slopes = self.theta[:models], self.theta[models] + self.theta[models + 1 :][data.variants]
        logdet = float(np.linalg.slogdet(self.schur)[1] + np.log(self.diagonal).sum())
        self.evidence = -loss - logdet / 2 + len(self.g) * float(np.log(self.prompt_weight)) / 2

    def _logits(self, theta: Array, g: Array) -> Array:
        return self.data.design @ theta + self.data.prompts @ g

    def _loss(self, theta: Array, g: Array) -> float:
        z = self._logits(theta, g)
        penalty = (self.weights @ theta**2 + self.prompt_weight * (g @ g)) / 2
        return float((np.logaddexp(0, z) - self.data.y * z).sum() + penalty)

    def _curvature(self) -> None:
        """Compute residuals and the Hessian's blocks at the current point: `diagonal` (prompts,), `cross` and `schur`."""
        p = expit(self._logits(self.theta, self.g))
        self.residual = p - self.data.y
        weighted = self.data.design * (p * (1 - p))[:, None]
        self.diagonal = self.data.prompts.T @ (p * (1 - p)) + self.prompt_weight
        self.cross = (weighted.T @ self.data.prompts).toarray()
        own = (weighted.T @ self.data.design).toarray() + np.diag(self.weights)
        self.schur = own - (self.cross / self.diagonal) @ self.cross.T

    def influence(self) -> Array:
        """Return d rate_m / d weight of prompt i at weights of 1, (models, prompts)."""
        rates, n = expit(self.w[:, None] + self.g), len(self.g)
        scores: Array = ((self.data.design * self.residual[:, None]).T @ self.data.prompts).toarray()
        moves = -np.linalg.solve(self.schur, scores)  # d theta / d weight of a prompt
        slope = rates * (1 - rates) / n
        through: Array = -(slope / self.diagonal) @ self.cross.T  # the prompts' effects adjust when theta moves
        through[:, : len(self.w)] += np.diag(slope.sum(1))
        return (rates - rates.mean(1, keepdims=True)) / n + through @ moves


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    if missing := [column for column in COLUMNS if column not in frame.columns]:
        raise StatisticsError(
            f"The frame of verdicts lacks the columns {', '.join(missing)}: length_adjusted reads {', '.join(COLUMNS)}."
        )
    frame = frame[frame["win"].notna()]
    if frame.empty:
        raise StatisticsError("The frame of verdicts has no readable verdict.")
    for column, valid in (("win", "in [0, 1]"), ("length", "finite"), ("base_length", "finite")):
        values = frame[column].to_numpy(dtype=float)
        bad = ~((values >= 0) & (values <= 1)) if column == "win" else ~np.isfinite(values)
        if bad.any():
            row = frame.astype(object).iloc[int(bad.argmax())]
            raise StatisticsError(
                f"{bad.sum()} verdicts have a {column} that is not {valid}, the first of the model {row['model']}, "
                f"prompt_id {row['prompt_id']}. Fix or drop those rows."
            )
    return frame
