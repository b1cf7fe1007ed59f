"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable

# Settings of other libraries, and what plo calls them.
SYNONYMS = {
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "warmup_ratio": "warmup",
    "optim": "optimizer",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "bs": "batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "clip": "max_grad_norm",
    "logging_steps": "log_every",
    "save_steps": "checkpoint_every",
    "max_seq_length": "max_length",
    "dataset": "data.source",
    "model_name_or_path": "model.name",
    "loss": "losses",
    "seed": "seeds",
}


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Find the dotted names that a user may have meant by `name`, the likeliest first.

    The last part of a name counts: `train.learning_rate` and `lr` find `train.lr`, and `batch` finds `train.batch_size`.
    """
    known, leaf = list(known), _leaf(name)
    leaf = SYNONYMS.get(leaf, leaf)
    leaves = {other: _leaf(other) for other in known}
    found = [other for other in known if leaf in (leaves[other], other)]
    if len(leaf) >= 3:
        found += [other for other in known if leaf in leaves[other]]
    close = difflib.get_close_matches(leaf, dict.fromkeys(leaves.values()), n=count, cutoff=0.7)
    found += [other for part in close for other in known if leaves[other] == part]
    found = found or difflib.get_close_matches(name, known, n=count, cutoff=0.7)
    section = name.rpartition(".")[0]
    return sorted(dict.fromkeys(found), key=lambda other: bool(section) and not other.startswith(section))[:count]


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]
