"""Load models that judges use in process, once, and identify them by their weights."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from plo.configured import accepted
from plo.data.tokenize import tokenizer_identity
from plo.evals.judges.judge import JudgeError
from plo.faults import reason

MOST_TOKENS = 16_384  # of a forward pass, padding included
BATCH = 16  # questions of a call, unless a judge's option `batch_size` says otherwise


@cache
def load(judge: str, kind: str, model: str, dtype: str | None, revision: str | None = None) -> tuple[Any, Any, str]:
    """Return a model in evaluation mode, its tokenizer, and a digest of weights, config, tokenizer and chat template.

    Args:
        judge: the judge's name, for messages.
        kind: the class of transformers that loads the model, "AutoModelForCausalLM".
        model: a folder, a hub name, or "embedded".
        dtype: "float32", "bfloat16", "float16"; None: float32 on a CPU, else that of the weights.
        revision: commit of a hub model; None: its newest.

    Raises:
        JudgeError: the model cannot be loaded.
    """
    import torch
    import transformers

    from plo.backbone.pretrained import pretrained
    from plo.backbone.weights import model_identity

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("auto" if device == "cuda" else "float32")
    try:
        fixed = {"revision": revision} if revision else {}
        made: tuple[Any, Any] = pretrained(getattr(transformers, kind), model, dtype, **fixed)
        loaded, tokenizer = made
        loaded.eval().to(device)
    except Exception as error:  # damaged or truncated files and pickles raise errors of many libraries
        raise JudgeError(
            f"The model of the judge {judge!r} cannot be loaded: {reason(error)}. Name a folder or a hub model that {kind} "
            f"reads."
        ) from error
    # The device is left out: a judge differs between devices by rounding only.
    return loaded, tokenizer, f"{model_identity(loaded)[:16]} {loaded.dtype} {tokenizer_identity(tokenizer)[:16]}"


def last_logits(model: Any, rows: Sequence[Sequence[int]], count: int) -> Any:
    """Return (rows, count, V) logits in float32 that follow each of the last `count` tokens of each row.

    Shorter rows are padded at their ends, which the tokens before do not see.
    """
    import torch

    ids, mask = padded(rows, 0, model.device)
    ends = mask.sum(1)
    places = ends[:, None] - count + torch.arange(count, device=model.device)  # (rows, count)
    kept = places.unique()  # logits of every position of a long text would take gigabytes
    few = accepted(model.forward, {"logits_to_keep": kept})
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, use_cache=False, **few).logits
    at = torch.searchsorted(kept, places) if logits.shape[1] == len(kept) else places  # a model may ignore it
    return logits[torch.arange(len(rows), device=model.device)[:, None], at].float()


def written(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], most: int) -> list[str]:
    """Return what a model writes greedily after each row of tokens, in at most so many tokens.

    Settings of sampling that the model's folder names, such as a penalty of repetitions, do not count.
    """
    import torch
    from transformers import GenerationConfig

    backwards, mask = padded([row[::-1] for row in rows], 0, model.device)  # padding at the front
    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=own.pad_token_id or 0
    )
    model.generation_config = greedy  # transformers takes what an argument leaves open from here
    with torch.no_grad():
        ids = model.generate(backwards.flip(1), attention_mask=mask.flip(1))
    return tokenizer.batch_decode(ids[:, backwards.shape[1] :], skip_special_tokens=True)


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Return token ids (rows, longest), padded at the ends with `pad`, and their attention mask."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def fitting_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of rows of these lengths, longest first, in batches that are no larger than `MOST_TOKENS` when padded."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        size = max(1, MOST_TOKENS // max(lengths[order[0]], 1))
        yield order[:size]
        order = order[size:]
