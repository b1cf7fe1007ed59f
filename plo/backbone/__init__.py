"""Forward pass, statistics, reference and trainer, the same for every loss."""

from plo import extras

extras.require("train", "plo.backbone")
