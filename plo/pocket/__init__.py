"""The pocket task: a small language in which reward, value and advantage of every token are known exactly.

from plo.pocket import frontier, language, prompt_sets

asked = prompt_sets()["test"]                          # Prompt: text, mood, kind
responses = language().sample(asked, seed=0)           # token ids, drawn from the reference
walk = language().walk(asked, responses)               # walk.reward, walk.mask: (responses, tokens)
walk.advantages(language().values)                     # A(s, a) under the reference, in units of reward
frontier(asked).gold(1.0)                              # the best mean reward at 1 nat of KL per response
"""

from plo.pocket.automaton import Automaton, AutomatonError
from plo.pocket.frontier import Frontier, frontier
from plo.pocket.language import Language, PocketError, Prompt, Walk, ids_of, language, prompts
from plo.pocket.model import pocket_model
from plo.pocket.pairs import pairs, prompt_sets

__all__ = [
    "Automaton",
    "AutomatonError",
    "Frontier",
    "Language",
    "PocketError",
    "Prompt",
    "Walk",
    "frontier",
    "ids_of",
    "language",
    "pairs",
    "pocket_model",
    "prompt_sets",
    "prompts",
]
