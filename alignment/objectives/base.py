"""The contract between the core and a method: small tensors in, sums and counts out.

An objective never sees a model, a padded position or a vocabulary. It is handed the log-probs of
the response tokens of some whole groups and returns, for each term of its loss, one sum and one
count per group. Counts come from labels alone, so a trainer can add them up over an accumulation
window and all processes before the first forward; the loss then depends on neither micro-batches
nor packing nor the number of processes. Where a count reads the policy, the objective says so, and
a pass without gradient comes first.

Shape letters: G groups, R responses, N response tokens, D divergences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from alignment.core.groups import Group as Group  # for methods, from one place
from alignment.core.groups import scored_segments as scored_segments
from alignment.core.methods import check_kinds
from alignment.core.methods import check_range as check_range

Need = Literal[
    "reference",
    "second_reference",
    "teacher",
    "second_teacher",
    "values",
    "reward",
    "role",
    "pairs",
    "one_rejected",
    "twin",
    "edits",
    "spans",
    "scores",
    "aspects",
]
DivergenceKind = Literal[
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "anchored_reverse_kl",
    "jensen_shannon",
    "bucketed_forward_kl",
    "expected_advantage",
    "clipped_advantage",
]
LogpsUse = Literal["gradient", "constant", "logged"]


class Progress(NamedTuple):
    """Where training stands; schedules read it.

    Attributes:
        step: Optimiser steps finished.
        max_steps: Optimiser steps of the whole run.
        epoch: Epochs finished, a fraction inside an epoch.
        epochs: Epochs of the whole run.
        evaluating: No step follows from what is computed.
    """

    step: int = 0
    max_steps: int = 1
    epoch: float = 0.0
    epochs: float = 1.0
    evaluating: bool = False


@dataclass(frozen=True)
class Mean:
    """A mean kept as its two halves, so that means over parts of a batch can be added exactly.

    Attributes:
        sum: Detached scalar, the sum of the values.
        count: Detached scalar, how many values were added.
    """

    sum: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of all entries of `values`, detached."""
        values = values.detach()
        return cls(values.sum(), torch.tensor(float(values.numel()), device=values.device))

    @classmethod
    def ratio(cls, sums: Tensor, counts: Tensor) -> Mean:
        """The mean whose halves are the sums of these two tensors, detached."""
        return cls(sums.detach().sum(), counts.detach().sum())


class LossTerm(NamedTuple):
    """One mean of the loss: `scale * sum(sums) / sum(counts)`, both sums over the global batch.

    Attributes:
        sums: (G,) carries gradient; nats unless the method says otherwise.
        counts: (G,) from labels alone, unless the objective is one whose `counts_read_policy`.
        scale: Constant factor of the term.
    """

    sums: Tensor
    counts: Tensor
    scale: float = 1.0

    @classmethod
    def mean(cls, values: Tensor, scale: float = 1.0) -> LossTerm:
        """The mean over groups of one value (G,) for each."""
        return cls(values, torch.ones_like(values), scale)


@dataclass(frozen=True)
class DivergenceSpec:
    """A divergence per token between teacher p and student q, over their common vocabulary.

    With a the skew of the token's response, r the second teacher and A(v) = log p(v) - log r(v):

    | kind | value | q in the mixture |
    |---|---|---|
    | `skewed_forward_kl` | KL(p, a p + (1 - a) q); at a = 0 KL(p, q) | carries gradient |
    | `skewed_reverse_kl` | KL(q, (1 - a) p + a q); at a = 0 KL(q, p) | carries gradient |
    | `anchored_reverse_kl` | the same value | constant |
    | `jensen_shannon` | a KL(p, m) + (1 - a) KL(q, m), m = a p + (1 - a) q | carries gradient |
    | `bucketed_forward_kl` | KL(p, q) on the `top_k` likeliest tokens of p and one bucket for the \
    rest | carries gradient |
    | `expected_advantage` | the sum over those tokens of q(v) A(v) | carries gradient |
    | `clipped_advantage` | the same with q and A cut to (0, 1), the rest in a bucket where A is 0 \
    | carries gradient |

    Attributes:
        kind: One of the table.
        skew: (R,) in [0, 1]; where it requires grad, strictly between 0 and 1. The last three kinds
            have none: zeros.
        where: (R,) bool, the responses whose tokens are compared; the others get zero and cost
            nothing. None compares all.
        top_k: How many tokens the last three kinds keep; None keeps the whole vocabulary.
    """

    kind: DivergenceKind
    skew: Tensor
    where: Tensor | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class GroupTerms:
    """What an objective sees of a batch. Padding never gets here.

    Attributes:
        logps: (N,) nats, log-prob of each response token under the policy; carries gradient.
        response_of_token: (N,) int64, the response a token belongs to, ascending.
        group_of_response: (R,) int64, the group a response belongs to, ascending from 0.
        role: (R,) int64, +1 chosen / desirable / teacher's, -1 rejected / undesirable / student's,
            0 neither.
        reward: (R,) label from the data, higher is better; None where the data has none.
        weight: (R,) weight of a response from the data; None where the data has none.
        aspects: (R, M) labels in M dimensions from the data, higher is better, NaN where nobody
            judged; None where none was asked for.
        twin: (R,) int64, set on a judged view only: the index of its plain view; -1 elsewhere.
        ref_logps: (N,) nats, detached; None where no reference was asked for.
        second_ref_logps: (N,) nats, detached, those of the second reference; None where none was
            asked for.
        teacher_logps: (N,) nats, detached; None where there is no teacher.
        mark: (N,) int64 label of a token from the data: +1 inserted or substituted, -1 deleted,
            replaced or flagged, 0 neither; None where none was asked for.
        score: (N,) score of a token from the data, that of its segment; None where none was asked
            for.
        values: (N,) a trainable value read at the position that predicts the token; carries
            gradient. None where none was asked for.
        divergences: (N, D) per-token divergences in the order of `Objective.divergences`; None
            without specs.
        progress: Step and epoch counters.
        state: Small tensors that `Objective.update` returned last; read only.

    Raises:
        ValueError: A tensor has another shape or type than stated, or ids do not ascend.
    """

    logps: Tensor
    response_of_token: Tensor
    group_of_response: Tensor
    role: Tensor
    reward: Tensor | None = None
    weight: Tensor | None = None
    aspects: Tensor | None = None
    twin: Tensor | None = None
    ref_logps: Tensor | None = None
    second_ref_logps: Tensor | None = None
    teacher_logps: Tensor | None = None
    mark: Tensor | None = None
    score: Tensor | None = None
    values: Tensor | None = None
    divergences: Tensor | None = None
    progress: Progress = Progress()
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokens, responses = (self.logps.numel(),), (self.group_of_response.numel(),)
        expected = {
            "logps": tokens,
            "response_of_token": tokens,
            "ref_logps": tokens,
            "second_ref_logps": tokens,
            "teacher_logps": tokens,
            "mark": tokens,
            "score": tokens,
            "values": tokens,
            "group_of_response": responses,
            "role": responses,
            "reward": responses,
            "weight": responses,
            "twin": responses,
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"GroupTerms.{name} has shape {tuple(value.shape)}, expected {shape}"
                )
        for name, rows, columns in (("divergences", tokens, "D"), ("aspects", responses, "M")):
            table = getattr(self, name)
            if table is not None and (table.dim() != 2 or table.shape[:1] != rows):
                raise ValueError(
                    f"GroupTerms.{name} has shape {tuple(table.shape)}, "
                    f"expected ({rows[0]}, {columns})"
                )
        for name, count in (("response_of_token", responses[0]), ("group_of_response", None)):
            ids = getattr(self, name)
            if ids.dtype != torch.int64:
                raise ValueError(f"GroupTerms.{name} must be int64, got {ids.dtype}")
            if count is None and (ids.numel() == 0 or ids[0] != 0 or (ids.diff() > 1).any()):
                raise ValueError(f"GroupTerms.{name} must count up from 0 without gaps")
            if (ids.diff() < 0).any() or (count is not None and (ids >= count).any()):
                raise ValueError(f"GroupTerms.{name} must ascend and stay below {count}")

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return int(self.group_of_response[-1]) + 1

    @property
    def num_responses(self) -> int:
        """R, the number of responses."""
        return self.group_of_response.numel()

    @property
    def group_of_token(self) -> Tensor:
        """(N,) int64, the group a token belongs to."""
        return self.group_of_response[self.response_of_token]


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns.

    Attributes:
        terms: The loss is the sum of these means, or their mean if `averages_terms`.
        metrics: Detached means to log, under TRL's names.
        parts: Intermediate values by name, for tests against the authors' numbers.
        statistics: Detached means that `Objective.update` gets, reduced over the global batch.
        averages_terms: The loss is the mean over the terms that something in the global batch
            counts for, instead of the sum over all terms.
    """

    terms: tuple[LossTerm, ...]
    metrics: Mapping[str, Mean] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Mean] = field(default_factory=dict)
    averages_terms: bool = False

    def counts(self) -> Tensor:
        """(T,) float64, the count of each term summed over the groups at hand."""
        return torch.stack([term.counts.sum().double() for term in self.terms])

    def loss(self, counts: Tensor | None = None) -> Tensor:
        """The scalar loss, or this call's share of it.

        Args:
            counts: (T,) count of each term over the global batch; None takes the groups at hand
                for it.

        Returns:
            Scalar. Shares of calls that split one global batch add up to the loss of that batch.
            A term that nothing counts for contributes zero.
        """
        sums = torch.stack([term.scale * term.sums.sum() for term in self.terms])  # (T,)
        counts = (self.counts() if counts is None else counts).to(sums)
        present = counts > 0
        loss = torch.where(present, sums / torch.where(present, counts, 1.0), 0.0).sum()
        return loss / present.sum().clamp(min=1) if self.averages_terms else loss


@dataclass(frozen=True)
class Objective(ABC):
    """A training objective. Its fields are the method's hyper-parameters.

    A recipe sets them under `objective_kwargs`. Values that do not fit a field's annotation (a
    number, a `Literal`) are refused here; ranges are the subclass's to check.

    Raises:
        ValueError: A hyper-parameter is of the wrong kind; field, value and remedy are named.
    """

    roles: ClassVar[frozenset[int]] = frozenset({-1, 0, 1})
    """Roles of the responses that the method reads; others are not computed."""

    def __post_init__(self) -> None:
        check_kinds(self)

    @property
    def needs(self) -> frozenset[Need]:
        """What the method reads beside the policy's log-probs.

        Of models: `reference`, `second_reference`, `teacher`, `second_teacher`, or `values` (a head
        that is trained along and gives one number per token). Of data: `reward`, `role` (every
        response is +1 or -1), `pairs` (one chosen and one rejected response per group),
        `one_rejected` (one rejected response and at least one chosen), `twin`, `aspects` (labels in
        several dimensions), and per token `edits` (marks of what was edited between the two sides
        of a pair), `spans` (marks of flagged spans) or `scores` (of segments). A subclass sets it
        as a class variable, or as a property where it depends on its fields.
        """
        return frozenset()

    def misfit(self, group: Group) -> str | None:
        """Why a row teaches nothing, or something else, though it has the labels of `needs`.

        Args:
            group: The row, before anything is rendered.

        Returns:
            A clause that begins with what the method does, for a message that names it; None where
            the row fits.
        """
        return None

    @property
    def counts_read_policy(self) -> bool:
        """Whether counts depend on the policy's log-probs, which costs one more forward pass."""
        return False

    @abstractmethod
    def __call__(self, terms: GroupTerms) -> ObjectiveOutput:
        """Computes the terms of the loss for the groups in `terms`."""

    def divergences(self, terms: GroupTerms) -> tuple[DivergenceSpec, ...]:
        """The divergences to compute, given log-probs of policy and teacher; none by default."""
        return ()

    def logps_use(self, terms: GroupTerms) -> LogpsUse:
        """How log-probs are read by the loss and by `divergences`, for what may be spared.

        Where they are `logged` only, one walk over the vocabulary serves divergences and log-probs;
        where they are `constant` their gradient is not computed.

        Args:
            terms: Labels, progress and state.
        """
        return "gradient"

    def steering(self, progress: Progress) -> tuple[float, ...] | None:
        """The weights of dimensions that steer the adapter at a step; None for none."""
        return None

    def update(
        self, state: Mapping[str, Tensor], statistics: Mapping[str, Mean]
    ) -> Mapping[str, Tensor]:
        """The next state, called once per optimiser step with globally reduced statistics; pure."""
        return state

    def initial_loss(self, terms: GroupTerms) -> float | None:
        """The loss that labels alone predict where the policy equals the reference.

        The preflight compares the first step with it.

        Returns:
            Nats, or None where the loss depends on the policy even then.
        """
        return None


def sum_tokens(values: Tensor, terms: GroupTerms) -> Tensor:
    """(R,) sum of per-token `values` (N,) over each response."""
    return values.new_zeros(terms.num_responses).index_add(0, terms.response_of_token, values)


def count_tokens(terms: GroupTerms) -> Tensor:
    """(R,) number of tokens of each response, in the dtype of the log-probs."""
    return torch.bincount(terms.response_of_token, minlength=terms.num_responses).to(terms.logps)


def mean_tokens(values: Tensor, terms: GroupTerms) -> Tensor:
    """(R,) mean of per-token `values` (N,) over each response."""
    return sum_tokens(values, terms) / count_tokens(terms)


def mean_divergences(terms: GroupTerms) -> tuple[Tensor, ...]:
    """(R,) mean over tokens, once for each of the objective's divergences.

    Raises:
        ValueError: The terms carry no divergences.
    """
    if terms.divergences is None:
        raise ValueError("this objective compares with a teacher, but `divergences` is missing")
    return tuple(mean_tokens(column, terms) for column in terms.divergences.unbind(1))


def teacher_mean_logps(terms: GroupTerms) -> Tensor:
    """(R,) mean log-prob of a token of each response under the teacher, nats.

    Raises:
        ValueError: The terms carry no teacher.
    """
    if terms.teacher_logps is None:
        raise ValueError("this objective compares with a teacher, but `teacher_logps` is missing")
    return mean_tokens(terms.teacher_logps, terms)


def sum_responses(values: Tensor, terms: GroupTerms) -> Tensor:
    """(G,) sum of per-response `values` (R,) over each group."""
    return values.new_zeros(terms.num_groups).index_add(0, terms.group_of_response, values)


def count_responses(terms: GroupTerms) -> Tensor:
    """(G,) number of responses of each group, in the dtype of the log-probs."""
    return torch.bincount(terms.group_of_response, minlength=terms.num_groups).to(terms.logps)


def group_max(values: Tensor, terms: GroupTerms) -> Tensor:
    """(G,) largest of the per-response `values` (R,) of each group, detached."""
    floor = values.new_full((terms.num_groups,), -torch.inf)
    return floor.scatter_reduce(0, terms.group_of_response, values.detach(), "amax")


def group_log_softmax(scores: Tensor, terms: GroupTerms) -> Tensor:
    """(R,) log-softmax of `scores` (R,) within each group."""
    shifted = scores - group_max(scores, terms)[terms.group_of_response]
    return shifted - sum_responses(shifted.exp(), terms).log()[terms.group_of_response]


def alone(group: Group) -> str | None:
    """A `misfit` of methods that compare the responses to a prompt: there is but one."""
    if len(group.responses) > 1:
        return None
    return "compares the responses to a prompt and this row has one: add others"


def reward_labels(terms: GroupTerms) -> Tensor:
    """(R,) the rewards from the data, in float32 or the precision they came in if that is higher.

    Raises:
        ValueError: The terms carry no rewards, or one of them is not finite.
    """
    if terms.reward is None:
        raise ValueError("this objective weighs responses by reward, but `reward` is missing")
    if not terms.reward.isfinite().all():
        raise ValueError("`reward` holds NaN or infinity: drop those responses from the data")
    return terms.reward.to(torch.promote_types(terms.reward.dtype, torch.float32))


def reward_weights(terms: GroupTerms, tau: float, first_response_bonus: float = 0.0) -> Tensor:
    """(R,) softmax of reward / `tau` within each group; the weights of a group sum to 1.

    Args:
        terms: The batch.
        tau: Temperature: near 0 all weight goes to the best response, large values flatten.
        first_response_bonus: Added to the reward of the first response of each group.
    """
    rewards = reward_labels(terms)
    is_first = terms.group_of_response.diff(prepend=terms.group_of_response.new_tensor([-1]))
    rewards = rewards + first_response_bonus * is_first.to(rewards)
    return group_log_softmax(rewards / tau, terms).exp().to(terms.logps)


def implicit_rewards(beta: float, terms: GroupTerms) -> Tensor:
    """(R,) `beta` times summed log-prob under the policy minus that under the reference, nats.

    Raises:
        ValueError: The terms carry no reference.
    """
    if terms.ref_logps is None:
        raise ValueError("this objective compares with a reference, but `ref_logps` is missing")
    return beta * sum_tokens(terms.logps - terms.ref_logps, terms)


def pairs(terms: GroupTerms) -> tuple[Tensor, Tensor]:
    """The response indices of the chosen and the rejected side of each group.

    Returns:
        Two (G,) int64 tensors, in the order of the groups.

    Raises:
        ValueError: A group has not exactly one response of role +1 and one of role -1.
    """
    sides = []
    for role, name in ((1, "chosen"), (-1, "rejected")):
        (index,) = torch.nonzero(terms.role == role, as_tuple=True)
        groups = terms.group_of_response[index]
        if groups.numel() != terms.num_groups or (groups.diff() != 1).any():
            raise ValueError(f"every group needs exactly one {name} response (role {role:+d})")
        sides.append(index)
    return sides[0], sides[1]


def twin_tokens(terms: GroupTerms) -> tuple[Tensor, Tensor]:
    """The token indices of all judged views, and of the same tokens in their plain views.

    Returns:
        Two (n,) int64 tensors; empty where the batch has no judged view.

    Raises:
        ValueError: The two views of a response have different numbers of tokens.
    """
    if terms.twin is None:
        nothing = terms.response_of_token[:0]
        return nothing, nothing
    lengths = torch.bincount(terms.response_of_token, minlength=terms.num_responses)
    (judged,) = torch.nonzero(terms.twin >= 0, as_tuple=True)
    if (lengths[judged] != lengths[terms.twin[judged]]).any():
        raise ValueError("the two views of a judged response must have the same tokens")
    starts = lengths.cumsum(0) - lengths
    (tokens,) = torch.nonzero(terms.twin[terms.response_of_token] >= 0, as_tuple=True)
    view = terms.response_of_token[tokens]
    return tokens, tokens - starts[view] + starts[terms.twin[view]]


def token_marks(terms: GroupTerms) -> Tensor:
    """(N,) int64 marks of the tokens from the data.

    Raises:
        ValueError: The terms carry no marks.
    """
    if terms.mark is None:
        raise ValueError("this objective reads marks of tokens, but `mark` is missing")
    return terms.mark


def token_scores(terms: GroupTerms) -> Tensor:
    """(N,) scores of the tokens from the data, in the dtype of the log-probs.

    Raises:
        ValueError: The terms carry no scores, or one of them is not finite.
    """
    if terms.score is None:
        raise ValueError("this objective reads scores of tokens, but `score` is missing")
    if not terms.score.isfinite().all():
        raise ValueError("`score` holds NaN or infinity: drop those segments from the data")
    return terms.score.to(terms.logps)


def log_complement(logps: Tensor, certain: float) -> Tensor:
    """The log of 1 - p; the constant `certain`, without gradient, where p is exactly 1."""
    is_certain = logps >= 0
    return torch.where(
        is_certain, certain, (-torch.expm1(logps.masked_fill(is_certain, -1.0))).log()
    )


def token_means(values: Tensor, counts: Tensor, terms: GroupTerms, scale: float = 1.0) -> LossTerm:
    """The mean of per-token `values` (N,) over per-token `counts` (N,), as sums of each group."""
    sums, sizes = (
        part.new_zeros(terms.num_groups).index_add(0, terms.group_of_token, part)
        for part in (values, counts)
    )
    return LossTerm(sums, sizes, scale)


def response_means(values: Tensor, counts: Tensor, members: Tensor, terms: GroupTerms) -> LossTerm:
    """The mean of per-response `values` (R,) over `counts` (R,), of `members` (R,) only."""
    sums, sizes = (torch.where(members, part, 0.0) for part in (values, counts))
    return LossTerm(sum_responses(sums, terms), sum_responses(sizes, terms))


def places(terms: GroupTerms) -> Tensor:
    """(R,) int64, the place of each response in its group, in the order of the data from 0."""
    sizes = torch.bincount(terms.group_of_response, minlength=terms.num_groups)
    first = sizes.cumsum(0) - sizes
    index = torch.arange(terms.num_responses, device=first.device)
    return index - first[terms.group_of_response]


def best_and_worst(terms: GroupTerms) -> tuple[Tensor, Tensor]:
    """The response indices of the highest and the lowest reward, of groups where these differ.

    Among equal rewards the first response counts. Returns two (G',) int64 tensors, G' <= G.
    """
    rewards = reward_labels(terms)
    best, worst = _first_argmax(rewards, terms), _first_argmax(-rewards, terms)
    differ = rewards[best] > rewards[worst]
    return best[differ], worst[differ]


def pair_metrics(
    rewards: Tensor, terms: GroupTerms, sides: tuple[Tensor, Tensor]
) -> dict[str, Mean]:
    """TRL's metrics of pairs.

    Args:
        rewards: (R,) implicit rewards, nats.
        terms: The batch.
        sides: Response indices of the chosen and the rejected side of each pair.
    """
    chosen, rejected = rewards[sides[0]], rewards[sides[1]]
    logps = sum_tokens(terms.logps, terms)
    return {
        "rewards/chosen": Mean.of(chosen),
        "rewards/rejected": Mean.of(rejected),
        "rewards/margins": Mean.of(chosen - rejected),
        "rewards/accuracies": Mean.of((chosen > rejected).to(chosen)),
        "logps/chosen": Mean.of(logps[sides[0]]),
        "logps/rejected": Mean.of(logps[sides[1]]),
    }


def role_metrics(name: str, values: Tensor, terms: GroupTerms) -> dict[str, Mean]:
    """`name/chosen` and `name/rejected`: means of `values` (R,) over responses of either role."""
    return {
        f"{name}/chosen": Mean.of(values[terms.role > 0]),
        f"{name}/rejected": Mean.of(values[terms.role < 0]),
    }


def _first_argmax(values: Tensor, terms: GroupTerms) -> Tensor:
    """(G,) int64, the first response of each group that has its group's largest value."""
    group = terms.group_of_response
    (is_top,) = torch.nonzero(values == group_max(values, terms)[group], as_tuple=True)
    last = group.new_full((terms.num_groups,), terms.num_responses)
    return last.scatter_reduce(0, group[is_top], is_top, "amin")
