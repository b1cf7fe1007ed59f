"""Less is kept for the backward pass, counted by hand; the gradients stay."""

import functools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from plo.backbone.activations import _gated_mlp, _rms_norm, agrees, keep_less
from plo.backbone.batch import collate
from plo.backbone.memory import saved_bytes
from plo.backbone.model import Backbone
from plo.config import ModelConfig
from plo.losses import get_loss

SIZES = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=1)


class Alone(torch.nn.Module):
    """A part of a layer, called with x."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, batch):
        return self.part(batch["x"])


def llama_mlp():
    return LlamaMLP(SIZES)


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        (llama_mlp(), 12 + 4 * 18, 12 + 2 * 18),  # x (3, 4); gate, act(gate), up and their product (3, 6); gate and up
        (LlamaRMSNorm(4), 12 + 3 + 12, 12 + 3),  # x (3, 4), the root (3, 1), their product (3, 4); x and the root
        (GemmaRMSNorm(4), 12 + 3 + 12 + 4, 12),  # and 1 + weight (4,); x
    ],
    ids=["mlp", "norm", "another norm"],
)
def test_what_is_kept_by_hand(part, before, after):
    x = torch.randn(3, 4, requires_grad=True)
    assert saved_bytes(Alone(part), {"x": x}) == before * 4
    keep_less(part, True)
    assert saved_bytes(Alone(part), {"x": x}) == after * 4
    keep_less(part, False)
    assert saved_bytes(Alone(part), {"x": x}) == before * 4


def test_a_frozen_norm_in_bfloat16_by_hand():
    """As under LoRA: x (3, 4) and the root (3, 1) are kept in float32; x in bfloat16 and the root."""
    norm = LlamaRMSNorm(4).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    assert saved_bytes(Alone(norm), {"x": x}) == 12 * 4 + 3 * 4
    keep_less(norm, True)
    assert saved_bytes(Alone(norm), {"x": x}) == 12 * 2 + 3 * 4


def test_no_product_is_computed_again():
    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.count += function.__name__.startswith(("mm", "addmm", "bmm"))
            return function(*arguments, **(keywords or {}))

    def products(part):
        with Products() as counted:
            part(torch.ones(3, 4, requires_grad=True)).sum().backward()
        return counted.count

    mlp = llama_mlp()
    before = products(mlp)
    keep_less(mlp, True)
    assert products(mlp) == before == 9  # three forward, six backward


def gradients(backbone, batch):
    backbone.zero_grad()
    backbone.train()
    for _ in range(2):  # they add up over micro-batches
        backbone(batch)["sums"].sum().backward()
    return {name: p.grad.clone() for name, p in backbone.trained().items()}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("of_weight", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of_x", ["float16", "bfloat16", "float32", "float64"])
def test_a_norms_gradient_is_that_of_its_formula(of_x, of_weight, trained):
    norm = LlamaRMSNorm(8, eps=0.1).to(getattr(torch, of_weight)).requires_grad_(trained)
    x = torch.randn(2, 3, 4, 8, dtype=getattr(torch, of_x)).transpose(1, 2).requires_grad_()  # as Qwen3's q_norm's
    with torch.no_grad():
        norm.weight.normal_()
    models = norm(x)
    d_y = torch.randn_like(models)
    keep_less(norm, True)
    assert torch.equal(norm(x), models) and norm(x).dtype == models.dtype
    norm(x).backward(d_y)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    y = exact_weight * exact_x / (exact_x**2).mean(-1, keepdim=True).add(0.1).sqrt()
    y.backward(d_y.double())
    rounding = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 1e-6, "float64": 1e-6}  # float32 inside, as Llama's
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=rounding[of_x], atol=2e-6)
    if trained:
        torch.testing.assert_close(norm.weight.grad.double(), exact_weight.grad, rtol=rounding[of_weight], atol=2e-6)
    else:
        assert norm.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama_mlp, lambda: GemmaRMSNorm(4)], ids=["mlp", "another norm"])
def test_the_gradient_is_the_same_to_the_bit(make, dtype):
    part = make().to(dtype)
    x, d_y = torch.randn(3, 4, dtype=dtype, requires_grad=True), torch.randn(3, 4, dtype=dtype)
    inputs = (x, *part.parameters())
    before = torch.autograd.grad(part(x), inputs, d_y)
    keep_less(part, True)
    after = torch.autograd.grad(part(x), inputs, d_y)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("weights", "compute"),
    [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_gradients_stay(weights, compute, packed, tiny_llama, tiny_pairs):
    """To the rounding of the dtype that products are in."""
    backbone = Backbone(tiny_llama(dtype=weights), ModelConfig(peft="full"), compute)
    backbone.use_packed(packed)
    backbone.reset(0, get_loss("tdpo2"))
    batch = collate(tiny_pairs(4), packed=packed)
    reference = backbone.measure(batch, ("logps",), hidden=True)
    batch = replace(batch, ref_logps=reference["logps"], ref_hidden=reference["hidden"])
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    kept, expected = saved_bytes(backbone, batch), gradients(backbone, batch)
    backbone.checkpoint_layers(False)
    with backbone.casts_kept():
        got = gradients(backbone, batch)
    assert saved_bytes(backbone, batch) < 0.85 * kept
    assert got.keys() == expected.keys()
    if compute is None:
        for name, grad in got.items():
            assert (grad - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name
    else:
        backbone.compute_dtype = None
        exact = gradients(backbone.float(), batch)
        off, usual = (torch.cat([(g[name] - exact[name]).flatten() for name in exact]).norm() for g in (got, expected))
        assert 0 < off < 1.1 * usual


def test_layers_that_are_computed_twice_are_the_models_own(tiny_llama):
    backbone = Backbone(tiny_llama(), ModelConfig(peft="full"))
    layer = backbone.causal_lm.model.layers[0]
    for on in (False, True):
        backbone.checkpoint_layers(on)
        assert [("forward" in vars(part)) is not on for part in (layer.mlp, layer.input_layernorm)] == [True, True]


def test_what_is_not_known_is_left_alone(tiny_llama):
    class Clipped(LlamaMLP):
        def forward(self, x):
            return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1))

    class FourthPower(LlamaRMSNorm):
        def forward(self, hidden_states):
            input_dtype = hidden_states.dtype
            hidden_states = hidden_states.to(torch.float32)
            variance = hidden_states.pow(4).mean(-1, keepdim=True)
            hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
            return self.weight * hidden_states.to(input_dtype)

    clipped, replaced, another = Clipped(SIZES), llama_mlp(), FourthPower(4)
    x = torch.randn(3, 4)
    expected = another(x)
    keep_less(another, True)
    assert torch.equal(another(x), expected)  # by other constants alone is it another norm
    replaced.forward = own = lambda x: x
    adapted = Backbone(tiny_llama(), ModelConfig()).causal_lm.model.layers[0].mlp
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2))
    fused = [part for part in adapted.modules() if "forward" in vars(part)]  # LoRA layers, by `fuse`
    for model in (clipped, replaced, adapted, gpt2):
        keep_less(model, True)
    assert replaced.forward is own
    assert [part for part in (clipped, *adapted.modules(), *gpt2.modules()) if "forward" in vars(part)] == fused


def decorated(forward):
    """As libraries wrap a forward: whatever is wrapped, the bytecode is the wrapper's."""

    @functools.wraps(forward)
    def wrapper(self, *arguments):
        return forward(self, *arguments)

    return wrapper


def test_what_computes_other_numbers_is_left_alone_whatever_its_code():
    """Each has the parts and the very bytecode of what is replaced, but for one number."""

    class Wrapped(LlamaRMSNorm):
        forward = decorated(LlamaRMSNorm.forward)

    class Halved(LlamaRMSNorm):
        forward = decorated(lambda self, x: LlamaRMSNorm.forward(self, x) / 2)

    class Shifted(LlamaRMSNorm):
        forward = decorated(lambda self, x: LlamaRMSNorm.forward(self, x + 1e-3))

    class Straight(LlamaRMSNorm):  # the same forward, another gradient
        forward = decorated(lambda self, x: LlamaRMSNorm.forward(self, x).detach() + 0 * x * self.weight)

    class Gate(LlamaMLP):
        forward = decorated(LlamaMLP.forward)

    class Clamped(LlamaMLP):
        forward = decorated(lambda self, x: LlamaMLP.forward(self, x.clamp(-50, 50)))

    assert Wrapped.forward.__code__ is Halved.forward.__code__ is Clamped.forward.__code__
    x = torch.randn(3, 4, requires_grad=True)
    for part, by_formula in (
        (Wrapped(4), True), (Halved(4), False), (Shifted(4), False), (Straight(4), False),
        (Gate(SIZES), True), (Clamped(SIZES), False),
    ):  # fmt: skip
        torch.nn.init.normal_(next(part.parameters()))
        y, kept = part(x), saved_bytes(Alone(part), {"x": x})
        expected = torch.autograd.grad(y.sum(), (x, *part.parameters()))
        assert agrees(part, _rms_norm if isinstance(part, LlamaRMSNorm) else _gated_mlp) is by_formula
        keep_less(part, True)
        got = torch.autograd.grad(part(x).sum(), (x, *part.parameters()))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert (saved_bytes(Alone(part), {"x": x}) < kept) or not by_formula


def test_the_comparison_draws_nothing_and_changes_nothing():
    part = llama_mlp()
    before, state = [p.clone() for p in part.parameters()], torch.get_rng_state()
    keep_less(part, True)
    assert torch.equal(torch.get_rng_state(), state) and all(map(torch.equal, before, part.parameters()))
    assert all(p.grad is None for p in part.parameters())
