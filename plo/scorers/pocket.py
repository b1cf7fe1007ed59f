"""Token scorers of the pocket task, which know the true advantage of every token: controls, and a ceiling."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plo.pocket import PocketError, Prompt, language
from plo.pocket.words import ID
from plo.scorers.scorer import Material, ScorerError, Scores, register_scorer


@register_scorer("gold_advantage", reads=("texts", "tokenizer"), paper="control: the truth, on the pocket task alone")
def gold_advantage(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Score every token by its true advantage under the reference, which is known on the pocket task alone.

        a_t = A(s_t, y_t) = r(s_t, y_t) + V(s_{t+1}) - V(s_t), exact by dynamic programming

    Idea: `true_advantage` regresses on these numbers, which shows the best credit that training on these pairs can give.
    Assumes: the data are those of the pocket task.

    Yields:
        (T_w,), (T_l,) units of reward, of either sign; they sum to the response's reward less the value of the prompt.
    """
    yield from _advantages(material)


@register_scorer("gold_weights", reads=("texts", "tokenizer"), paper="control: the truth, on the pocket task alone")
def gold_weights(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Weight every token by the size of its true advantage under the reference, which is known on the pocket task alone.

        a_t = |A(s_t, y_t)|

    Idea: If a loss with these weights does not beat the same loss with `shuffled(of=gold_weights)`, the design cannot see
        what token weights do. They are a control, not a ceiling: a weight of 0 leaves a token unanchored.
    Assumes: the data are those of the pocket task.

    Yields:
        (T_w,), (T_l,) units of reward, >= 0; their sum depends on the response.
    """
    for sides in _advantages(material):
        yield tuple(side.abs() for side in sides)


def _advantages(material: Material) -> Iterator[Scores]:
    if material.tokenizer.get_vocab() != ID:
        raise _unknown("The tokens are not its words.")
    try:
        prompts = [Prompt.read(pair.prompt) for pair in material.pairs for _ in range(2)]
    except PocketError as error:
        raise _unknown(str(error)) from error
    responses = [ids for pair in material.pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    advantages = language().walk(prompts, responses).advantages(language().values)
    rows = [torch.tensor(row[: len(ids)]) for row, ids in zip(advantages, responses, strict=True)]
    yield from zip(rows[::2], rows[1::2], strict=True)


def _unknown(why: Any) -> ScorerError:
    return ScorerError(
        f"The true advantages of tokens are known on the pocket task alone. {why} Set data=pocket, model=pocket."
    )
