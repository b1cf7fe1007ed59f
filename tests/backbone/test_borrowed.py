"""A private name of a library that is gone, or that no longer does what it did, is an error with a sentence."""

import inspect
from importlib import import_module
from pkgutil import resolve_name

import pytest
import torch
from torch import nn
from transformers import Trainer

import plo.trl  # noqa: F401 (it borrows more of the same libraries)
from plo.backbone import attention, borrowed, clipping, packing
from plo.backbone.clipping import clip
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.borrowed import BorrowedError
from plo.config import ModelConfig, TrainConfig
from plo.losses import get_loss

LIBRARIES = borrowed.TORCH, borrowed.TRANSFORMERS, borrowed.PEFT, borrowed.ACCELERATE
BORROWED = [(library, owner, name) for library in LIBRARIES for owner, name in library.required]


@pytest.mark.parametrize(("library", "owner", "name"), BORROWED, ids=lambda value: getattr(value, "name", str(value)))
def test_each_name_is_missed_when_it_is_renamed(library, owner, name, monkeypatch):
    library.require(owner, name)
    found = resolve_name(owner) if ":" in owner else import_module(owner)
    bare = name.strip(".").partition("(")[0]
    if name.startswith("."):
        _forget(found, bare, monkeypatch)
    else:
        base = next(b for b in found.__mro__ if bare in vars(b)) if inspect.isclass(found) else found
        monkeypatch.delattr(base, bare)
    with pytest.raises(BorrowedError) as caught:
        library.require(owner, name)
    message = str(caught.value)
    assert message.startswith(f"{library.name} ") and bare in message
    assert f"pip install '{library.name}=={library.tried[-1]}'" in message


def _forget(kind, attribute, monkeypatch):
    """Let every method of a class use another name for an attribute."""
    for base in kind.__mro__[:-1]:
        for method in vars(base).values():
            function = inspect.unwrap(getattr(method, "fget", None) or getattr(method, "__func__", method))
            if inspect.isfunction(function):
                monkeypatch.setattr(function, "__code__", _renamed(function.__code__, attribute))


def _renamed(code, attribute):
    def new(thing):
        return _renamed(thing, attribute) if inspect.iscode(thing) else "renamed" if thing == attribute else thing

    return code.replace(co_names=tuple(map(new, code.co_names)), co_consts=tuple(map(new, code.co_consts)))


def test_a_parameter_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(Trainer, "_save", lambda self, folder, state_dict: None)
    with pytest.raises(BorrowedError, match=r"transformers\.Trainer\._save no longer accepts 'output_dir'"):
        borrowed.TRANSFORMERS.require("transformers:Trainer", "_save(output_dir, state_dict)")


def trainer(tiny_llama, tiny_pairs, folder, **settings):
    backbone = Backbone(tiny_llama(), ModelConfig(lora_r=4))
    backbone.reset(0, get_loss("dpo"))
    pairs = tiny_pairs(8)
    reference = ReferenceStore(folder / "store").get(backbone, pairs)
    config = TrainConfig(batch_size=4, epochs=1, warmup=0.0, checkpoint_every=1, **settings)
    return PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=folder)


def without_call(hook):
    """transformers' Trainer as it would be if it called another method than the one that is overridden."""
    return lambda self, *arguments, **keywords: None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("_clip_grad_norm", "Trainer did not call the method behind clip_gradient in a step"),
        ("_save_rng_state", "Trainer did not call the method behind random_states_saved in a checkpoint"),
        ("_save_optimizer_and_scheduler", "Trainer did not call the method behind save_optimizer in a checkpoint"),
    ],
)
def test_a_hook_that_is_not_called_stops_the_training(method, message, tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(borrowed.HookedTrainer, method, without_call(method))
    with pytest.raises(BorrowedError, match=message):
        trainer(tiny_llama, tiny_pairs, tmp_path).train()


def test_weights_that_are_not_loaded_stop_a_resumed_training(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    trainer(tiny_llama, tiny_pairs, tmp_path, steps=1).train()
    monkeypatch.setattr(borrowed.HookedTrainer, "_load_from_checkpoint", without_call("_load_from_checkpoint"))
    again = trainer(tiny_llama, tiny_pairs, tmp_path)
    with pytest.raises(BorrowedError, match="did not call the method behind load_weights when it resumed"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_loss_that_is_scaled_once_more_stops_the_training(tiny_llama, tiny_pairs, tmp_path):
    scaled = trainer(tiny_llama, tiny_pairs, tmp_path, micro_batch_size=2)
    scaled.loss_is_scaled_for_ga = scaled.model_accepts_loss_kwargs = False  # as if under other names
    with pytest.raises(BorrowedError, match=r"training_step multiplies the loss by 0\.5"):
        scaled.train()


def test_an_optimiser_that_wraps_another_way_is_an_error():
    with pytest.raises(BorrowedError, match=r"accelerate .* cannot be used: .*\.optimizer is gone"):
        borrowed.unwrapped(torch.optim.SGD([torch.zeros(1)]))


def test_gpus_that_cannot_be_left_out_are_an_error():
    class Arguments:
        n_gpu = 2

    with pytest.raises(BorrowedError, match="n_gpu does not read _n_gpu any more"):
        borrowed.one_device(Arguments())


def test_a_fused_optimiser_that_divides_nothing_is_clipped_as_others_are(monkeypatch):
    monkeypatch.setattr(clipping, "divide_gradients", lambda optimizer, by: None)
    clipping._divides.cache_clear()
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
    assert clip(optimizer, [parameter], 1.0) == 5
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.6, -0.8], rel=1e-5)
    clipping._divides.cache_clear()


def test_attention_whose_gradient_is_another_is_not_packed(tiny_llama, monkeypatch):
    monkeypatch.setattr(attention, "softmax_backward", lambda d_p, p: d_p * p)
    attention.agrees.cache_clear()
    backbone = Backbone(tiny_llama(), ModelConfig())
    assert "not that of autograd" in packing.disagreement(backbone, 16)
    attention.agrees.cache_clear()
    monkeypatch.undo()
    assert packing.disagreement(backbone, 16) is None
