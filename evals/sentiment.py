"""Gold reward of the embedded `sentiment` task: VADER (Hutto & Gilbert 2014) on the continuation alone.

VADER adds up the valences of a text's words, x, and reports compound = x / sqrt(x^2 + 15), which saturates:
x = 12 (four strong words) gives .95. A policy beyond that point looks as good as one that only repeats "great".
Therefore the reward is always shown with `valence`, the sum before saturation, per token.
"""

from functools import cache

import numpy as np
import pandas as pd
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from plo.evals.registry import EvaluationError, register_evaluation


class _Analyzer(SentimentIntensityAnalyzer):
    """VADER that also reports the sum of word valences, which its public hook `score_valence` receives.

    Inverting compound instead would fail where it matters: rounded to 4 digits, .9999 means any x from 224 to 387.
    """

    def score_valence(self, sentiments: list[float], text: str) -> dict[str, float]:
        return super().score_valence(sentiments, text) | {"valence": float(sum(sentiments))}


@cache
def _analyzer() -> _Analyzer:
    return _Analyzer()


def compound(text: str) -> float:
    """Return VADER's compound score of a text, in [-1, 1], rounded to 4 digits by VADER; 0 for an empty text."""
    return float(_analyzer().polarity_scores(text)["compound"])


@register_evaluation(
    "sentiment",
    main_score="reward",
    higher_is_better={"reward": True, "valence": True},
    license="MIT",
    citation="Hutto and Gilbert 2014, https://github.com/cjhutto/vaderSentiment",
)
def sentiment(samples: pd.DataFrame) -> pd.DataFrame:
    """Compute `reward`, the compound score of the continuation in [-1, 1], and `valence`, its valence sum / its tokens.

    The valence sum follows VADER's rules for negation, boosters, capitals and "but", without the emphasis for "!" and "?".
    """
    scores = [_analyzer().polarity_scores(text) for text in samples["text"]]
    reward = [score["compound"] for score in scores]
    valence = [score["valence"] for score in scores] / samples["tokens"].clip(lower=1).to_numpy()
    return pd.DataFrame({"reward": reward, "valence": valence}, index=samples.index, dtype=float)


@register_evaluation("gold_win_rate", level="prompt", higher_is_better=True)
def gold_win_rate(samples: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Compute `gold_win_rate`, the share in [0, 1] of wins over the reference in gold reward, by prompt.

    It is the mean over all pairs (policy's sample i, reference's sample j) of the same prompt of
    1 if reward_i > reward_j, 1/2 if equal, 0 otherwise. The reference against itself has exactly 1/2.
    """
    for frame, which in ((samples, "samples"), (reference, "reference")):
        if "reward" not in frame.columns:
            raise EvaluationError(
                f"The evaluation 'gold_win_rate' needs the column 'reward' in the {which} frame: "
                f"also run an evaluation that computes it, such as 'sentiment'."
            )
    theirs = {prompt: rewards.to_numpy() for prompt, rewards in reference.groupby("prompt_id")["reward"]}
    missing = sorted(set(samples["prompt_id"]) - set(theirs))
    if missing:
        raise EvaluationError(
            f"The evaluation 'gold_win_rate': the reference has no samples for {len(missing)} prompts, "
            f"first prompt_id {missing[0]}. Sample it on the same prompts."
        )
    rates = {
        prompt: _win_rate(rewards.to_numpy(), theirs[prompt])
        for prompt, rewards in samples.groupby("prompt_id")["reward"]
    }
    return pd.Series(rates, name="gold_win_rate").rename_axis("prompt_id").to_frame()


def _win_rate(ours: np.ndarray, theirs: np.ndarray) -> float:
    signs = np.sign(ours[:, None] - theirs[None, :])  # 1, 0 or -1; NaN stays NaN
    return float((1 + signs).mean() / 2)
