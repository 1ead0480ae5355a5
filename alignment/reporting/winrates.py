"""Win rates with intervals, tests and ratings, at matched lengths and by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.pages.blocks import Block, Interval, Intervals, Note, Section, Table, present
from alignment.reporting.exchanges import Row, by_length
from alignment.reporting.figures import PERCENT, SHARE, Scale, facts, interval
from alignment.reporting.judging import (
    Report,
    answers_section,
    judge_blocks,
    matchup,
    verdict_rows,
)


def tell_winrate(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `eval winrate` and `eval zero_or_down`."""
    pairs = report.get("pairs") or [{**report, "model": "chosen", "against": "sampled"}]
    rows = [{"model": "chosen", "against": "sampled", **row} for row in verdict_rows(folder)]
    blocks: list[Block] = [
        Intervals("Win rate; a tie counts one half", list(map(_of_pair, pairs)), SHARE.told)
    ]
    matched = [_of_matched(pair) for pair in pairs if pair.get("length_matched")]
    if matched:
        blocks.append(Intervals("Win rate among answers of matched lengths", matched, SHARE.told))
    blocks.append(_outcomes(pairs))
    if report.get("ratings"):
        blocks.append(_ratings(report["ratings"]))
    if report.get("paired_tests"):
        blocks.append(_paired(report["paired_tests"]))
    if "advice" in report:
        doubt = "" if report["certain"] else ", though the interval holds one half"
        blocks.append(Note(f"The pairs ask for APO-{report['advice']}{doubt}."))
    head = [(f"{report['win_rate']:.3f}", "win rate")] if "win_rate" in report else []
    if head:
        low, high = report["win_rate_ci"]
        head += [(f"{low:.3f} to {high:.3f}", "95% interval")]
        head += [(f"{report['n_prompts']:,}", "prompts")]
    yield Section("Evaluation", blocks, head)
    yield Section("Length", _length(pairs, rows))
    yield Section("Judge", list(judge_blocks(report, pairs)))
    yield answers_section(rows, examples, seed)


def _of_pair(pair: Report) -> Interval:
    return _rate(pair, matchup(pair))


def _of_matched(pair: Report) -> Interval:
    return _rate(pair["length_matched"], matchup(pair))


def _rate(made: Report, name: str) -> Interval:
    note = f"{made['n_prompts']:,} prompts"
    return interval(name, made["win_rate"], made["win_rate_ci"], SHARE, note)


def _outcomes(pairs: Sequence[Report]) -> Table:
    names = ("wins", "losses", "ties", "unjudged", "identical")
    rows = [
        [
            matchup(pair),
            *(f"{pair[name]:,}" for name in names),
            _p_value(pair.get("p_value")),
            _p_value(pair.get("p_value_holm")),
        ]
        for pair in pairs
    ]
    head = ["", *names[:4], "same words", "p, sign flips", "p, corrected"]
    return Table("Prompts by outcome", head, rows)


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _ratings(ratings: Report) -> Intervals:
    ends = [end for rated in ratings.values() for end in rated["rating_ci"]]
    mean = sum(rated["rating"] for rated in ratings.values()) / len(ratings)
    scale = Scale(min(ends), max(ends), mean, "the line at their mean", digits=0)
    rows = [
        interval(name, rated["rating"], rated["rating_ci"], scale)
        for name, rated in ratings.items()
    ]
    return Intervals("Bradley-Terry ratings", rows, scale.told)


def _paired(tests: Sequence[Report]) -> Table:
    rows = [
        [
            f"{test['models'][0]} less {test['models'][1]}, against {test['against']}",
            f"{test['difference']:+.3f}",
            _p_value(test["p_value"]),
            _p_value(test["p_value_holm"]),
        ]
        for test in tests
    ]
    return Table("Paired tests", ["", "difference", "p, sign flips", "p, corrected"], rows)


def _length(pairs: Sequence[Report], rows: Sequence[Row]) -> list[Block]:
    lengths = [
        [
            matchup(pair),
            f"{pair['answer_length']:,.1f}",
            f"{pair['baseline_length']:,.1f}",
        ]
        for pair in pairs
        if pair.get("answer_length") is not None
    ]
    table = Table("Mean length in characters", ["", "answers", "those they meet"], lengths)
    return present([table if lengths else None, by_length(rows)]) or [
        Note("The folder has no verdicts, so lengths are not known.")
    ]


def tell_alpaca_eval(report: Report, folder: Path, examples: int, seed: int) -> Iterator[Section]:
    """Of `eval alpaca_eval`."""
    rows = [_from_alpaca(row) for row in verdict_rows(folder)]
    name = f"{report['model']} against {report['baseline']}"
    error, value = report["standard_error"], report["win_rate"]
    ends = None if error is None else (value - 1.96 * error, value + 1.96 * error)
    note = f"{report['n_total']:,} prompts"
    found = [interval("win rate", value, ends, PERCENT, note)]
    controlled = report["length_controlled_winrate"]
    if controlled is not None:
        found.append(interval("length-controlled win rate", controlled, report["lc_ci"], PERCENT))
    blocks: list[Block] = [Intervals(name, found, PERCENT.told)]
    if report.get("lc_note"):
        blocks.append(Note(f"Length control: {report['lc_note']}."))
    counted = ("n_wins", "n_wins_base", "n_draws", "unjudged")
    blocks.append(
        Table(
            "Prompts by outcome",
            ["", "wins", "losses", "draws", "unjudged", "discrete win rate"],
            [
                [
                    name,
                    *(f"{report[key]:,}" for key in counted),
                    f"{report['discrete_win_rate']:.2f}",
                ]
            ],
        )
    )
    for key in ("missing", "doubled", "foreign"):
        if report[key]:
            blocks.append(Note(f"{len(report[key])} rows are {key}.", is_warning=True))
    head = [(f"{value:.2f}", "win rate")]
    if controlled is not None:
        head.append((f"{controlled:.2f}", "length-controlled win rate"))
    yield Section("Evaluation", blocks, [*head, (f"{report['n_total']:,}", "prompts")])
    length = [facts("", [("mean length of answers, characters", report["avg_length"])])]
    yield Section("Length", present([*length, by_length(rows)]))
    yield Section("Judge", list(judge_blocks(report, [report])))
    yield answers_section(rows, examples, seed)


def _from_alpaca(row: Row) -> Row:
    """A row of AlpacaEval in the words of a comparison: preferences run from 1 to 2."""
    preference = row.get("preference")
    return {
        **row,
        "prompt": row.get("instruction", ""),
        "answer": row.get("output_2", ""),
        "baseline": row.get("output_1", ""),
        "model": row.get("generator_2", "model"),
        "against": row.get("generator_1", "baseline"),
        "score": None if preference is None else preference - 1,
    }
