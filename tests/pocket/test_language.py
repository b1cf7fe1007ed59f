"""The pocket language: rewards of sentences by hand, properties of the reference, values against rollouts."""

import numpy as np
import pytest

from plo.pocket import PocketError, Prompt, ids_of, language, prompts
from plo.pocket.words import ID, SYMBOLS, WORDS

INN, CONCERT = Prompt.read("calm anna on the inn :"), Prompt.read("calm anna on the concert :")


def rewards(text: str, prompt: Prompt = INN, finished: bool = True) -> list[float]:
    """Return the rewards of the response's tokens that are not 0."""
    walk = language().walk([prompt], [ids_of(text, finished=finished)])
    return walk.reward[0][walk.reward[0] != 0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the room was good .", [1.0]),
        ("the room was not good .", [-0.8]),
        ("the room was very good .", [1.5]),
        ("the room was not slightly awful .", [0.8]),  # -2 * .5 * -.8
        ("the room was plain !", []),
        ("the room was good and the bed was good .", [1.0]),  # a repeated adjective pays nothing
        ("the room was good and the bed was not very good .", [1.0]),
        ("the room was good and the bed was nice .", [1.0, 1.0]),
        ("the room was loud .", [-2.0]),
        ("the host promised wine . it came .", [3.0]),
        ("the host promised wine . it never came .", [-3.0]),
        ("we went on monday .", []),
        ("the room was was good .", [-1.0, 1.0]),  # forbidden: it costs 1 and leaves the state
        ("the soup was good .", [-1.0] * 5),  # no soup in an inn: so no verb, no adjective, no end, no EOS
        ("the room was", [-1.0]),  # EOS in the middle of a clause
        ("it came .", [-1.0] * 4),  # nothing was promised, and no clause is over that EOS could follow
    ],
)
def test_rewards_by_hand(text, expected):
    assert rewards(text) == pytest.approx(expected)


def test_what_an_adjective_is_worth_depends_on_the_place():
    assert rewards("the music was loud .", CONCERT) == [2.0] and rewards("the music was quiet .", CONCERT) == [-2.0]


def test_a_text_that_was_cut_has_no_eos_to_forbid():
    assert rewards("the room was", finished=False) == []


def test_there_are_132_words_and_1152_prompts_of_6_tokens():
    assert len(WORDS) == len(set(WORDS)) == 132
    assert len({prompt.text for prompt in prompts()}) == 12 * 6 * 16
    assert {len(prompt.text.split()) for prompt in prompts()} == {6}


def test_other_texts_are_refused():
    with pytest.raises(PocketError, match="no prompt of the pocket task.*happy anna on the beach"):
        Prompt.read("happy anna on a beach :")
    with pytest.raises(PocketError, match="'hello' is none of the 132 words"):
        ids_of("hello room", finished=True)


def test_the_state_after_an_exclamation_mark_is_that_after_a_full_stop():
    both = [ids_of(f"the room was good {end} the bed was bad .", finished=True) for end in ".!"]
    walk = language().walk([INN, INN], both)

    assert walk.target[0].tolist() == walk.target[1].tolist()


@pytest.fixture(scope="module")
def sampled():
    asked = prompts() * 8
    responses = language().sample(asked, 0)
    return asked, responses, language().walk(asked, responses)


def test_responses_of_the_reference_are_legal_and_end(sampled):
    _, responses, walk = sampled
    assert not walk.forbidden.any() and all(response[-1] == ID["<eos>"] for response in responses)
    assert language().sample(sampled[0][:9], 0)[:5] == language().sample(sampled[0][:9], 0)[:5]


def test_values_agree_with_rollouts(sampled):
    asked, _, walk = sampled
    total, moods = walk.reward.sum(1), np.array([prompt.mood for prompt in asked])
    for mood in range(3):
        own = total[moods == mood]
        value = language().values[language().grammar.start(mood)]
        assert abs(own.mean() - value) < 4 * own.std() / np.sqrt(len(own))


def test_advantages_agree_with_rollouts_from_both_sides_of_a_token(sampled):
    # What follows the token `not`, less what follows from the state before it whatever the token is.
    _, _, walk = sampled
    ahead = walk.reward[:, ::-1].cumsum(1)[:, ::-1]  # from each token on
    advantage = walk.advantages(language().values)
    for word in ("not", "owner", "clerk", "very", "!", "and"):
        rows, times = np.nonzero(walk.mask & (walk.ids == ID[word]))
        noise = ahead[rows, times] - language().values[walk.state[rows, times]] - advantage[rows, times]
        assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(len(noise)), word


def test_advantages_sum_to_reward_less_value(sampled):
    asked, _, walk = sampled
    starts = language().values[language().start(asked)]
    assert walk.advantages(language().values).sum(1) == pytest.approx(walk.reward.sum(1) - starts)


def test_next_words_are_the_frequencies_of_the_reference(sampled):
    asked, _, walk = sampled
    rows = [row for row, prompt in enumerate(asked) if prompt.mood == 1 and prompt.kind == 0]
    first = np.bincount(walk.ids[rows, 0], minlength=len(WORDS)) / len(rows)
    own = language().next_words([INN], language().walk([INN], [ids_of("the room was good .", finished=True)]))[0]

    assert own.sum(-1) == pytest.approx(np.ones(6))
    assert own[0] == pytest.approx(first, abs=0.03)
    assert own[3, ID["good"]] > 0 and own[3, ID["room"]] == 0


def test_the_properties_of_the_reference(sampled):
    _, _, walk = sampled
    lengths, total, advantage = walk.mask.sum(1), walk.reward.sum(1), walk.advantages(language().values)
    exclamations = (walk.ids == ID["!"]).sum(1)
    own = walk.reward[walk.mask] != 0
    squares = advantage[walk.mask] ** 2

    assert 20 < lengths.mean() < 23 and lengths.min() == 6 and lengths.max() <= 41
    assert 2.7 < total.std() < 3.3
    assert abs(np.corrcoef(lengths, total)[0, 1]) < 0.06
    assert 0.3 < np.corrcoef(exclamations, total)[0, 1] < 0.45  # although they are worth nothing:
    assert np.abs(advantage[walk.ids == ID["!"]]).max() < 0.1
    assert 0.8 < 1 - own.mean() < 0.9
    assert 0.2 < squares[~own].sum() / squares.sum() < 0.35
    assert len(SYMBOLS) == language().automaton.symbols
