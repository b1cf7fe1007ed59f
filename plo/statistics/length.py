"""Length-adjusted win rate on any data set: one fit over all models, no difficulty of the prompts given."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit

from plo.statistics.intervals import StatisticsError

COLUMNS = ("model", "prompt_id", "win", "length", "base_length")
SLOPE_SD = 0.2
WEAK_SD = 10.0  # of w and phi: only so that a model which wins everywhere keeps a finite w
PROMPT_SDS = (0.1, 5.0)  # where the prompts' sd is sought, in logits


@dataclass(frozen=True)
class LengthAdjusted:
    """What `length_adjusted` found.

    Attributes:
        rates: a row a model (index `model`, sorted): rate and raw, shares in [0, 1]; slope phi + d_m, logits; se of the rate,
            from the infinitesimal jackknife over prompts (what a bootstrap of whole prompts tends to), both sds held fixed
            (with two models or 100 prompts it is somewhat short).
        items: [prompts, models] pseudo-values of that jackknife: rate_m + n (the prompt's influence on it, centred). Their
            mean is the rate and their standard error is `se`, so that whatever is made of values of single prompts
            (intervals, paired differences) can be made of an adjusted rate too. They are not confined to [0, 1].
        prompt_sd, slope_sd: the ones used, logits.
    """

    rates: pd.DataFrame
    items: pd.DataFrame
    prompt_sd: float
    slope_sd: float


def length_adjusted(
    frame: pd.DataFrame, *, slope_sd: float = SLOPE_SD, prompt_sd: float | None = None
) -> LengthAdjusted:
    """The win rate each model would have, were its answers as long as the opponent's.

        logit P(model m wins on prompt i) = w_m + g_i + (phi + d_m) tanh((length_mi - base_length_mi) / sd_m)
        g_i ~ N(0, prompt_sd^2),  d_m ~ N(0, slope_sd^2),  rate_m = mean over all prompts i of sigmoid(w_m + g_i)

    fitted to all models at once by penalised maximum likelihood, wins between 0 and 1 as soft labels; sd_m is the
    standard deviation (ddof 1) of the model's own length differences. It is *not* AlpacaEval's length-controlled rate,
    whose form it borrows and which brings each prompt's difficulty from other models: report it beside the raw rate.

    `prompt_sd` is chosen by the data (largest Laplace marginal likelihood). `slope_sd` is a choice: a model's own slope
    is confounded with its quality (it writes more where it knows more), and a model that is always shorter is
    extrapolated along that slope, so that slopes are kept near the common one. Verdicts alone would choose it wider,
    and every rate depends on it: say which was used.

    Args:
        frame: a row a verdict, with columns model, prompt_id, win (share in [0, 1]; rows with NaN, an answer that could
            not be read, are left out), length and base_length (of the model's and the opponent's text, in any one unit).
            A model may lack prompts, or have several rows of one.
        slope_sd: of d_m, in logits.
        prompt_sd: of g_i, in logits; None: by the data.

    Raises:
        StatisticsError: a column or every verdict is missing, a win lies outside [0, 1], or a length is not finite.

    Source: Dubois et al. 2024 (arXiv:2404.04475) for the form in length; the prompt effects and the shrinkage are plo's.
    """
    frame = _checked(frame)
    data = _Data.of(frame)
    if prompt_sd is None:
        low, high = np.log(PROMPT_SDS)
        search = minimize_scalar(lambda log: -_Fit(data, np.exp(log), slope_sd).evidence, bounds=(low, high))
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


@dataclass(frozen=True)
class _Data:
    """y, x (rows,); `design` (rows, 2 models + 1): columns of w, phi, d; `prompts` (rows, prompts): which prompt;
    `names` of the models, `asked`: ids of the prompts."""

    names: list
    asked: list
    y: np.ndarray
    design: sparse.csr_array
    prompts: sparse.csr_array

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "_Data":
        model, names = pd.factorize(frame["model"], sort=True)
        prompt, asked = pd.factorize(frame["prompt_id"], sort=True)
        difference = (frame["length"] - frame["base_length"]).to_numpy(float)
        sd = pd.Series(difference).groupby(model).std().fillna(0).to_numpy()[model]
        with np.errstate(divide="ignore", invalid="ignore"):  # a constant difference is 0 or at the scale's end, +-1
            x = np.tanh(np.where(difference == 0, 0.0, difference / sd))
        rows, models = np.arange(len(x)), np.eye(len(names))[model]
        design = sparse.csr_array(np.column_stack([models, x, models * x[:, None]]))
        prompts = sparse.csr_array((np.ones(len(x)), (rows, prompt)))
        return cls(list(names), list(asked), frame["win"].to_numpy(float), design, prompts)


class _Fit:
    """The penalised maximum, by Newton steps; the prompts' block of the Hessian is diagonal and eliminated."""

    def __init__(self, data: _Data, prompt_sd: float, slope_sd: float):
        self.data, models = data, len(data.names)
        self.weights = np.r_[np.full(models + 1, WEAK_SD), np.full(models, slope_sd)] ** -2.0
        self.prompt_weight = prompt_sd**-2.0
        self.theta, self.g = np.zeros(2 * models + 1), np.zeros(data.prompts.shape[1])
        loss = self._loss(self.theta, self.g)
        for _ in range(100):
            self._curvature()
            slope_theta = data.design.T @ self.residual + self.weights * self.theta
            slope_g = data.prompts.T @ self.residual + self.prompt_weight * self.g
            step = np.linalg.solve(self.schur, slope_theta - self.cross @ (slope_g / self.diagonal))
            step_g = (slope_g - self.cross.T @ step) / self.diagonal
            gain, size = slope_theta @ step + slope_g @ step_g, 1.0
            while (new := self._loss(self.theta - size * step, self.g - size * step_g)) > loss - 1e-4 * size * gain:
                size /= 2
            self.theta, self.g, loss = self.theta - size * step, self.g - size * step_g, new
            if gain < 1e-8 * (1 + loss):  # nats; the error after a Newton step is of its square
                break
        self._curvature()
        self.w, self.slopes = self.theta[:models], self.theta[models] + self.theta[models + 1 :]
        logdet = np.linalg.slogdet(self.schur)[1] + np.log(self.diagonal).sum()
        self.evidence = -loss - logdet / 2 + len(self.g) * np.log(self.prompt_weight) / 2

    def _logits(self, theta: np.ndarray, g: np.ndarray) -> np.ndarray:
        return self.data.design @ theta + self.data.prompts @ g

    def _loss(self, theta: np.ndarray, g: np.ndarray) -> float:
        z = self._logits(theta, g)
        penalty = (self.weights @ theta**2 + self.prompt_weight * (g @ g)) / 2
        return float((np.logaddexp(0, z) - self.data.y * z).sum() + penalty)

    def _curvature(self) -> None:
        """Residuals and the Hessian's blocks at the present point: `diagonal` (prompts,), `cross` and `schur`."""
        p = expit(self._logits(self.theta, self.g))
        self.residual = p - self.data.y
        weighted = self.data.design * (p * (1 - p))[:, None]
        self.diagonal = self.data.prompts.T @ (p * (1 - p)) + self.prompt_weight
        self.cross = (weighted.T @ self.data.prompts).toarray()
        own = (weighted.T @ self.data.design).toarray() + np.diag(self.weights)
        self.schur = own - (self.cross / self.diagonal) @ self.cross.T

    def influence(self) -> np.ndarray:
        """(models, prompts): d rate_m / d weight of prompt i, all weights 1."""
        rates, n = expit(self.w[:, None] + self.g), len(self.g)
        scores = ((self.data.design * self.residual[:, None]).T @ self.data.prompts).toarray()
        moves = -np.linalg.solve(self.schur, scores)  # of theta, for a prompt's weight
        slope = rates * (1 - rates) / n
        through = -(slope / self.diagonal) @ self.cross.T  # a prompt's effect gives way when theta moves
        through[:, : len(self.w)] += np.diag(slope.sum(1))
        return (rates - rates.mean(1, keepdims=True)) / n + through @ moves


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    if missing := [column for column in COLUMNS if column not in frame.columns]:
        raise StatisticsError(
            f"The frame of verdicts lacks the columns {', '.join(missing)}: length_adjusted reads {', '.join(COLUMNS)}."
        )
    frame = frame[frame["win"].notna()]
    if frame.empty:
        raise StatisticsError("The frame of verdicts has no row with a win: there is nothing to adjust for length.")
    faults = {
        "win (a share in [0, 1])": ~frame["win"].between(0, 1),
        "length (a finite number)": ~np.isfinite(frame["length"].astype(float)),
        "base_length (a finite number)": ~np.isfinite(frame["base_length"].astype(float)),
    }
    for what, bad in faults.items():
        if bad.any():
            row = frame.astype(object)[bad].iloc[0]
            raise StatisticsError(
                f"{int(bad.sum())} verdicts have a wrong {what}: first of the model {row['model']}, "
                f"prompt_id {row['prompt_id']}. Mend or drop those rows."
            )
    return frame
