"""What tools share that read groups."""

from __future__ import annotations

from alignment.core.groups import Group, RowError, group_from_row
from alignment.llm.rows import Reject, Row


def group_of(row: Row) -> Group:
    """The group of a row.

    Raises:
        Reject: The row is of no known format, or cannot be used.
    """
    try:
        return group_from_row(row)
    except RowError as error:
        raise Reject(error.reason, str(error)) from None
