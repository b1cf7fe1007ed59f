"""Stages: models that are trained before the losses, such as an experiment's SFT and the oracles of token scorers.

Each stage is a recorded run that is trained once and kept under the hash of everything it depends on, so that seeds,
variants and later comparisons share it. A killed stage continues from its last checkpoint.
"""

import contextlib
import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from plo import caches, distributed
from plo import store as stored
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.limits import check_rows
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.backbone.out_of_memory import train_within_memory
from plo.backbone.reference import Reference, ReferenceStore, ids_digest
from plo.backbone.token_statistics import needs_reference, statistic_of
from plo.backbone.trainer import PreferenceTrainer
from plo.backbone.weights import Weights
from plo.config import ConfigError, ModelConfig, TrainConfig
from plo.data import Pair
from plo.data.completions import provider_of
from plo.experiment.keys import WITHOUT_EFFECT
from plo.identity import code_identity, settings_identity, sha256
from plo.losses import Loss, get_loss
from plo.losses.identity import loss_identity
from plo.scorers import Scores, Stage
from plo.tracking import STAGE, ActiveRun, Artifact, unrecorded

VERSION = 2  # of the content of a stage's folder
POLICY = "policy.safetensors"
IDENTITY = "identity"  # name of the weights' identity in the file's metadata; files of earlier versions lack it
FOLDERS = caches.CACHES["stages"]
log = logging.getLogger(__name__)

SMALL = 100e6  # bytes up to which a whole model goes to the store as adapters do
# (key, name, parameters) -> a run to record in, or what a finished run recorded; None: nothing is recorded
Record = Callable[[str, str, Mapping[str, Any]], ActiveRun | Artifact | None]


@dataclass
class Stages:
    """Trains stages on the pairs of one experiment."""

    backbone: Backbone  # of the policy, as the tokenizer
    tokenizer: Any
    pairs: Sequence[Pair]
    model: ModelConfig
    train: TrainConfig  # of which a stage changes some settings
    store: ReferenceStore
    record_models: str = "adapters"
    record: Record = lambda key, name, params: None
    _others: dict[str, Backbone] = field(default_factory=dict)
    _identities: dict[str, list[Any]] = field(default_factory=dict)
    _digests: dict[Any, str] = field(default_factory=dict)

    def base(self, stage: Stage) -> Backbone:
        """Return the model that a stage starts from: the policy's, or another one, which is loaded once.

        Raises:
            ConfigError: the tokenizer of the other model differs from the policy's.
        """
        if stage.model is None:
            return self.backbone
        if stage.model not in self._others:
            config = self.model.model_copy(update={"name": stage.model})
            backbone, tokenizer = load_backbone(config, self.backbone.longest or 512)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ConfigError(
                    f"The model {stage.model!r} has another tokenizer than {self.model.name!r}, and token scores refer to "
                    f"the policy's tokens: choose a model of the same family."
                )
            check_rows(backbone.causal_lm, self.pairs)
            self._others[stage.model] = backbone
        return self._others[stage.model]

    def release(self) -> None:
        """Free the other models, whose memory the training of the losses needs. They are loaded again when needed."""
        if self._others:
            self._others.clear()
            gc.collect()

    def identity(self, stage: Stage) -> list[Any]:
        """Return the identity of the model that a stage starts from, and of its way of computing."""
        if stage.model in self._identities:
            return self._identities[stage.model]
        base = self.base(stage)
        identity = [base.start.identity, base.reference.identity, str(base.compute_dtype), base.packed]
        if stage.model is not None:  # that of the policy changes with its start
            self._identities[stage.model] = identity
        return identity

    def digest(self, share: float = 1.0, reversed: bool = False) -> str:
        """Return the hash of the token ids of the pairs that a stage is trained on."""
        known = (share, reversed)
        if known not in self._digests:
            self._digests[known] = ids_digest(self._pairs(Stage(share=share, reversed=reversed)))
        return self._digests[known]

    def key(self, stage: Stage) -> str:
        """Return the hash of everything that the trained weights depend on."""
        loss = get_loss(stage.loss)
        changed = settings_identity(self.model)
        adapters = {name: value for name, value in changed.items() if name.startswith(("peft", "lora"))}
        settings = settings_identity(stage_settings(self.train, stage), exclude=WITHOUT_EFFECT)
        how = [VERSION, *self.identity(stage), adapters, settings]
        plugged = [one.load() for of in (statistic_of, provider_of) for one in map(of, loss.needs) if one is not None]
        code = sorted(set(map(code_identity, plugged)))
        names = [need.removeprefix("column:") for need in loss.needs if need.startswith("column:")]
        columns = [[pair.columns.get(name) for name in names] for pair in self._pairs(stage)] if names else []
        pairs = self.digest(stage.share, stage.reversed)
        return sha256([how, stage.seed, loss.name, loss_identity(loss), code, columns, pairs])

    def trained(self, stage: Stage, name: str) -> Weights:
        """Return the stage's trained weights, training them first if they are missing."""
        self.make(stage, name)
        path = FOLDERS.path(self.key(stage)) / POLICY
        with safe_open(path, framework="pt") as file:
            identity = (file.metadata() or {}).get(IDENTITY)
        tensors = load_file(path)
        return Weights(identity, tensors) if identity else Weights.on(self.base(stage).base.identity, tensors)

    def make(self, stage: Stage, name: str) -> None:
        """Train the stage and keep its weights, unless they are there already, and record it."""
        folder = FOLDERS.path(self.key(stage))
        with self.recording(folder, [POLICY], name, stage_params(self.train, stage)) as (run, missing):
            if missing:
                self._train(stage, name, folder, run)
            run.folder(folder)
            if distributed.is_main() and is_recorded(folder / POLICY, self.record_models, self.model):
                run.artifacts(folder, STAGE)
            run.finish(_numbers(folder / POLICY) if distributed.is_main() else None)

    @contextlib.contextmanager
    def recording(
        self, folder: Path, files: Sequence[str], name: str, params: Mapping[str, Any]
    ) -> Iterator[tuple[ActiveRun, list[str]]]:
        """Record what fills a cache folder as a run, which fails if the block raises. One launch at a time may fill it.

        Yields:
            The run, and which of `files` are still missing after those of a run that is finished elsewhere were fetched.
        """
        distributed.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        lock = caches.lock(folder)
        with distributed.on_main(lock.acquire, share=False) or contextlib.nullcontext():
            # Only now: the run of another launch would look like that of a killed process.
            start = partial(self.record, folder.name, name, params)
            started = distributed.on_main(start, share=False)
            finished = started if isinstance(started, Artifact) else None
            run = unrecorded(ActiveRun) if started is None or isinstance(started, Artifact) else started
            try:
                yield run, distributed.on_main(lambda: _missing(folder, files, finished))
            except BaseException as error:
                run.fail(error)
                raise

    def logps(self, stage: Stage, name: str, pairs: Sequence[Pair]) -> Sequence[Scores]:
        """Return the log-probs (nats) of the response tokens under the trained stage."""
        weights, base = self.trained(stage, name), self.base(stage)
        with base.holding(weights):
            known = self.store.get(base, pairs, policy=weights.identity).logps
        return [(chosen, rejected) for chosen, rejected in known]

    def _train(self, stage: Stage, name: str, folder: Path, run: ActiveRun) -> None:
        backbone, loss, pairs = self.base(stage), get_loss(stage.loss), self._pairs(stage)
        if "weights" in loss.needs:
            raise ConfigError(
                f"The stage loss {loss.name!r} needs token weights, and stages are trained without: choose another loss."
            )
        reference = self._reference(stage, backbone, loss, len(pairs))
        curve = CurveRecorder(run)

        def train(config: TrainConfig) -> dict[str, float]:
            checkpoint = distributed.on_main(lambda: last_checkpoint(folder))
            clock = _Clock(checkpoint)
            backbone.reset(stage.seed, loss)
            about = {"seed": stage.seed, "folder": folder, "callbacks": [curve, clock]}
            trainer = PreferenceTrainer(backbone, pairs, reference, config, **about)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return {"seconds": clock.seconds(), "steps": trainer.state.global_step, "pairs": len(pairs)}

        numbers, notes = train_within_memory(train, stage_settings(self.train, stage), loss, f"the stage {name}")
        if notes:
            run.tag("plo.notes", json.dumps(notes))
        weights = backbone.weights()

        def keep() -> None:
            about = {name: repr(value) for name, value in numbers.items()} | {IDENTITY: weights.identity}
            stored.write(folder / POLICY, lambda aside: save_file(dict(weights.tensors), aside, about), durable=True)
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path, ignore_errors=True)

        distributed.on_main(keep, share=False)

    def _reference(self, stage: Stage, backbone: Backbone, loss: Loss, count: int) -> Reference:
        reference = self.store.get(backbone, self.pairs[:count], hidden=needs_reference(loss.needs))
        if stage.reversed:
            hidden = None if reference.hidden is None else [sides[::-1] for sides in reference.hidden]
            reference = Reference([sides[::-1] for sides in reference.logps], hidden)
        return self.store.with_completions(reference, backbone, self._pairs(stage), loss.needs)

    def _pairs(self, stage: Stage) -> Sequence[Pair]:
        pairs = self.pairs[: stage_pairs(stage, len(self.pairs))]
        if not stage.reversed:
            return pairs
        return [replace(pair, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids) for pair in pairs]


def stage_settings(train: TrainConfig, stage: Stage) -> TrainConfig:
    """Return the experiment's settings of training with the changes of a stage."""
    changed = {name: value for name, value in stage.train.items() if value is not None}
    if "epochs" in changed and "steps" not in changed:
        changed["steps"] = None  # else the experiment's steps would override the stage's epochs
    return TrainConfig.of({**train.model_dump(), **changed}, f"The training of the stage {stage.loss}")


def stage_params(train: TrainConfig, stage: Stage) -> dict[str, Any]:
    """Return the parameters that a stage is recorded with."""
    params = {f"stage.{name}": str(value) for name, value in asdict(stage).items()}
    return {**params, "stage.steps": stage_settings(train, stage).steps}


def stage_pairs(stage: Stage, count: int) -> int:
    """Return how many of `count` pairs a stage is trained on; it takes the first ones."""
    return max(1, round(stage.share * count))


def is_recorded(weights: Path, record_models: str, model: ModelConfig) -> bool:
    """Return whether a trained file or folder goes to the store; see `Experiment.record_models`."""
    files = [weights] if weights.is_file() else weights.iterdir()
    small = model.peft == "lora" or sum(file.stat().st_size for file in files) <= SMALL
    return record_models == "all" or (record_models == "adapters" and small)


def _missing(folder: Path, files: Sequence[str], finished: Artifact | None) -> list[str]:
    """Return which files of a cache folder are missing or damaged, after fetching those of a finished run."""
    missing = [name for name in files if not stored.intact(folder / name)]
    if not missing or finished is None:
        return missing
    if lost := finished.fetch(folder):
        log.info("%s: finished elsewhere as run %s, whose files cannot be used: %s.", folder, finished.run_id, lost)
        return missing
    return [name for name in files if not stored.intact(folder / name)]


def _numbers(policy: Path) -> dict[str, float]:
    """Return the seconds, steps and pairs of a stage's training."""
    with safe_open(policy, framework="pt") as file:
        return {name: float(value) for name, value in (file.metadata() or {}).items() if name != IDENTITY}


class _Clock(TrainerCallback):
    """Measures the seconds of a training, including those of earlier attempts up to the checkpoint."""

    def __init__(self, checkpoint: Path | None):
        self.started = time.perf_counter()
        file = checkpoint / "seconds.json" if checkpoint else None
        self.before = stored.read_json(file) or 0.0 if file else 0.0

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self.before + time.perf_counter() - self.started

    def on_save(self, args, state, control, **kwargs):
        if distributed.is_main():
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            stored.write_json(folder / "seconds.json", self.seconds())


class CurveRecorder(TrainerCallback):
    """Records the training curve, starting with that of an earlier attempt up to the resumed checkpoint."""

    last = -1  # step of the latest entry; a training that starts again after lack of memory repeats earlier ones

    def __init__(self, run: ActiveRun):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        for entry in state.log_history:
            self._record(entry, entry["step"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._record(logs or {}, state.global_step)

    def _record(self, logs: Mapping[str, Any], step: float) -> None:
        if "loss" in logs and step > self.last:  # the Trainer's summary at the end has no loss
            self.last = step
            self.run.log(
                {n: float(v) for n, v in logs.items() if isinstance(v, int | float) and n != "step"}, int(step)
            )
