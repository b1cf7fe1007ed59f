"""Subjects, which evaluations of level "model" take text from: a policy in memory, a file of outputs, a server."""

from plo import extras

extras.require("train", "plo.subjects")

from plo.subjects.subject import ScoringSubject, Subject, SubjectError

__all__ = ["ScoringSubject", "Subject", "SubjectError"]
