"""A comparison: its plan, its cells, its stages and its evaluations."""

from plo import extras

extras.require("train", "plo.experiment")
