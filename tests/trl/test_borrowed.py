"""A name of TRL, transformers or PEFT that is gone, or a change in what a training step does, is an error in one sentence."""

from types import SimpleNamespace

import pytest

import plo.trl
from plo.borrowed import BorrowedError
from plo.trl import borrowed
from plo.trl.trainer import LossMixin


# tests/backbone/test_borrowed.py has those of transformers and PEFT.
@pytest.mark.parametrize(("owner", "name"), list(borrowed.TRL.required))
def test_a_name_that_is_gone_is_an_error_at_import(owner, name, monkeypatch):
    found, bare = borrowed.TRL._owner(owner), name.partition("(")[0]
    for home in getattr(found, "__mro__", [found]):
        if bare in vars(home):
            monkeypatch.delattr(home, bare)
    with pytest.raises(BorrowedError, match=rf"\.{bare} is gone, which plo relies on"):
        borrowed.TRL.require(owner, name)


@pytest.mark.parametrize("gone", [name for names in borrowed.OF_TRAINERS.values() for name in names])
def test_an_attribute_of_trainers_that_is_gone_is_an_error_before_training(gone):
    names = {name for names in borrowed.OF_TRAINERS.values() for name in names}
    borrowed.check_trainer(SimpleNamespace(**dict.fromkeys(names)))
    with pytest.raises(BorrowedError, match=f"{gone} is gone"):
        borrowed.check_trainer(SimpleNamespace(**dict.fromkeys(names - {gone})))


def test_a_loss_that_is_scaled_once_more_is_an_error_in_the_first_step(trl_trainer, monkeypatch):
    """As if `Trainer` read `loss_is_scaled_for_ga` under another name: gradients would be half as large."""
    monkeypatch.setattr(LossMixin, "loss_is_scaled_for_ga", False)
    trainer = plo.trl.use(trl_trainer("lora", gradient_accumulation_steps=2), "dpo")
    with pytest.raises(BorrowedError, match=r"training_step multiplies the loss by 0\.5"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_step_without_counts_is_an_error(trl_trainer, monkeypatch):
    """As if `Trainer` called `get_batch_samples` under another name: the mean would be that of micro-batches."""
    monkeypatch.delattr(LossMixin, "get_batch_samples")
    with pytest.raises(BorrowedError, match="passes no num_items_in_batch"):
        plo.trl.use(trl_trainer("lora"), "dpo").train()


def test_a_column_of_batches_that_is_gone_is_an_error_in_the_first_step(trl_trainer):
    trainer = plo.trl.use(trl_trainer("lora"), "dpo")
    collator = trainer.data_collator
    trainer.data_collator = lambda rows: {k.replace("completion", "response"): v for k, v in collator(rows).items()}
    with pytest.raises(BorrowedError, match="the column 'completion_mask' of DPOTrainer's batches is gone"):
        trainer.train()
