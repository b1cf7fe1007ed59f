"""Estimate of an experiment from recorded cells where there are any, else from a calibration."""

import logging
from collections.abc import Callable

from plo.config import Experiment
from plo.experiment.calibration import CalibrationError, calibrate, calibration_key, kept_calibration
from plo.experiment.costs import Costs
from plo.experiment.estimate import Estimate
from plo.experiment.plan import Plan, plan_comparison
from plo.experiment.recorded import Recorded, find_recorded
from plo.experiment.recorded_costs import recorded_costs
from plo.experiment.within import Proposal, propose

log = logging.getLogger(__name__)


def estimate(
    experiment: Experiment,
    *,
    workers: int = 1,
    measure: bool = True,
    measuring: Callable[[], None] = lambda: None,
) -> Estimate:
    """Return the plan of an experiment with an estimate.

    Args:
        workers: number of processes, each with a device like this machine's, that share the work.
        measure: whether to calibrate where no calibration of this machine, model and data is kept.
        measuring: called before a calibration.

    Raises:
        PloError: the comparison would fail before anything is trained.
    """
    known = find_recorded(experiment)
    plan = plan_comparison(experiment, known)
    return Estimate(plan, find_costs(known, plan, measure, measuring), workers)


def largest_design(
    experiment: Experiment,
    seconds: float,
    *,
    workers: int = 1,
    measure: bool = True,
    measuring: Callable[[], None] = lambda: None,
) -> Proposal:
    """Return the largest design of an experiment that fits into `seconds`; the other arguments are those of `estimate`.

    Raises:
        PloError: nothing fits, or the comparison would fail before anything is trained.
    """
    known = find_recorded(experiment)
    costs = find_costs(known, plan_comparison(experiment, known), measure, measuring)
    return propose(known, costs, seconds, workers)


def find_costs(known: Recorded, plan: Plan, measure: bool, measuring: Callable[[], None]) -> Costs:
    """Return costs from recorded cells, and for the rest from a calibration. One that fails is logged, and there is none."""
    experiment = known.inputs.experiment
    key = calibration_key(experiment, known.variants, known.inputs.data.train)
    costs = kept_calibration(key)
    if costs is None and measure:
        measuring()
        try:
            costs = calibrate(experiment, key)
        except CalibrationError as error:
            log.warning("%s The estimate is of recorded cells alone.", error)
    costs = costs or Costs()
    return costs.with_figures(recorded_costs(known, plan.shape.tokens, plan.shape.samples, costs))
