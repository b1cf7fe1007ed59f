"""Token credit on the pocket task: the implicit reward of each token, log pi/ref, against the token's true advantage."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import PositiveFloat, PositiveInt

from plo.data import Pair
from plo.evals.findings import Findings
from plo.evals.registry import EvaluationError, register_evaluation
from plo.pocket import Prompt, Walk, language
from plo.pocket.pairs import held_out_set
from plo.pocket.words import ID, PROMISERS, WORDS
from plo.subjects import ScoringSubject, Subject, SubjectError

LARGE = 0.5  # |A| above which the sign counts, in units of reward
SEED = 2**31 + 1  # of the responses, which are the same for every policy


@dataclass(frozen=True)
class Responses:
    """Held-out responses of the reference, with the truth about their tokens. Arrays are of all tokens, one after another.

    Attributes:
        pairs: two responses to a prompt each; those of pair i are responses 2 i and 2 i + 1.
        response, prompt: number of the response and of the prompt that a token belongs to.
        ids: the tokens.
        own: own reward of each token.
        advantage, soft: A under the reference, and A* of the optimum of E[R] - beta KL.
    """

    pairs: list[Pair]
    response: np.ndarray
    prompt: np.ndarray
    ids: np.ndarray
    own: np.ndarray
    advantage: np.ndarray
    soft: np.ndarray


def draw(asked: list[Prompt], each: int, beta: float) -> Responses:
    """Draw `each` responses, an even number, of the reference to each prompt."""
    repeated = [prompt for prompt in asked for _ in range(each)]
    drawn = language().sample(repeated, SEED)
    walk: Walk = language().walk(repeated, drawn)
    starts = [tuple(ID[word] for word in prompt.text.split()) for prompt in repeated]
    pairs = [
        Pair(starts[i], tuple(drawn[i]), tuple(drawn[i + 1]), repeated[i].text, f"credit[{i}]", {})
        for i in range(0, len(drawn), 2)
    ]
    response = np.nonzero(walk.mask)[0]
    mask = walk.mask
    return Responses(
        pairs,
        response,
        response // each,
        walk.ids[mask],
        walk.reward[mask],
        walk.advantages(language().values)[mask],
        walk.advantages(language().soft_values(beta))[mask],
    )


@register_evaluation(
    "credit",
    level="model",
    main_score="r_A",
    higher_is_better={
        "r_A": True,
        "r_soft": True,
        "r_A0": True,
        "sign": True,
        "r_not": True,
        "r_promiser": True,
        "exclamation": None,
        "r_sum": True,
    },
    bounds={"r_*": (-1, 1), "sign": (0, 1)},
    meaning={
        "r_A": "correlation of log pi/ref with the true advantage A of a token, over held-out responses of the reference",
        "r_soft": "correlation of log pi/ref with A*, the advantage under the best policy at the price beta of KL",
        "r_A0": "r_A on tokens without a reward of their own (planning)",
        "sign": "share of tokens with |A| > 0.5 on which log pi/ref has the sign of A",
        "r_not": "r_A at the word `not`",
        "r_promiser": "r_A at who promises, long before it is kept or not",
        "exclamation": "credit that `!` gets beyond its advantage, in units of reward: the truth is 0",
        "r_sum": "correlation of the sums over a response: log pi/ref with reward less value",
    },
)
def credit(
    subject: Subject,
    *,
    held_out: str = "test",
    each: PositiveInt = 6,
    beta: PositiveFloat = 1.0,
) -> Findings:
    """Compare each token's implicit reward, log pi/ref, with its true advantage, on held-out responses of the reference.

        r_A = corr_t(log pi(y_t | s_t) - log ref(y_t | s_t), A(s_t, y_t)),   A(s, a) = r(s, a) + V(s') - V(s)

    A is exact, by dynamic programming over the automaton that the responses are drawn from. Correlations need no scale;
    `exclamation` is in the scale in which log pi/ref has the spread of A. A policy that gives no credit at all has 0, and
    .5 for `sign`.

    An item is a prompt. Its number is the metric plus the prompt's share in its deviation (the influence function), so that
    the mean over prompts is the metric and their spread its standard error.

    Args:
        held_out: set of prompts, "test" or "tune".
        each: number of responses per prompt, even.
        beta: price of KL for which A* is the advantage.

    Raises:
        EvaluationError: the model does not read the words of the pocket task, or `each` is odd.
        SubjectError: the subject gives no log-probs, or has no reference.
    """
    ratios, truth = _log_ratios(subject, draw(held_out_set(held_out), _even(each), beta))
    planning = truth.own == 0
    large = np.abs(truth.advantage) > LARGE
    marks = truth.ids == ID["!"]
    sums, right = (np.bincount(truth.response, weights) for weights in (ratios, truth.advantage))
    owner = truth.prompt[np.r_[True, np.diff(truth.response) > 0]]
    silent = ratios.std() < 1e-6
    scale = 0.0 if silent else truth.advantage.std() / ratios.std()
    hits = np.where(np.abs(ratios) < 1e-6, 0.5, np.sign(ratios) == np.sign(truth.advantage))
    of_prompts = {
        "r_A": _correlation(ratios, truth.advantage, truth.prompt),
        "r_soft": _correlation(ratios, truth.soft, truth.prompt),
        "r_A0": _correlation(ratios, truth.advantage, truth.prompt, planning),
        "sign": _mean(hits, truth.prompt, large),
        "r_not": _correlation(ratios, truth.advantage, truth.prompt, truth.ids == ID["not"]),
        "r_promiser": _correlation(
            ratios, truth.advantage, truth.prompt, np.isin(truth.ids, [ID[word] for word in PROMISERS])
        ),
        "exclamation": _mean(scale * ratios - truth.advantage * (not silent), truth.prompt, marks),
        "r_sum": _correlation(sums, right, owner),
    }
    items = pd.DataFrame(of_prompts).rename_axis("prompt_id").reset_index()
    metrics = {name: float(values.mean()) for name, values in of_prompts.items()}
    table = pd.DataFrame(
        {
            "response": truth.response,
            "word": [WORDS[token] for token in truth.ids],
            "log_ratio": ratios.round(4),
            "advantage": truth.advantage.round(4),
            "soft_advantage": truth.soft.round(4),
        }
    )
    return Findings(metrics, items, (), {"credit_tokens.json": table})


def _even(each: int) -> int:
    if each % 2:
        raise EvaluationError(
            f"The evaluation 'credit' scores responses in pairs: give an even number, not each={each}."
        )
    return each


def _log_ratios(subject: Subject, truth: Responses) -> tuple[np.ndarray, Responses]:
    """Return log pi/ref of all tokens, and the responses."""
    reference = subject.reference
    if not isinstance(subject, ScoringSubject) or not isinstance(reference, ScoringSubject):
        raise SubjectError(
            f"{subject.name} gives no log-probs of policy and reference, which 'credit' compares: evaluate a cell of a "
            f"comparison, or name the reference with --against pocket."
        )
    if subject.tokenizer.get_vocab() != ID:
        raise EvaluationError(
            f"{subject.name} does not read the {len(ID)} words of the pocket task as its tokens. Set model=pocket."
        )
    ours, theirs = (
        np.concatenate([side.double().numpy() for sides in one.logps(truth.pairs).logps for side in sides])
        for one in (subject, reference)
    )
    return ours - theirs, truth


def _correlation(x: np.ndarray, y: np.ndarray, prompt: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return (prompts,) numbers whose mean is the Pearson correlation and whose spread is that of its influence function."""
    count = prompt.max() + 1
    if where is not None:
        x, y, prompt = x[where], y[where], prompt[where]
    if len(x) < 2 or x.std() < 1e-6 or y.std() < 1e-6:
        return np.zeros(count)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    r = (x * y).mean()
    influence = x * y - r * (x * x + y * y) / 2
    return r + np.bincount(prompt, influence, minlength=count) * count / len(x)


def _mean(values: np.ndarray, prompt: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return (prompts,) numbers whose mean is that of the values, and whose spread is that of its influence function."""
    count = prompt.max() + 1
    values, prompt = values[where].astype(float), prompt[where]
    mean = values.mean()
    return mean + np.bincount(prompt, values - mean, minlength=count) * count / len(values)
