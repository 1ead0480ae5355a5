"""Whether two models read and write the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.cli import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    name: str,
    roles: tuple[str, str],
) -> None:
    """Compares two vocabularies id by id; rows that only pad one of them do not count.

    Args:
        tokenizer: Of the model that stays.
        other: Of the model to be chosen.
        name: What the user calls that.
        roles: What the two models are, in this order: `student`, `teacher`.

    Raises:
        UserError: They differ; the first ten differences are named.
    """
    own = {index: token for token, index in tokenizer.get_vocab().items()}
    others = {index: token for token, index in other.get_vocab().items()}
    common = range(min(max(own), max(others)) + 1)
    differing = [i for i in common if own.get(i) != others.get(i)]
    if differing:
        shown = ", ".join(f"{i}: {own.get(i)!r} / {others.get(i)!r}" for i in differing[:10])
        first, second = roles
        raise UserError(
            f"{second} `{name}` has another tokenizer than the {first}; {len(differing)} ids "
            f"differ, the first as {first} / {second}: {shown}; choose a {second} of the same "
            "family"
        )
