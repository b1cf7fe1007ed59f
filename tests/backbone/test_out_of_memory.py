"""Lack of memory: half as much at a time, once, and then the numbers of a run that memory was enough for."""

import pytest
import torch

from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.model import Backbone
from plo.backbone.out_of_memory import OutOfMemory, Passes, train_within_memory
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.faults import is_out_of_memory
from plo.losses import get_loss

CONFIG = TrainConfig(lr=1e-2, batch_size=4, epochs=2, warmup=0.0, optimizer="adamw_torch", checkpoint_every=2)
ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "8589934592 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


@pytest.fixture
def train(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    """Train 10 pairs at batch 4, twice 4 + 4 + 2, with memory for `most` pairs a pass from step `at` on."""

    def run(folder, most=99, at=1, error=ERRORS["gpu"], where="forward", loss="dpo", **changes):
        backbone, pairs, kept = (
            Backbone(tiny_llama(), ModelConfig()),
            tiny_pairs(10),
            ReferenceStore(tmp_path / "store"),
        )
        backbone.double()
        reference, inner, passes = kept.get(backbone, pairs, hidden=True), PreferenceTrainer.compute_loss, []

        def compute_loss(self, model, inputs, *arguments, **keywords):
            value = inner(self, model, inputs, *arguments, **keywords)
            step, count = self.state.global_step + 1, len(inputs["micro_batch"].rows)
            passes.append((step, count))
            if step >= at and count > most:
                if where == "forward":
                    raise error
                value.register_hook(_raising(error))
            return value

        def attempt(config):
            backbone.reset(0, get_loss(loss))
            backbone.double()
            trainer = PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=tmp_path / folder)
            checkpoint = last_checkpoint(tmp_path / folder)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer

        with monkeypatch.context() as context:
            context.setattr(PreferenceTrainer, "compute_loss", compute_loss)
            trainer, notes = train_within_memory(
                attempt, CONFIG.model_copy(update=changes), get_loss(loss), "dpo seed 0"
            )
        return {name: p.detach().clone() for name, p in trainer.model.trained().items()}, notes, passes

    return run


def _raising(error):
    def hook(gradient):
        raise error

    return hook


@pytest.mark.parametrize(
    ("error", "where", "at"),
    [("gpu", "forward", 5), ("cpu", "backward", 5), ("python", "forward", 2)],
)
def test_the_adapter_is_that_of_an_undisturbed_run(train, error, where, at, caplog):
    undisturbed, notes, passes = train("undisturbed")
    assert notes == [] and passes == [(1, 4), (2, 4), (3, 2), (4, 4), (5, 4), (6, 2)]
    found, notes, passes = train("halved", most=3, at=at, error=ERRORS[error], where=where)
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert max(value.abs().max() for name, value in found.items() if "lora_B" in name) > 1e-3  # it did move
    resumed = {1: 1, 2: 1, 5: 5}[at]  # a checkpoint every second step
    halves = [(step, count) for step, count in passes if (count < 4 and step != 3) or step > at][-2:]
    assert passes[at:][:2] == [(resumed, 2), (resumed, 2)] and halves[-1] == (6, 2)
    assert notes == [
        "Memory ran out in the training of dpo seed 0 with 4 pairs in a forward pass: it was done with 2, which changes "
        "numbers by rounding at most."
    ]
    assert notes[0] in caplog.messages


def test_the_second_time_it_fails(train):
    with pytest.raises(OutOfMemory, match=r"with 4 pairs .*, and again with 2\. Lower train\.micro_batch_size or data"):
        train("run", most=1)


@pytest.mark.parametrize(
    ("changes", "said"), [({"micro_batch_size": 1}, "with 1 pairs"), ({"batch_size": 2}, "again with 1")]
)
def test_what_cannot_be_halved_fails_at_once(train, changes, said):
    with pytest.raises(OutOfMemory, match=rf"{said}.* or use a smaller model\.") as raised:
        train("run", most=0, **changes)
    assert not is_out_of_memory(raised.value)  # so that nothing around it tries again


def test_half_of_a_micro_batch_divides_the_batch():
    """12 pairs in passes of 6 or, halved, 3; in passes of 4, 2; of 3, 1."""
    for micro, half in ((None, 6), (6, 3), (4, 2), (3, 1)):
        tried = []

        def train(config, tried=tried):
            tried.append(config.micro_batch_size)
            if len(tried) == 1:
                raise MemoryError
            return "trained"

        config = CONFIG.model_copy(update={"batch_size": 12, "micro_batch_size": micro})
        assert train_within_memory(train, config, get_loss("dpo"), "dpo")[0] == "trained"
        assert tried == [micro, half]


def test_other_errors_pass():
    def fails(config):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train_within_memory(fails, CONFIG, get_loss("dpo"), "dpo")


def test_passes_are_halved_from_where_memory_runs_out():
    sizes = []

    def compute(items):
        sizes.append(len(items))
        if len(items) > 2 and items[0] >= 4:
            raise MemoryError
        return [10 * item for item in items]

    passes = Passes(4, "sampling", "sequences at a time", "Lower it")
    assert passes.over(range(11), compute) == [10 * item for item in range(11)]
    assert sizes == [4, 4, 2, 2, 2, 1] and passes.size == 2
    with pytest.raises(OutOfMemory, match=r"Memory ran out in sampling with 2 sequences at a time\. Lower it\."):
        passes.over([9, 9], lambda items: (_ for _ in ()).throw(MemoryError()))
