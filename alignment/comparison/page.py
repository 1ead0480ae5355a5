"""What people read of a comparison: a table for the terminal, a figure, and a page in Markdown."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment.comparison.claims import CLAIMS, Check, Claim, Finding
from alignment.comparison.methods import METHODS, PARTS
from alignment.comparison.results import Estimate, Results
from alignment.stages import write_whole

logger = logging.getLogger(__name__)

COLUMNS = {
    "win": ("win rate", 3),
    "accurate": ("accuracy", 3),
    "right": ("P(right)", 3),
    "chosen": ("chosen", 2),
    "rejected": ("rejected", 2),
    "kl": ("KL", 2),
    "length": ("length", 1),
}
"""Measure -> heading, decimals."""
TITLES = {
    "main": "Eight methods",
    "claims": "What the claims need besides",
    "wider": "The wider field",
    "free": "Without training",
}

WIDER = (
    "`clm` and `aligner` train other adapters than LoRA by DPO on CLAIR's pairs; `panacea` trains "
    "its own on samples judged for being right and for being short, and answers with both weighed "
    "alike. EliCal trains a head that tells confidence and changes no answer, so it has no row."
)
FREE = (
    "The start decoded in other ways, beside what training gives above: "
    "[decoding.md](decoding.md). `plain` is the start itself. Seconds are those of the answers, MB "
    "the peak of the whole process. The amateur has seen a third of the start's demonstrations; "
    "soft prompts were tuned on the pairs that `apo_zero` trains on."
)

REMARKS = {"wider": WIDER, "free": FREE}
ROUNDS = "loops.json"
"""What `python -m benchmarks.loops --json` leaves beside the page."""

REPORTED = {
    "confirmed": "every interval and every seed lies on the expected side",
    "not confirmed": "at least one does not",
    "cannot be tested here": "the world lacks what the claim is about",
    "not run": "`alignment compare --methods main claims` runs it",
}


def rows_of(results: Results, part: str) -> list[list[str]]:
    """The cells of a part's table, its heading first; empty where none of it was run."""
    names = [m.name for m in METHODS if m.part == part and m.name in results.methods]
    if not names:
        return []
    heading = ["method", "seeds", *(title for title, _ in COLUMNS.values()), "seconds", "MB"]
    start = ["(start)", str(len(results.seeds)), "0.500"] + [
        f"{results.before(name).mean:.{digits}f}" if name in results.start else "0"
        for name, (_, digits) in list(COLUMNS.items())[1:]
    ]
    rows = [heading, [*start, "", ""]]
    for name in names:
        cost, values = results.costs[name], results.methods[name]
        cells = [
            _cell(results.of(name, measure), digits) if measure in values else ""
            for measure, (_, digits) in COLUMNS.items()
        ]
        seconds = f"{fmean(cost['seconds']):.0f}"
        if "tokens_per_second" in cost:
            seconds += f" ({fmean(cost['tokens_per_second']):.0f} tokens/s)"
        memory = f"{fmean(cost['peak_bytes']) / 1e6:.0f}"
        rows.append([name, str(len(cost["seconds"])), *cells, seconds, memory])
    return rows


def table(results: Results) -> Iterator[str]:
    """The tables of all parts as lines of text."""
    for part in PARTS:
        rows = rows_of(results, part)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        if rows:
            yield ""


def write(results: Results, facts: Mapping[str, Any], page: Path) -> None:
    """Writes the page, and beside it the figure and the JSON that both are made of.

    Args:
        results: Of the comparison.
        facts: How it was made: commit, command, size.
        page: Where to; the figure and JSON have its name with other endings. What loops came to
            is read from `ROUNDS` in the same folder, where it is there.
    """
    findings = {claim.name: claim.judge(results) for claim in CLAIMS}
    page.parent.mkdir(parents=True, exist_ok=True)
    record = {
        **facts,
        **results.as_json(),
        "claims": [
            {
                "name": claim.name,
                "paper": claim.paper,
                "expects": claim.expects,
                "verdict": findings[claim.name].verdict,
                "remark": findings[claim.name].remark,
                "checks": [
                    {**check._asdict(), "found": check.found._asdict(), "holds": check.holds}
                    for check in findings[claim.name].checks
                ],
            }
            for claim in CLAIMS
        ],
    }
    write_whole(page.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    try:
        from alignment.comparison.figure import draw
    except ImportError:
        logger.warning("no figure: install matplotlib, which comes with the extra `report`")
    else:
        draw(results, page.with_suffix(".png"))
    lines = [*_lines(results, facts, findings, page.with_suffix(".png").name)]
    if page.with_name(ROUNDS).is_file():
        lines += _rounds(json.loads(page.with_name(ROUNDS).read_text(encoding="utf-8")))
    write_whole(page, "\n".join(lines))


def _lines(
    results: Results, facts: Mapping[str, Any], findings: Mapping[str, Finding], figure: str
) -> Iterator[str]:
    size = facts["size"]
    seeds = ", ".join(map(str, results.seeds))
    yield from (
        "# Evidence",
        "",
        f"Written by `{facts['command']}` at commit {facts['commit']}; the numbers stand in the "
        "JSON file beside this page. A tiny model learns word tasks from flawed demonstrations "
        "(the start); every method trains the same LoRA on data made of the same samples, reads "
        f"the same number of responses in {size['steps']} steps, and answers "
        f"{size['held_out_prompts']} held-out prompts. Seeds {seeds} are each another draw of "
        "data, weights and samples.",
        "",
        "Means over seeds with 95% bootstrap intervals over prompts, drawn within each seed. "
        "*P(right)* is the probability of a right answer, computed, not sampled; *chosen* and "
        "*rejected* are changes of the log-prob of right answers and of the start's wrong answers; "
        "*KL* is from the start, in nats per answer; *length* in characters; *MB* is the peak of "
        "training above the process before it. Hyper-parameters stand in "
        "`alignment/comparison/methods.py`; none was tuned here, so a row says what a method does "
        "at one setting, not the best it can do.",
        "",
        f"![Win rates, log-prob changes and KL]({figure})",
        "",
    )
    for part in PARTS:
        rows = rows_of(results, part)
        if rows:
            yield f"## {TITLES[part]}"
            yield ""
            if part in REMARKS:
                yield from (REMARKS[part], "")
            yield from _markdown(rows)
            yield ""
    yield from ("## The papers' claims", "")
    yield from _markdown(
        [
            ["claim", "paper", "verdict"],
            *([c.name, _link(c), f"**{findings[c.name].verdict}**"] for c in CLAIMS),
        ]
    )
    yield ""
    yield "; ".join(f"*{verdict}*: {meaning}" for verdict, meaning in REPORTED.items()) + "."
    yield ""
    for claim in CLAIMS:
        yield from _section(claim, findings[claim.name])
    yield from _selection(results)


def _section(claim: Claim, finding: Finding) -> Iterator[str]:
    yield from (f"### {claim.name}", "", f"{claim.expects} ({_link(claim)})", "")
    if finding.checks:
        yield from _markdown(
            [
                ["", "found", "seeds", "expected", ""],
                *(_check(check) for check in finding.checks),
            ]
        )
        yield ""
    yield from (f"Verdict: **{finding.verdict}**. {finding.remark}".rstrip(), "")


def _check(check: Check) -> list[str]:
    seeds = ", ".join(f"{mean:+.3f}" for mean in check.found.seeds)
    return [
        check.says,
        _cell(check.found, 3, sign="+"),
        seeds,
        f"{check.expected} 0",
        "holds" if check.holds else "does not hold",
    ]


def _selection(results: Results) -> Iterator[str]:
    """CUT's precision and recall by threshold."""
    for method, by_seed in results.found.items():
        rows = [["threshold", "precision", "recall", "selected"]]
        for threshold in by_seed[0]:
            counts = [one[threshold] for one in by_seed]
            hits, selected, planted, tokens = (
                sum(one[name] for one in counts)
                for name in ("hits", "selected", "planted", "tokens")
            )
            precision = f"{hits / selected:.3f}" if selected else ""
            share = f"{selected / tokens:.3f}"
            rows.append([threshold, precision, f"{hits / planted:.3f}", share])
        base = sum(next(iter(one.values()))["planted"] for one in by_seed) / sum(
            next(iter(one.values()))["tokens"] for one in by_seed
        )
        yield from (
            f"### Wrong tokens that `{method}` finds",
            "",
            f"On held-out wrong answers with their judgments, after training; {base:.3f} of the "
            "tokens are wrong.",
            "",
            *_markdown(rows),
            "",
        )


def _rounds(record: Mapping[str, Any]) -> Iterator[str]:
    """Loops against one round, as `benchmarks.loops` has measured them."""
    settings, heading = record["settings"], ["loop", "seeds", "held out", "examples, both sides"]
    rows = [[*heading, "by round", "one round", "rounds minus one round"]]
    for name, found in record["methods"].items():
        by_round = " ".join(
            f"{fmean(scores):.3f}" for scores in zip(*found["by_round"], strict=True)
        )
        low, high = found["difference_ci"]
        examples = [" ".join(map(str, found[f"examples_{side}"])) for side in ("online", "offline")]
        rows.append(
            [
                *(name, str(len(found["online"])), str(found["comparisons"])),
                *("; ".join(dict.fromkeys(examples)), by_round, f"{fmean(found['offline']):.3f}"),
                f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
            ]
        )
    yield from (
        "## Rounds against one round",
        "",
        f"Win rates over the start after each of {settings['rounds']} rounds, in which the model "
        "of the round before answers new prompts, and after one round on as many examples from "
        "answers of the start, with 95% bootstrap intervals over prompts and seeds. Written by "
        f"`python -m benchmarks.loops` at commit {record['commit']}: [loops.md](loops.md).",
        "",
        *_markdown(rows),
        "",
    )


def _cell(found: Estimate, digits: int, sign: str = "") -> str:
    mean = f"{found.mean:{sign}.{digits}f}"
    if found.low == found.high:
        return mean
    return f"{mean} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def _link(claim: Claim) -> str:
    return f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"


def _markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    heading, *others = rows
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in others:
        yield f"| {' | '.join(row)} |"
