"""Compute the statistics of the response tokens from a batch of TRL's trainer."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plo.backbone.head import scaled
from plo.backbone.token_statistics import STATISTICS, Head, register_statistic, token_statistics
from plo.trl.borrowed import REFERENCE_SUMS, check_batch
from plo.trl.errors import TRLError

COLUMN = "column:"  # prefix of a data set's column, in `needs` and in a batch
LOGGED = ENTROPY, TOP1 = "trl_entropy", "trl_is_top1"  # logged as TRL does, and without gradient


@register_statistic(ENTROPY)
def _entropy(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    return STATISTICS["entropy"].load()(log_probs.detach(), None, targets)


@register_statistic(TOP1)
def _is_top1(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    return (log_probs.detach().argmax(-1) == targets).to(log_probs.dtype)


@dataclass(frozen=True)
class ResponseTokens:
    """Places of the response tokens in a batch.

    Attributes:
        predicting: (rows, length - 1) bool: the next token belongs to a response.
        targets: (n,) ids of these next tokens, row after row.
        mask: (rows, tokens) bool, left-aligned.
    """

    predicting: Tensor
    targets: Tensor
    mask: Tensor


def response_tokens(inputs: Mapping[str, Tensor]) -> ResponseTokens:
    """Find the response tokens of a batch, chosen rows before rejected ones."""
    check_batch(inputs)
    predicting = inputs["completion_mask"][:, 1:].bool()
    lengths = predicting.sum(-1, keepdim=True)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths
    return ResponseTokens(predicting, inputs["input_ids"][:, 1:][predicting], mask)


@dataclass(frozen=True)
class Request:
    """Statistics that a forward pass returns instead of logits.

    Attributes:
        names: statistics of each token.
        hidden: return the last hidden states as well.
        ref_hidden: (n, d) those of the reference, for statistics that compare whole distributions.
        ref_head: the reference's LM head.
    """

    names: tuple[str, ...]
    tokens: ResponseTokens
    hidden: bool = False
    ref_hidden: Tensor | None = None
    ref_head: Head | None = None

    def answer(self, model: PreTrainedModel, states: Tensor) -> dict[str, Tensor]:
        """Compute the statistics, (n,) each and (n, d) hidden, from the last hidden states (rows, length, d)."""
        head = lm_head(model)
        states = states.to(head.weight.device)  # the model may be split over devices
        length = self.tokens.predicting.shape[1] + 1
        states = states[:, -length:-1]  # prompt learning puts its virtual tokens before the real ones
        hidden = states[self.tokens.predicting]
        statistics = token_statistics(
            self.names,
            hidden,
            self.tokens.targets.to(hidden.device),
            lambda hidden: scaled(model.config, head(hidden)),
            self.ref_hidden,
            self.ref_head,
            frozen=not any(p.requires_grad for p in head.parameters()),
            vocabulary=model.config.get_text_config().vocab_size,
        )
        return statistics | ({"hidden": hidden.detach()} if self.hidden else {})


def lm_head(model: PreTrainedModel) -> Any:
    """Return the module that maps last hidden states to logits."""
    return model.get_output_embeddings()


def give_statistics(model: PreTrainedModel) -> None:
    """Let `model(..., plo=request)` return statistics, inside the forward pass that DDP, PEFT and autocast wrap."""
    forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def with_statistics(self, *arguments, plo: Request | None = None, **keywords):
        if plo is None:
            return forward(*arguments, **keywords)
        keywords.pop("labels", None)  # PEFT passes None
        return plo.answer(self, self.base_model(*arguments, **keywords).last_hidden_state)

    model.forward = types.MethodType(with_statistics, model)


def model_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the columns of a batch that the model's forward pass takes."""
    kept = {k: v for k, v in without_columns(inputs).items() if k not in ("completion_mask", *REFERENCE_SUMS)}
    return kept | {"use_cache": False}


def without_columns(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch without the data set's own columns."""
    return {name: values for name, values in inputs.items() if not name.startswith(COLUMN)}


class ColumnCollator:
    """A collator that keeps numeric columns of the data set as well, as `column:...`."""

    def __init__(self, collator: Callable, columns: Sequence[str]):
        self.collator = collator
        self.columns = columns

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {}
        for name in self.columns:
            try:
                columns[COLUMN + name] = torch.tensor([float(row[name]) for row in examples])
            except (KeyError, TypeError, ValueError) as error:
                raise TRLError(
                    f"The loss needs the numeric column {name!r} in every row of the data set; one has columns "
                    f"{', '.join(sorted(examples[0]))} ({type(error).__name__}: {error})."
                ) from error
        return {**self.collator(examples), **columns}
