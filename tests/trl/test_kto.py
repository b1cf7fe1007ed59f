"""KTO's value and gradient are those of TRL's KTOTrainer on one of its batches, with its mismatched completions."""

import pytest
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from plo.losses import get_loss
from plo.losses.kto import MISMATCHED
from plo.pairs import Pairs, Side


def test_kto_is_trls(tiny_model, tiny_tokenizer, tmp_path):
    """TRL takes the mean over responses, which is half of the mean over pairs."""
    texts = [
        ("The soup was", " warm.", " cold, I fear."),
        ("The film was", " a joy.", " an hour."),
        ("I", " like it.", " go."),
    ]
    rows = [
        {"prompt": prompt, "completion": text, "label": text is good}
        for prompt, good, bad in texts
        for text in (good, bad)
    ]
    settings = dict(desirable_weight=1.5, undesirable_weight=0.5, beta=0.3)
    arguments = KTOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=6, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True,
        gradient_checkpointing=False, **settings,
    )  # fmt: skip
    policy, reference = tiny_model(torch.float64), tiny_model(torch.float64)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.2)
    data = Dataset.from_list(rows)
    trainer = KTOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=data, processing_class=tiny_tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer._compute_loss(policy, batch, False)
    expected.backward()
    gradient = policy.get_input_embeddings().weight.grad.clone()
    policy.zero_grad()

    good = batch["label"].bool()
    own = side(batch, "", policy, reference)
    with torch.no_grad():
        others = side(batch, "KL_", policy, reference)
    pairs = Pairs(chosen=rows_of(own, good), rejected=rows_of(own, ~good)).with_completions(
        {name: rows_of(others, rows) for name, rows in zip(MISMATCHED.values(), (good, ~good), strict=True)}
    )
    loss = get_loss("kto", **settings).build(0).double()
    loss.update(loss.observe(pairs))
    assert loss.module.baseline.item() > 0.01
    value = loss(pairs).mean() / 2
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(policy.get_input_embeddings().weight.grad, gradient, rtol=1e-5, atol=1e-7)


def side(batch, prefix, policy, reference):
    ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"][:, 1:].bool()
    logps = [
        model(input_ids=ids, attention_mask=batch[f"{prefix}attention_mask"]).logits[:, :-1].double().log_softmax(-1)
        for model in (policy, reference)
    ]
    logps, ref_logps = (each.gather(-1, ids[:, 1:, None]).squeeze(-1) for each in logps)
    return Side(mask=mask, logps=logps, ref_logps=ref_logps.detach())


def rows_of(side, rows):
    return Side(mask=side.mask[rows], logps=side.logps[rows], ref_logps=side.ref_logps[rows])
