"""SFT on the chosen responses is the row that every preference loss is compared with."""

from torch import Tensor

from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss("sft", level="token", assumes="chosen", paper="cross-entropy on chosen responses")
def sft(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Raise the likelihood of the chosen response, without the rejected one or a reference.

        -log pi(y_t | s_t) of the chosen response

    Idea: Imitation of the chosen response shows what preferences add. It raises chosen and, as they are alike, often
        rejected responses too.
    Assumes: chosen responses are worth imitating; preferences are not used.

    Returns:
        values (pairs, tokens) nats and their mask (pairs, tokens): the backbone takes the mean over tokens of
        the whole batch, so long responses weigh more, as in ordinary fine-tuning.

    Source: cross-entropy on the chosen response, the loss of language modelling.
    """
    return -pairs.chosen.logps, pairs.chosen.mask
