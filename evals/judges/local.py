"""Load models that judges use in process, once, and identify them by their weights."""

from functools import cache
from typing import Any

from plo.configured import accepted
from plo.data.tokenize import tokenizer_identity
from plo.evals.judges.judge import JudgeError
from plo.faults import reason


@cache
def load(judge: str, kind: str, model: str, dtype: str | None) -> tuple[Any, Any, str]:
    """Return a model in evaluation mode, its tokenizer, and a digest of weights, config, tokenizer and chat template.

    Args:
        judge: the judge's name, for messages.
        kind: the class of transformers that loads the model, "AutoModelForCausalLM".
        model: a folder, a hub name, or "embedded".
        dtype: "float32", "bfloat16", "float16"; None: float32 on a CPU, else that of the weights.

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
        made: tuple[Any, Any] = pretrained(getattr(transformers, kind), model, dtype)
        loaded, tokenizer = made
        loaded.eval().to(device)
    except Exception as error:  # damaged or truncated files and pickles raise errors of many libraries
        raise JudgeError(
            f"The model of the judge {judge!r} cannot be loaded: {reason(error)}. Name a folder or a hub model that {kind} "
            f"reads."
        ) from error
    # The device is left out: a judge differs between devices by rounding only.
    return loaded, tokenizer, f"{model_identity(loaded)[:16]} {loaded.dtype} {tokenizer_identity(tokenizer)[:16]}"


def last_logits(model: Any, ids: list[int], count: int) -> Any:
    """Return (count, V) logits in float32 that follow each of the last `count` tokens."""
    import torch

    with torch.no_grad():
        # Logits of every position of a long text would take gigabytes.
        few = accepted(model.forward, {"logits_to_keep": count})
        logits = model(torch.tensor([ids], device=model.device), use_cache=False, **few).logits
    return logits[0, -count:].float()
