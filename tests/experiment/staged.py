"""What tests of stages share."""

from plo.experiment.workbench import prepare, workbench
from plo.tracking import Tracker


def stages_of(name="tiny"):
    tracker = Tracker(create=False)
    return [(s["name"], s["status"]) for c in tracker.comparisons(name) for s in tracker.stages(c.run_id)]


def trained_bench(experiment):
    bench = workbench(experiment)
    prepare(bench)
    return bench.of_seed(0)
