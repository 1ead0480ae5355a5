"""A look at all rows before the first is built: made once, for all who ask, in order."""

import asyncio
from types import SimpleNamespace
from typing import Any

from alignment.llm.options import CallOptions
from alignment.llm.protocol import CallError
from alignment.llm.rows import Named, Reject, Row
from data_builders.survey import Survey


def test_a_survey_is_made_once_for_all_who_ask():
    looks = SimpleNamespace(count=0)

    async def look(row: Row) -> int:
        looks.count += 1
        await asyncio.sleep(0)
        return int(row["n"])

    async def ask() -> list[int]:
        rows = [(f"r{n}", {"n": n}) for n in range(5)]
        survey: Survey[int, int] = Survey(lambda: rows, sum, CallOptions())
        return await asyncio.gather(*(survey.conclusion(look) for _ in range(3)))

    assert asyncio.run(ask()) == [10, 10, 10]
    assert looks.count == 5


def test_rows_that_give_nothing_are_left_out_and_the_rest_keeps_its_order():
    async def look(row: Row) -> Any:
        await asyncio.sleep(0.001 * (5 - row["n"]))
        if row["n"] == 1:
            raise Reject("no", "no")
        if row["n"] == 2:
            raise CallError("refused", "no")
        return row["n"]

    rows = [(f"r{n}", {"n": n}) for n in range(5)]
    survey: Survey[Any, list[Any]] = Survey(lambda: rows, list, CallOptions())
    assert asyncio.run(survey.conclusion(look)) == [0, 3, 4]


def test_no_more_rows_are_in_work_than_a_batch_holds():
    working = SimpleNamespace(now=0, most=0)

    async def look(row: Row) -> None:
        working.now += 1
        working.most = max(working.most, working.now)
        await asyncio.sleep(0)
        working.now -= 1

    rows: list[Named] = [(f"r{n}", {}) for n in range(50)]
    options = CallOptions(mode="batch", batch_requests=4)
    survey: Survey[None, int] = Survey(lambda: rows, len, options)
    assert asyncio.run(survey.conclusion(look)) == 50
    assert working.most <= 4
