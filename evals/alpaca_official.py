"""AlpacaEval 2's definitions: rates by the alpaca-eval package, order of the answers, judge prompt."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.borrowed import check_alpaca_eval
from plo.evals.files import from_hub
from plo.evals.judges import Template
from plo.evals.registry import EvaluationError
from plo.statistics import pseudo_values

REPOSITORY = "tatsu-lab/alpaca_eval"
INSTRUCTIONS = 805
LABELS = ("m", "M")
_PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
_NEEDS = ("preference", "output_1", "output_2", "generator_1", "generator_2")


def win_rates(
    annotations: pd.DataFrame, *, files: Path | None = None, length_controlled: bool = True
) -> dict[str, float]:
    """Compute AlpacaEval 2's rates of one model with the package's own functions.

    With y = preference - 1: win_rate = 100 mean(y); standard_error = 100 sd(y, ddof 1) / sqrt(n); discrete_win_rate counts
    a draw (y = .5) as half a win. The length-controlled rate is 100 mean sigmoid(a difficulty_i + b) of the regression
    sigmoid(a difficulty_i + b + c tanh((len_1 - len_2) / sd)), lengths in characters, which the package fits.

    Args:
        annotations: one row per instruction, with columns preference (from 1, the baseline is better, to 2, the model is; NaN
            is left out), output_1 and generator_1 of the baseline, output_2 and generator_2 of the model. The index is the
            instruction's position among the 805, by which the regression finds its difficulty. (The published rates of models
            without an output for some instructions are numbered without gaps: index 0, 1, ... reproduces those.)
        files: folder with the regression's `df_gamed.csv` (or `df_gamed_*.csv`); None: the hub.
        length_controlled: compute the length-controlled rate, which needs the file and a fit.

    Returns:
        Percentages by the package's names: win_rate, standard_error, n_wins, n_wins_base, n_draws, n_total,
        discrete_win_rate, length_controlled_winrate, lc_standard_error; and avg_length, mean characters of output_2.

    Raises:
        EvaluationError: a column or file is missing, or a position is not one of the 805, or appears twice.
    """
    metrics = _package("metrics")
    annotations = _checked(annotations)
    if not length_controlled:
        rates = metrics.get_winrate(annotations)
    else:
        with _local(metrics.glm_winrate, files):
            rates = metrics.get_length_controlled_winrate(
                annotations, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
            )
    return {name: float(rate) for name, rate in rates.items()} | {
        "avg_length": float(annotations["output_2"].str.len().mean())
    }


def length_controlled_items(annotations: pd.DataFrame, *, files: Path | None = None) -> pd.Series:
    """Return 35 pseudo-values of the length-controlled rate, whose mean is the rate and whose standard error is its own.

        value_g = rate + 34 (mean_h rate_(-h) - rate_(-g)),    rate_(-g) fitted without the instructions of group g

    They are the jackknife's pseudo-values (`plo.statistics.pseudo_values`) without its correction of the bias. The groups
    depend only on the number of instructions, unreadable verdicts included, so that two models that answered the same
    instructions can be compared in pairs. It takes 36 fits.

    Args:
        annotations, files: as for `win_rates`.

    Returns:
        Shares, indexed by the first 35 instructions, which stand for the groups.
    """

    def rate(kept: Any) -> Any:
        return np.array(win_rates(annotations.iloc[kept], files=files)["length_controlled_winrate"] / 100)

    values = pseudo_values(rate, len(annotations))
    whole = float(rate(np.arange(len(annotations))))
    return pd.Series(whole + values - values.mean(), annotations.index[: len(values)])


def official_order(instruction: str) -> bool:
    """Return whether AlpacaEval shows the model's answer first (True, "switched") or the baseline's."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def official_template() -> Template:
    """Return the judge prompt of `weighted_alpaca_eval_gpt4_turbo` from the package, with labels m (shown first) and M."""
    utils, constants = _package("utils"), _package("constants")
    text = (constants.EVALUATORS_CONFIG_DIR / _PROMPT).read_text(encoding="utf-8")
    slots = {"{instruction}": "{prompt}", "{output_1}": "{a}", "{output_2}": "{b}"}
    messages = []
    for message in utils.prompt_to_chatml(text):
        for theirs, ours in slots.items():
            message["content"] = message["content"].replace(theirs, ours)
        messages.append((message["role"], message["content"]))
    name, version = Path(_PROMPT).stem, importlib.metadata.version("alpaca-eval")
    identity = f"{name} {version} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Template(name, version, LABELS, "first_token", tuple(messages), identity)


def official_file(folder: Path | None, name: str) -> Path:
    """Return the path of a file of the AlpacaEval data set: `name`, or `stem_*.ext`, in the folder, or from the hub.

    Raises:
        EvaluationError: the folder lacks the file, or it cannot be downloaded.
    """
    if folder is not None:
        stem, ext = name.rsplit(".", 1)
        found = [folder / name] if (folder / name).is_file() else sorted(folder.glob(f"{stem}_*.{ext}"))
        if not found:
            raise EvaluationError(
                f"The folder {folder} has no {name}: put that file of the hub's data set {REPOSITORY} there, "
                f"or name no folder to have it downloaded."
            )
        return found[0]
    return from_hub(REPOSITORY, name, "name a folder with the file: alpaca_eval(data=FOLDER)")


def _package(module: str) -> Any:
    """Import a module of the package without its warning about pkg_resources."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(f"alpaca_eval.{module}")
    except ImportError as error:
        raise EvaluationError(
            f"AlpacaEval's rates and prompt need the package alpaca-eval ({error}): pip install 'plo[evals]'."
        ) from error
    check_alpaca_eval()
    return found


@contextlib.contextmanager
def _local(module: Any, files: Path | None) -> Iterator[None]:
    """Let the regression's module read its files by `official_file`, and contain scikit-learn's settings and warnings."""
    import sklearn

    theirs = module.hf_hub_download
    module.hf_hub_download = lambda filename, **_: str(official_file(files, filename))
    try:
        with sklearn.config_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        module.hf_hub_download = theirs


def _checked(annotations: pd.DataFrame) -> pd.DataFrame:
    if missing := [column for column in _NEEDS if column not in annotations.columns]:
        raise EvaluationError(f"The annotations lack the columns {', '.join(missing)}: they need {', '.join(_NEEDS)}.")
    positions = annotations.index.to_numpy()
    if not np.isin(positions, np.arange(INSTRUCTIONS)).all() or annotations.index.has_duplicates:
        raise EvaluationError(
            f"The annotations' index must hold positions among the {INSTRUCTIONS} instructions, 0 to {INSTRUCTIONS - 1}, each at "
            f"most once."
        )
    return annotations.loc[annotations["preference"].notna(), list(_NEEDS)].rename_axis(None)
