"""An experiment with what is recorded of it, found without loading weights.

Keys depend on the weights. Those of the recorded comparison are taken, which is right if the model still has them.
"""

from dataclasses import dataclass, replace

from plo.backbone.head import ModelError
from plo.backbone.pretrained import pretrained_tokenizer
from plo.config import Experiment
from plo.experiment.answers import check_oracle
from plo.experiment.keys import Inputs, comparison_key
from plo.experiment.preflight import check_source_columns, checked_variants
from plo.experiment.workbench import read_data, suites
from plo.faults import reason
from plo.scorers import Variant
from plo.tracking import Comparison, NothingRecorded, RecordedCell, Tracker


@dataclass(frozen=True)
class Recorded:
    """An experiment's inputs, and the newest recorded comparison that equals it.

    Attributes:
        inputs: settings and data of the comparison; `model_identity` is "" if nothing is recorded.
        tuning: the same with the held-out prompts of the tuning; None without tuning.
        variants: in the order of the experiment, `sft` first.
        tracker: None: there is no store.
        comparison: None: no comparison with these settings is recorded.
    """

    inputs: Inputs
    tuning: Inputs | None
    variants: list[Variant]
    tracker: Tracker | None
    comparison: Comparison | None

    @property
    def cells(self) -> list[RecordedCell]:
        """Last attempts at the cells of the recorded comparison."""
        return self.comparison.cells() if self.comparison is not None else []


def find_recorded(experiment: Experiment) -> Recorded:
    """Return an experiment with what is recorded of it.

    Raises:
        PloError: the comparison would fail before anything is trained.
    """
    variants, _ = checked_variants(experiment)
    if any(variant.origin.round for variant in variants):
        check_oracle(experiment)
    names, of_models = suites(experiment)
    try:
        tokenizer, generation = pretrained_tokenizer(experiment.model.name)
    except (OSError, ValueError) as error:
        raise ModelError(f"The model {experiment.model.name!r} cannot be found: {reason(error)}.") from error
    data = read_data(experiment, tokenizer, generation)
    check_source_columns(variants, data.train)
    inputs, tuning = Inputs(experiment, tokenizer, data, names, of_models, model_identity=""), None
    if experiment.tuning:
        for_tuning, for_test = data.split_for_tuning()
        tuning, inputs = replace(inputs, data=for_tuning), replace(inputs, data=for_test)
    try:
        tracker = Tracker(experiment.store, "plo", create=False)
    except NothingRecorded:
        return Recorded(inputs, tuning, variants, None, None)
    for comparison in reversed(tracker.comparisons()):
        identity = comparison.tags.get("plo.model", "")
        alike = replace(inputs, model_identity=identity)
        if comparison.name == experiment.name and comparison.key == comparison_key(alike):
            tuning = replace(tuning, model_identity=identity) if tuning is not None else None
            return Recorded(alike, tuning, variants, tracker, comparison)
    return Recorded(inputs, tuning, variants, tracker, None)
