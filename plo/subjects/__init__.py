"""What an evaluation of level "model" asks for text: a policy in memory, a file of outputs, a server.

All have the interface of `Subject`; `plo.subjects.loading.load_subject` makes one of a name.
"""

from plo import extras

extras.require("train", "plo.subjects")

from plo.subjects.subject import Subject, SubjectError

__all__ = ["Subject", "SubjectError"]
