"""Token ids and positions that a model can read; beyond them torch raises an `IndexError`."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from plo.backbone.head import ModelError
from plo.backbone.steps import longest
from plo.data import Pair


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings of."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[0]


def check_vocabulary(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise a ModelError if a tokenizer writes ids that the model has no embedding of.

    Special tokens other than EOS are ignored, as many tokenizers have a padding token that their model has never seen.
    """
    size = vocabulary_of(model)
    unused = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= size and i not in unused}
    if beyond:
        first = min(beyond)
        raise ModelError(
            f"The tokenizer of {model.name_or_path} has the token {beyond[first]!r} with the id {first}, and the model has "
            f"embeddings of {size} tokens: take the tokenizer that belongs to it, or save the model again after "
            f"model.resize_token_embeddings({max(beyond) + 1})."
        )


def learned_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has learned embeddings of; None if it computes them, for any length."""
    tokens = model.get_input_embeddings()
    found = [
        module.num_embeddings - getattr(module, "offset", 0)  # OPT's first two are not positions
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module is not tokens and re.search(r"wpe$|position", name)
    ]
    return min(found, default=None)


def check_length(model: PreTrainedModel, tokens: int, what: str, remedy: str) -> None:
    """Raise a ModelError if a sequence has more tokens than the model has learned positions.

    Args:
        what: the sequence, for the message.
        remedy: what to do about it, for the message.
    """
    limit = learned_positions(model)
    if limit is not None and tokens > limit:
        raise ModelError(
            f"{what} takes {tokens} tokens, and {model.name_or_path} has learned {limit} positions: {remedy}."
        )


def check_rows(model: PreTrainedModel, pairs: Sequence[Pair]) -> None:
    """Raise a ModelError, which names the row, if a pair has token ids or positions that the model does not know."""
    size = vocabulary_of(model)
    limit = learned_positions(model)
    for pair in pairs:
        if limit is not None:
            check_length(model, longest(pair), pair.where, f"set data.max_length={limit} or less")
        if (largest := max(map(max, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)))) >= size:
            raise ModelError(
                f"{pair.where} holds the token id {largest}, and {model.name_or_path} has embeddings of {size} tokens: take "
                f"the tokenizer that belongs to it, or remove that token's text from the row."
            )
