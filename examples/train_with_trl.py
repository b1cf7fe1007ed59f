"""Train a plo loss in TRL's DPOTrainer: `python examples/train_with_trl.py [MODEL]`.

MODEL is a folder or a hub name; without it, the embedded 135M model.
"""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

import plo.trl

if len(sys.argv) > 1:
    model = sys.argv[1]
else:
    from plo.embedded import embedded_model

    model = str(embedded_model())

rows = [{"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": f" {i + 2}"} for i in range(16)]
trainer = DPOTrainer(
    model=model,
    args=DPOConfig("out", max_steps=2, per_device_train_batch_size=4, logging_steps=1, report_to="none", bf16=False),
    train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
)
plo.trl.use(trainer, "tbpo_a", beta=0.1)  # the line
trainer.train()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
