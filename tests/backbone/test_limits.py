"""Token ids and positions that a model does not know are named, at load or as soon as the rows are there."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from plo.backbone.head import ModelError
from plo.backbone.limits import check_rows, check_vocabulary, learned_positions
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.config import EvaluationConfig, ModelConfig
from plo.data import Pair
from plo.subjects.sampling import Prompt, check_sampled


def tokenizer_of(size, **special):
    vocabulary = {f"w{i}": i for i in range(size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")), **special)


def gpt2(positions=32):
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=positions))


def pair(prompt, chosen, rejected):
    return Pair(prompt, chosen, rejected, "", "pairs.jsonl:3", {})


def test_a_tokenizer_larger_than_the_model(tiny_llama, tmp_path):
    model = tiny_llama(dtype=torch.float32)
    check_vocabulary(model, tokenizer_of(61, eos_token="w1"))
    check_vocabulary(model, tokenizer_of(40, eos_token="w1"))  # models round their embeddings up
    check_vocabulary(model, tokenizer_of(62, eos_token="w1", pad_token="w61"))  # rows hold no padding
    for size, special in ((63, {"eos_token": "w1"}), (62, {"eos_token": "w61"})):
        with pytest.raises(
            ModelError, match=rf"'w61' with the id 61, .* of 61 tokens: .*resize_token_embeddings\({size}\)"
        ):
            check_vocabulary(model, tokenizer_of(size, **special))
    model.save_pretrained(tmp_path)
    tokenizer_of(63, eos_token="w1").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has the token 'w61' with the id 61"):
        load_backbone(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize("side", range(3))
def test_a_row_with_an_id_beyond_the_embedding(tiny_llama, side):
    ids = [(3, 4), (5, 6), (7, 8)]
    check_rows(tiny_llama(), [pair(*ids)])
    ids[side] = (60, 61)
    with pytest.raises(ModelError, match="pairs.jsonl:3 holds the token id 61, and .* has embeddings of 61 tokens"):
        check_rows(tiny_llama(), [pair(*ids)])


def test_learned_positions_are_those_that_the_model_can_compute(tiny_llama):
    sizes = dict(vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=20)
    models = [
        gpt2(20),
        OPTForCausalLM(OPTConfig(**sizes, ffn_dim=16, word_embed_proj_dim=16)),
        BioGptForCausalLM(BioGptConfig(**sizes, intermediate_size=16)),
    ]
    for model in models:
        assert learned_positions(model) == 20
        model(torch.full((1, 20), 3))
        with pytest.raises(IndexError):
            model(torch.full((1, 21), 3))
    assert learned_positions(tiny_llama()) is None  # rotary: any length can be computed


def test_longer_than_the_learned_positions():
    model = gpt2(32)
    check_rows(model, [pair((3,) * 20, (4,) * 12, (5,))])
    with pytest.raises(
        ModelError, match="pairs.jsonl:3 takes 33 tokens, .* learned 32 positions: set data.max_length=32"
    ):
        check_rows(model, [pair((3,) * 20, (4,) * 12, (5,) * 13)])
    backbone = Backbone(model, ModelConfig(lora_targets=["c_attn"]))
    config = EvaluationConfig(max_new_tokens=12)
    check_sampled(backbone, [Prompt((3,) * 20, "")], config)
    with pytest.raises(
        ModelError, match="A prompt of 21 tokens with max_new_tokens=12 takes 33 tokens, .* lower max_new"
    ):
        check_sampled(backbone, [Prompt((3,), ""), Prompt((3,) * 21, "")], config)
