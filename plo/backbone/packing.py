"""Checks of whether a model computes packed pairs: by its config, then by numbers against padded rows."""

import peft
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from plo import caches, distributed, store
from plo.backbone.attention import agrees
from plo.backbone.batch import Group, collate_groups
from plo.backbone.borrowed import can_exchange_attention, is_recurrent
from plo.backbone.model import Backbone
from plo.identity import code_identity, sha256
from plo.machine import machine

CHECKS = caches.CACHES["checks"]
# Nats, mean over tokens. Two bfloat16 passes of SmolLM2 that group products differently are .03 to .06 apart on random
# tokens (each .034 from the float32 pass, packed or not); a wrong mask costs whole nats.
TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.05, torch.float32: 1e-4, torch.float64: 1e-4}


def why_not(model: PreTrainedModel, longest: int) -> str | None:
    """Return the reason why a model cannot read packed sequences of up to `longest` tokens; None if it may."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if getattr(config, "alibi", False):
        return "its positions are ALiBi biases, which do not know of packed groups"
    if is_recurrent(model) or any("linear" in kind or "mamba" in kind or "conv" in kind for kind in kinds):
        return "it is recurrent: a token's state comes from its neighbour in the row"
    if not can_exchange_attention(model):
        return "its attention cannot be exchanged through transformers' attention interface"
    if any("chunked" in kind for kind in kinds):
        return "a layer attends within chunks of the row"
    if window is not None and window <= longest and (not kinds or any("sliding" in kind for kind in kinds)):
        return f"a layer sees {window} tokens back, and sequences have up to {longest}"
    return None


def use_if_agreed(backbone: Backbone, longest: int) -> str | None:
    """Let the backbone pack if packed log-probs agree with padded ones; return the reason if they do not.

    That they agree is tried once for a model on a machine: the next process reads it, which saves seconds of its start.
    """
    how = [backbone.base.identity, str(backbone.compute_dtype), backbone.settings.peft, backbone.attention, longest]
    where = [machine(), backbone.device.type, torch.backends.cpu.get_cpu_capability()]
    code = [torch.__version__, transformers.__version__, peft.__version__, *map(code_identity, (disagreement, agrees))]
    path = CHECKS.path(sha256([how, where, code]))
    caches.hold(path)
    if distributed.on_main(lambda: store.read_json(path)) is not None:
        backbone.use_packed(True)
        return None
    why = disagreement(backbone, longest)
    if why is None:
        distributed.on_main(lambda: store.write_json(path, {"model": backbone.causal_lm.name_or_path}), share=False)
    return why


def disagreement(backbone: Backbone, longest: int) -> str | None:
    """Compare log-probs of random groups at full length, packed and padded, and let the backbone pack if they agree.

    Returns:
        The reason why it must not pack; None if they agree.
    """
    if not agrees():
        return "the gradient of packed attention is not that of autograd with this version of torch"
    config = backbone.causal_lm.config.get_text_config()
    groups = _groups(config.vocab_size, min(longest, getattr(config, "max_position_embeddings", None) or longest))
    padded = _logps(backbone, groups, packed=False)
    backbone.use_packed(True)
    try:
        packed = _logps(backbone, groups, packed=True)
    except Exception as error:  # whatever a model's code makes of a row it was not written for
        backbone.use_packed(False)
        return f"a packed pass fails with {type(error).__name__}: {error}"
    off = (packed - padded).abs().mean().item()
    if off <= TOLERANCE[backbone.head_dtype]:
        return None
    backbone.use_packed(False)
    return f"a packed pass is {off:.2g} nats a token away from the padded one"


def _logps(backbone: Backbone, groups: list[Group], packed: bool) -> Tensor:
    return backbone.measure(collate_groups(groups, packed=packed), ("logps",))["logps"].double()


def _groups(vocabulary: int, longest: int) -> list[Group]:
    """Return a group with a short prompt and long responses, and one the other way round."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(vocabulary, (max(1, length),), generator=generator).tolist()

    return [(ids(1), [ids(longest - 1), ids(longest // 2)]), (ids(longest - longest // 4), [ids(longest // 4), ids(1)])]
