"""Preference problems small enough to sum over, with the optimal policy of the model that the labels come from.

Notation: ref the reference, r(y) a reward, sigma the logistic function, beta as in DPO.

**Bandit** (two contexts, five responses of unequal length). A response is decided at its first token; the others are
forced, with probability 1 under every policy. Labels P(a > b) = sigma(r(a) - r(b)), Bradley-Terry.

  bradley_terry  A loss that is least where beta (log pi/ref (a) - log pi/ref (b)) = r(a) - r(b) for every pair has one
                 minimiser: pi* ~ ref exp(r / beta).
  flipped_bradley_terry  The same pi*, from labels flipped with the probability that the loss names label_smoothing.
  identity       Squared distance of h from +-1/(2 beta): with probability P that is (h - (P - 1/2) / beta)^2 and a
                 constant. Least squares over all pairs, h = u_a - u_b: u_a = mean over b of P(a > b) / beta, with
                 P(a > a) = 1/2. So pi* ~ ref exp(P(a > a random response) / beta), IPO's own theorem.
  chosen         -log pi of the chosen one: pi*(a) is how often a is chosen, sum_b P(a > b) over the count of pairs.

**Tree** (vocabulary 3, three tokens: 27 responses, 13 states). Q(s,a) = E[r(y) | s, a, then ref], V(s) = E_ref Q,
A = Q - V. Each step's KL-regularised optimum is pi*(.|s) ~ ref exp(Q / beta) = ref exp(A / beta): V(s) is a constant
of the state, its normalisers differ alone.

  token_q        Labels between any two (s,a): P = sigma(Q - Q'). Least where beta (log pi/ref + b(s)) = Q + c; pi is
                 normalised, so b(s) = log Z(s) + c / beta with Z of exp(Q / beta), and pi = pi*.
  token_a        P = sigma(A - A'). Least where beta (log pi/ref + KL(ref || pi)(s)) = A + c. The mean over ref of
                 the left is beta (-KL + KL) = 0 and that of A is 0, so c = 0, and pi = pi*.
  advantage      Labels between whole responses, P = sigma(r(y) - r(y')). In the tree V(s') = Q(s,a), so that the sum of
                 A along y telescopes to r(y) - V(root). Least where F(y) = beta sum_t [log pi/ref + KL(ref || pi)] =
                 r(y) + c; the mean of F over ref is 0, which fixes c; its conditional means are those of A, and so
                 A at every state, and pi = pi* (TDPO, arXiv 2404.11999, and this shows what its loss recovers).

For the verdict the optimal policy is given and the reference made from it, ref ~ pi* exp(-r / beta): so pi* is no
near-certainty at a small beta, where a wrong policy could hide. For the descriptions the reference is given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

BANDIT_REWARD = ((0.9, -0.6, 0.2, -1.0, 0.5), (-0.3, 0.8, -0.9, 0.6, 0.0))  # (contexts, responses) nats
BANDIT_POLICY = ((0.30, 0.10, 0.25, 0.15, 0.20), (0.12, 0.28, 0.22, 0.08, 0.30))
BANDIT_LENGTHS = (1, 4, 2, 3, 5)
DEPTH, VOCABULARY = 3, 3
FORCED = -1  # the action of a token of probability 1


@dataclass(frozen=True)
class Problem:
    """Items to compare, how often each is preferred to each other one, and the policy to recover.

    Attributes:
        ref, target: (states, actions) nats: log ref and log pi*.
        states, actions: (items, tokens) the state and action of each token of an item; FORCED: probability 1.
        lengths: (items,) tokens.
        first, second: (comparisons,) items; p: (comparisons,) P(first preferred over second).
        island, rank: (items,) for the variants: islands are never compared with each other under limited
            support; items of an island with ranks 0, 1, 2 form a cycle under intransitive preferences.
        beta: DPO's.
        reward: from (states, actions) log pi to its expected reward.
    """

    ref: Tensor
    target: Tensor
    states: Tensor
    actions: Tensor
    lengths: Tensor
    first: Tensor
    second: Tensor
    p: Tensor
    island: Tensor
    rank: Tensor
    beta: float
    reward: Callable[[Tensor], float]

    def kl(self, log_pi: Tensor) -> float:
        """Return the largest KL(pi* || pi) over the states, nats."""
        return float((self.target.exp() * (self.target - log_pi)).sum(-1).max().abs())


def bradley_terry(beta: float, given: str = "optimal") -> Problem:
    """Make the bandit with Bradley-Terry labels; `given` is the policy that is fixed, "optimal" or "reference"."""
    reward, policy = (torch.tensor(rows, dtype=torch.float64) for rows in (BANDIT_REWARD, BANDIT_POLICY))
    ref, target = _ref_and_target(policy.log(), reward / beta, given)
    contexts, responses = reward.shape
    longest = max(BANDIT_LENGTHS)
    context = torch.arange(contexts).repeat_interleave(responses)
    actions = torch.full((contexts * responses, longest), FORCED)
    actions[:, 0] = torch.arange(responses).repeat(contexts)
    first, second = _all_pairs(contexts * responses)
    same = context[first] == context[second]
    first, second = first[same], second[same]
    return Problem(
        ref=ref,
        target=target,
        states=context[:, None].expand(-1, longest),
        actions=actions,
        lengths=torch.tensor(BANDIT_LENGTHS).repeat(contexts),
        first=first,
        second=second,
        p=torch.sigmoid(reward.reshape(-1)[first] - reward.reshape(-1)[second]),
        island=context * 2 + (actions[:, 0] > 2),
        rank=actions[:, 0],
        beta=beta,
        reward=lambda log_pi: float((log_pi.exp() * reward).sum(-1).mean()),
    )


def flipped(problem: Problem, share: float) -> Problem:
    """Return the problem with this share of labels flipped."""
    return replace(problem, p=(1 - share) * problem.p + share * (1 - problem.p))


def identity(beta: float) -> Problem:
    """Make the bandit whose optimum is IPO's."""
    problem = bradley_terry(beta)
    return replace(problem, target=(problem.ref + (_won(problem) + 0.5) / (5 * beta)).log_softmax(-1))


def chosen(beta: float) -> Problem:
    """Make the bandit whose optimum is the distribution of chosen responses."""
    problem = bradley_terry(beta)
    return replace(problem, target=(_won(problem) / 10).log())  # ten pairs a context


def advantage(beta: float, given: str = "optimal") -> Problem:
    """Make the problem of whole responses of the tree, through states 0, 1 + a1 and 4 + 3 a1 + a2."""
    problem = tree(beta, given, advantage=True)
    path = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * DEPTH)
    reward = _tree_reward()
    first, second = _all_pairs(len(path))
    return replace(
        problem,
        states=torch.stack([0 * path[:, 0], 1 + path[:, 0], 4 + 3 * path[:, 0] + path[:, 1]], 1),
        actions=path,
        lengths=torch.full((len(path),), DEPTH),
        first=first,
        second=second,
        p=torch.sigmoid(reward[first] - reward[second]),
        island=path[:, 0],
        rank=3 * path[:, 1] + path[:, 2],
    )


def tree(beta: float, given: str = "optimal", *, advantage: bool) -> Problem:
    """Make the problem of one-token items (s,a), every two of them compared, labelled by Q or by A."""
    states = sum(VOCABULARY**t for t in range(DEPTH))
    policy = torch.cos(1.3 * torch.arange(states * VOCABULARY, dtype=torch.float64)).view(states, VOCABULARY)
    value, rows, score, end = _tree_reward(), [], [], states
    for t in reversed(range(DEPTH)):  # Q of the last step is r; that of any other the value of the state it leads to
        q = value.view(VOCABULARY**t, VOCABULARY)
        both = _ref_and_target(policy[end - len(q) : end].log_softmax(-1), q / beta, given)
        value, end = (both[0].exp() * q).sum(-1), end - len(q)
        rows.insert(0, both)
        score.insert(0, q - value[:, None] if advantage else q)
    ref, target = (torch.cat(each) for each in zip(*rows, strict=True))
    score = torch.cat(score).reshape(-1)
    items = states * VOCABULARY
    first, second = _all_pairs(items)
    state = torch.arange(items) // VOCABULARY
    depth = (state > 0).long() + (state > 3).long()
    return Problem(
        ref=ref,
        target=target,
        states=state[:, None],
        actions=(torch.arange(items) % VOCABULARY)[:, None],
        lengths=torch.ones(items, dtype=torch.long),
        first=first,
        second=second,
        p=torch.sigmoid(score[first] - score[second]),
        island=depth,
        rank=torch.arange(items) - VOCABULARY * torch.tensor([0, 1, 4])[depth],
        beta=beta,
        reward=_tree_value,
    )


def _ref_and_target(policy: Tensor, advantage: Tensor, given: str) -> tuple[Tensor, Tensor]:
    """Return log ref and log pi* ~ ref exp(advantage), of which `policy` is the given one."""
    if given == "optimal":
        return (policy - advantage).log_softmax(-1), policy
    return policy, (policy + advantage).log_softmax(-1)


def _tree_reward() -> Tensor:
    return torch.sin(2.3 * torch.arange(VOCABULARY**DEPTH, dtype=torch.float64))


def _tree_value(log_pi: Tensor) -> float:
    value, end = _tree_reward(), len(log_pi)
    for t in reversed(range(DEPTH)):
        begin = end - VOCABULARY**t
        value, end = (log_pi[begin:end].exp() * value.view(-1, VOCABULARY)).sum(-1), begin
    return float(value)


def _all_pairs(items: int) -> Tensor:
    """Return (2, pairs): first and second of every unordered pair of different items."""
    return torch.triu_indices(items, items, offset=1)


def _won(problem: Problem) -> Tensor:
    """Return (contexts, responses): the sum of P(a > b) over the other responses b of the context."""
    won = torch.zeros(problem.target.numel(), dtype=torch.float64)
    won.index_add_(0, problem.first, problem.p).index_add_(0, problem.second, 1 - problem.p)
    return won.view_as(problem.target)


PROBLEMS = {
    "bradley_terry": bradley_terry,
    "identity": identity,
    "chosen": chosen,
    "advantage": advantage,
    "token_q": partial(tree, advantage=False),
    "token_a": partial(tree, advantage=True),
}


def problem_of(model: str | None, beta: float, params: dict) -> Problem:
    """Return the problem of a preference model that a loss may assume; Bradley-Terry where it declares none."""
    if model == "flipped_bradley_terry":
        return flipped(bradley_terry(beta), float(params["label_smoothing"]))
    return PROBLEMS[model or "bradley_terry"](beta)


def variants(model: str | None, beta: float) -> dict[str, Problem]:
    """Return problems with labels that no preference model made, on which a loss is described, not judged.

    They are of the tree for its preference models, and of the bandit otherwise; pi* is that of the reward.
    """
    problem = PROBLEMS[model if model in ("advantage", "token_q", "token_a") else "bradley_terry"](beta, "reference")
    if model in ("token_q", "token_a"):  # a fifth of the comparisons, because a learned baseline takes long
        near = torch.isin(problem.second - problem.first, torch.tensor([1, 2, 5, 11]))
        problem = replace(problem, first=problem.first[near], second=problem.second[near], p=problem.p[near])
    a, b = problem.first, problem.second
    longer = torch.sigmoid(torch.logit(problem.p) + 0.3 * (problem.lengths[a] - problem.lengths[b]))
    cycle = (problem.island[a] == problem.island[b]) & (problem.rank[a] < 3) & (problem.rank[b] < 3)
    wins = (problem.rank[b] - problem.rank[a]) % 3 == 1  # 0 over 1 over 2 over 0, nine times of ten
    turning = torch.where(cycle, torch.where(wins, 0.9, 0.1).double(), problem.p)
    kept = problem.island[a] == problem.island[b]
    known = {"clean": problem, "20% of labels flipped": flipped(problem, 0.2)}
    if len(set(problem.lengths.tolist())) > 1:
        known["labels prefer the longer"] = replace(problem, p=longer)
    known["a cycle among three"] = replace(problem, p=turning)
    known["groups never compared"] = replace(problem, first=a[kept], second=b[kept], p=problem.p[kept])
    return known
