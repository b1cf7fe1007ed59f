"""Make the model that ships with plo: `python -m plo.pocket.make [FOLDER]` (two minutes on one core).

It is trained on the exact next-word distributions of the automaton, so that the reference of a training and the automaton,
under which values and advantages are computed, are nearly the same distribution.
"""

import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plo.pocket.language import Prompt, language, prompts
from plo.pocket.model import FOLDER
from plo.pocket.words import EOS, ID, WORDS

STEPS, BATCH, LR = 1500, 96, 6e-3
POSITIONS = 128


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: a word is a token, white space separates words, and an unknown word is an error."""
    tokenizer = Tokenizer(WordLevel(ID))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Return the untrained model: a Llama of 102,976 parameters."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=ID[EOS],
        pad_token_id=ID[EOS],
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def batch(asked: list[Prompt], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (rows, tokens), exact next-word probabilities (rows, responses' tokens, words) and their mask."""
    responses = language().sample(asked, seed)
    walk = language().walk(asked, responses)
    start = np.array([[ID[word] for word in prompt.text.split()] for prompt in asked])
    ids = torch.tensor(np.concatenate([start, walk.ids], axis=1))
    return ids, torch.tensor(language().next_words(asked, walk), dtype=torch.float32), torch.tensor(walk.mask)


def divergence(
    model: LlamaForCausalLM, ids: torch.Tensor, probabilities: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return KL(automaton || model) in nats per response."""
    logits = model(input_ids=ids).logits[:, -mask.shape[1] - 1 : -1][mask]
    wanted = probabilities[mask]
    return (cross_entropy(logits, wanted, reduction="sum") - torch.special.entr(wanted).sum()) / len(ids)


def train(model: LlamaForCausalLM, steps: int = STEPS) -> None:
    """Train the model on fresh responses to random prompts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    known, draw = prompts(), np.random.default_rng(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        asked = [known[i] for i in draw.integers(len(known), size=BATCH)]
        loss = divergence(model, *batch(asked, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: KL(automaton || model) {loss.item():.3f} nats per response")


def main(folder: Path = FOLDER) -> None:
    """Train the model, save it in float16 with its tokenizer, and print the divergence and the digest of the weights."""
    torch.set_num_threads(1)  # the products are too small for more
    started, model = time.process_time(), make_model()
    train(model)
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    saved: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = divergence(saved, *batch(prompts(), -1 % 2**32)).item()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    print(
        f"KL(automaton || model) {found:.3f} nats per response, {time.process_time() - started:.0f} s, sha256 {digest}"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
