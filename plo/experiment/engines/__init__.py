"""Engines: how the units of a comparison are handed to processes, from a laptop to a cluster. All give the same results."""

from plo.experiment.engines.engine import Engine, EngineError, run_units
from plo.experiment.engines.get import NAMES, get_engine
from plo.experiment.engines.local import InProcess

__all__ = ["NAMES", "Engine", "EngineError", "InProcess", "get_engine", "run_units"]
