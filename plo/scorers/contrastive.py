"""T-REG's token rewards: how much likelier a token is where the initial model is asked to improve the response."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plo.data.offsets import answers
from plo.data.tokenize import Ids, tokenize_prompt
from plo.scorers.judge_prompt import written
from plo.scorers.scorer import Material, Scores, register_scorer

# The wording is part of the code, which identifies the rewards.
SHOWN = """

=== Prompt begins ===
{prompt}
=== Prompt ends ===

=== Response begins ===
{response}
=== Response ends ===

"""
BETTER = f"""A user gave the prompt below, and an assistant responded to it. Revise the response so that it is better: more helpful, \
more correct, more coherent and more concise.{SHOWN}Reply with the better response, and nothing else.
"""
WORSE = f"""A user gave the prompt below, and an assistant responded to it. Revise the response so that it is worse: less helpful, \
less correct, less coherent and more verbose.{SHOWN}Reply with the worse response, and nothing else.
"""


@register_scorer("contrastive_prompts", reads=("texts", "model"), paper="2412.02685 (T-REG)")
def contrastive_prompts(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Reward each token by how much likelier the reference finds it when asked for a better response than for a worse one.

        r_t = sigma(log ref(y_t | better, y_<t) - log ref(y_t | worse, y_<t)) - 1/2

    `better` and `worse` are prompts that show the user's prompt and the response, and ask to revise the response: more helpful,
    correct, coherent and concise, or the opposite. The response is then read as the answer to each of them.

    These are rewards, not weights: signed, and near 0 where the two prompts make no difference. `treg` reads them.

    Idea: A model that can revise a response knows which of its tokens a better one would keep. Nothing is trained or labelled;
        four forward passes per pair are all. A model that cannot follow the request gives noise.
    Assumes: the odds of a token between the two revisions are monotone in how good the token is.
    Dispute: the wording. Accounts of the paper give the four qualities and call the prompts revisions; the prompts themselves
        could not be had, and these are plo's own. With a copy of the response in view most tokens are near certain under
        both prompts, so that rewards are small.

    Yields:
        (T_w,), (T_l,) rewards in [-.5, .5], EOS included; their sum has no fixed value, 0 for a model that ignores the request.

    Raises:
        DataError: pairs without texts, or texts that the tokenizer cannot read, as a small vocabulary cannot read English.
        ModelError: a prompt with its response is longer than the model's positions.

    Source: arXiv 2412.02685 (ACL 2025), by accounts of its equations.
    """
    asked = {text: [_prompts(pair, material.tokenizer, text) for pair in material.pairs] for text in (BETTER, WORSE)}
    better, worse = (material.logps_after(prompts) for prompts in asked.values())
    for of_better, of_worse in zip(better, worse, strict=True):
        yield rewards(of_better, of_worse)


def rewards(better: Scores, worse: Scores) -> tuple[Tensor, ...]:
    """Return sigma(better - worse) - 1/2 of both responses, from (tokens,) log-probs in nats."""
    return tuple(torch.sigmoid(first - second) - 0.5 for first, second in zip(better, worse, strict=True))


def _prompts(pair: Any, tokenizer: Any, request: str) -> tuple[Ids, Ids]:
    """Return the ids of the request to revise the chosen and the rejected response; without a chat template it is plain text."""
    before, between, after = re.split(r"\{prompt\}|\{response\}", request)  # a text may hold such marks itself
    texts = [f"{before}{written(pair.row.prompt)}{between}{answer.text}{after}" for answer in answers(pair, tokenizer)]
    sides = [[{"role": "user", "content": text}] if tokenizer.chat_template else text for text in texts]
    chosen, rejected = (tokenize_prompt(side, tokenizer) for side in sides)
    return chosen, rejected
