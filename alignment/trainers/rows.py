"""What a trainer is given as data: rows of any kind, or groups that are prepared already."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from alignment.cli import UserError
from alignment.core.attention import rotations_change_after
from alignment.core.reference import Groups
from alignment.core.rendering import Renderer, TruncationMode
from alignment.data import GroupDataset, PairRule, Preparation
from alignment.objectives.base import Objective
from alignment.trainers.config import GroupConfig

logger = logging.getLogger(__name__)


def preparation(
    objective: Objective, tokenizer: PreTrainedTokenizerBase, args: GroupConfig
) -> Preparation:
    """How a run turns rows into groups of token ids."""
    mode = cast(TruncationMode, args.truncation_mode)
    return Preparation(
        renderer=Renderer(tokenizer, args.max_length, mode),
        objective=objective,
        pair_rule=cast("PairRule | None", args.pair_rule),
        seed=args.seed,
        chat=args.as_chat,
    )


def prepared(prepare: Preparation, rows: Any, name: str) -> GroupDataset:
    """Rows as groups; groups that are prepared stay as they are.

    Args:
        prepare: How.
        rows: Rows of any format that `alignment.core.groups` reads, or groups.
        name: What messages call them: `train[7]`.

    Raises:
        UserError: There is none.
    """
    if isinstance(rows, GroupDataset):
        return rows
    if rows is None:
        raise UserError("a training set is needed: pass `train_dataset`")
    named = ((f"{name}[{index}]", row) for index, row in enumerate(rows))
    fingerprint = [getattr(rows, "_fingerprint", None)]
    broadcast_object_list(fingerprint, from_process=0)
    return prepare(named, fingerprint[0])


def prepared_splits(prepare: Preparation, rows: Any) -> Any:
    """One set of rows, or several by name, as `prepared` gives them; None stays None."""
    if isinstance(rows, Mapping):
        return {name: prepared(prepare, split, name) for name, split in rows.items()}
    return None if rows is None else prepared(prepare, rows, "eval")


def check_ids(groups: Groups, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Checks that a model has an embedding for every token of the data.

    The last token of a response is never read by the model, only predicted, so that no lookup fails
    where it has none. Data are looked through only where the tokenizer knows more than the model.

    Raises:
        UserError: A row holds a token that the model does not have.
    """
    size = config.get_text_config().vocab_size
    if len(tokenizer) <= size:
        return
    for group in map(groups.__getitem__, range(len(groups))):
        highest = max(max(ids, default=0) for ids in (group.prefix, *group.contexts))
        highest = max(highest, *map(max, group.responses))
        if highest >= size:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise UserError(
                f"{group.origin} holds token {highest} (`{token}`), and the model has {size} "
                "tokens: resize its embedding (`resize_token_embeddings`), or take its own "
                "tokenizer"
            )


def warn_of_rotations(groups: Groups, config: PreTrainedConfig) -> None:
    """Warns where long rows would change the log-probs of those that they are batched with."""
    end = rotations_change_after(config)
    if end is None:
        return
    longest = max(
        len(group.prefix) + len(context) + len(response) - 1
        for group in map(groups.__getitem__, range(len(groups)))
        for context, response in zip(group.contexts, group.responses, strict=True)
    )
    if longest > end:
        logger.warning(
            "`%s` chooses its rotations by the longest sequence of a forward pass: rows of more "
            "than %d tokens (the longest has %d) change the log-probs of shorter ones beside them; "
            "`max_length: %d` leaves them out",
            *(config.model_type, end, longest, end),
        )
