"""A loop from its start to the round that helps no more."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.ledger import Totals
from alignment.llm.protocol import going_on_by_itself
from alignment.rounds.guards import VERSION, write_pool, write_prompts
from alignment.rounds.loop import Loop
from alignment.rounds.options import Options
from alignment.rounds.round import Policy, Round, first_prompts
from alignment.rounds.samples import texts_of
from alignment.rounds.signs import Signs, signs_of, warnings_of
from alignment.rounds.store import Made, Store, here
from eval.stats import bootstrap_mean

RESULTS = "results.json"
ADAPTER = "adapter"
MARK = "loop.json"


@dataclass
class Outcome:
    """What a round has come to.

    Attributes:
        number: Of the round.
        policy: The model that it has made.
        data: What it has trained on.
        scores: Prompt -> score against the start, from 0 to 1; without unjudged prompts.
        report: All numbers of that comparison.
        judged: The folder that holds them.
        signs: Of its answers.
        gain: Mean by which its scores are above those of the best before, over common prompts.
        gain_ci: 95% interval of it.
        made: Its stages.
        warnings: What its signs tell.
    """

    number: int
    policy: Policy
    data: Path
    scores: Mapping[str, float]
    report: Mapping[str, Any]
    judged: Path
    signs: Signs
    gain: float
    gain_ci: Sequence[float]
    made: list[Made]
    warnings: list[str]

    def as_row(self, run: Path) -> dict[str, Any]:
        """What `results.json` says of it.

        Args:
            run: The run's folder, which paths are told within.
        """
        cost = _cost(self.made)
        return {
            "round": self.number,
            "score": self.report["win_rate"],
            "score_ci": list(self.report["win_rate_ci"]),
            "gain": self.gain,
            "gain_ci": list(self.gain_ci),
            "examples": sum(1 for _ in read_rows(self.data)),
            "dropped": _dropped(self.made),
            "signs": self.signs._asdict(),
            "warnings": self.warnings,
            "cost": cost,
            "data": self.data.relative_to(run).as_posix(),
            "judged": self.judged.relative_to(run).as_posix(),
            "adapter": self.policy.adapter and self.policy.adapter.relative_to(run).as_posix(),
        }


class Running:
    """A loop at work.

    Args:
        options: Of the loop.
        loop: The method.

    Raises:
        UserError: The method cannot work by these options, or a program does not exist.
    """

    def __init__(self, options: Options, loop: Loop) -> None:
        loop.check(options.rounds)
        if loop.asks and options.builder is None:
            raise UserError(f"the loop `{options.method}` asks about answers: set `builder_model`")
        for asked in filter(None, (options.builder, options.judge, options.audit)):
            asked.check()
        self.options = options
        self.loop = loop
        self.store = Store(options.output)
        self.start = Policy(here(options.model))
        self.outcomes: list[Outcome] = []
        self.best: Outcome | None = None
        self.stopped: str | None = None

    def run(self) -> dict[str, Any]:
        """Runs all rounds that are not done; after each, `results.json` tells what there is.

        Returns:
            What `results.json` holds.

        Raises:
            UserError: As the commands of the stages do.
            Stopped: The job ended early.
        """
        with going_on_by_itself():
            self._run()
        results = self._results()
        self._keep_best()
        return results

    def _run(self) -> None:
        self._claim()
        pool, held_out = self._prompts()
        origin = self._round(0, pool, held_out)
        before = origin.generate(held_out, name="held_out", seed=self.options.seed, samples=1)
        at_start = signs_of([*texts_of(read_rows(before))])
        since = 0
        for number in range(1, self.options.rounds + 1):
            outcome = self._one(self._round(number, pool, held_out), before, at_start)
            self.outcomes.append(outcome)
            since = 0 if outcome.gain > 0 else since + 1
            if outcome.gain > 0:
                self.best = outcome
            if since == self.options.patience and number < self.options.rounds:
                self.stopped = f"{since} round{'s' * (since > 1)} without gain"
                return
            # Each round may be the last that ends well.
            self._results()
            self._keep_best()

    def _claim(self) -> None:
        """Marks the folder as a loop's.

        Raises:
            UserError: It holds something else.
        """
        run = self.options.output
        if run.exists() and any(run.iterdir()) and not (run / MARK).is_file():
            raise UserError(f"{run} holds something else than a loop; name another `--output`")
        run.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(self.options), indent=2, default=str)
        (run / MARK).write_text(text + "\n", encoding="utf-8")

    def _prompts(self) -> tuple[Path, Path]:
        """The files of the pool and of the evaluation."""
        options, base, name = self.options, self.start.base, "prompts.jsonl"

        def write_held_out(folder: Path) -> None:
            write_prompts(folder / name, options.held_out, str(base))

        held = {"prompts": options.held_out, "model": base, "version": VERSION}
        held_out = self.store.make("prompts", "held_out", held, write_held_out) / name

        def write(folder: Path) -> None:
            write_pool(folder / name, options.prompts, held_out, str(base), options.seed)

        settings = {**held, "prompts": options.prompts, "held_out": held_out, "seed": options.seed}
        pool = self.store.make("prompts", "pool", settings, write) / name
        there = sum(1 for _ in read_rows(pool))
        needed = options.prompts_per_round * (options.rounds if self.loop.fresh else 1)
        if there < needed:
            raise UserError(
                f"{options.prompts} has {there} prompts that may be used, the rounds need "
                f"{needed}: lower `prompts_per_round` or `rounds`, or give more prompts"
            )
        return pool, held_out

    def _round(self, number: int, pool: Path, held_out: Path) -> Round:
        return Round(
            number,
            options=self.options,
            store=self.store,
            policy=self.outcomes[-1].policy if self.outcomes else self.start,
            prompts=self._prompts_of(number, pool) if number else pool,
            held_out=held_out,
            earlier=[outcome.data for outcome in self.outcomes],
            trained=[o.policy.adapter for o in self.outcomes if o.policy.adapter is not None],
        )

    def _prompts_of(self, number: int, pool: Path) -> Path:
        """The file of a round's prompts."""
        count, name = self.options.prompts_per_round, "prompts.jsonl"
        first = (number - 1) * count if self.loop.fresh else 0

        def write(folder: Path) -> None:
            first_prompts(folder / name, pool, first, count)

        settings = {"pool": pool, "first": first, "count": count}
        return self.store.make(f"round-{number}", "prompts", settings, write) / name

    def _one(self, at: Round, before: Path, at_start: Signs) -> Outcome:
        done = len(self.store.made) - 1  # its prompts are there
        data = at.admitted(self.loop.data(at), self.options.examples_per_round)
        adapter = at.train(data, self.loop.objective, self.loop.training(at))
        at.policy = Policy(self.start.base, adapter)
        answers = at.generate(at.held_out, name="held_out", seed=self.options.seed, samples=1)
        judged = at.judge(answers, before, self.options.judge)
        audited = None
        if self.options.audit is not None:
            audited = _verdicts(at.judge(answers, before, self.options.audit, "audited"))
        report = json.loads((judged / RESULTS).read_text(encoding="utf-8"))
        verdicts = _verdicts(judged)
        signs = signs_of([*texts_of(read_rows(answers))], report, verdicts, audited)
        first = self.outcomes[0].signs if self.outcomes else signs
        scores = {row["prompt"]: row["score"] for row in verdicts if row["score"] is not None}
        gains = self._gains(scores)
        if not gains:
            raise UserError(
                f"{judged}: no held-out prompt was judged in this round and in the best before; "
                "`verdicts.jsonl` there says why"
            )
        return Outcome(
            number=at.number,
            policy=at.policy,
            data=data,
            scores=scores,
            report=report,
            judged=judged,
            signs=signs,
            gain=fmean(gains),
            gain_ci=bootstrap_mean(gains, self.options.seed),
            made=self.store.made[done:],
            warnings=warnings_of(signs, at_start, first),
        )

    def _gains(self, scores: Mapping[str, float]) -> list[float]:
        """By how much each prompt's score is above that of the best before; the start's is 0.5."""
        if self.best is None:
            return [score - 0.5 for score in scores.values()]
        best = self.best.scores
        return [score - best[prompt] for prompt, score in scores.items() if prompt in best]

    def _results(self) -> dict[str, Any]:
        run = self.options.output
        shared = [m for m in self.store.made if not any(m in o.made for o in self.outcomes)]
        results = {
            "method": self.options.method,
            "seed": self.options.seed,
            "rounds": [outcome.as_row(run) for outcome in self.outcomes],
            "best_round": self.best.number if self.best else 0,
            "stopped": self.stopped,
            "start_cost": _cost(shared),
            "cost": _cost(self.store.made),
        }
        partial = run / f"{RESULTS}.partial"
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        partial.replace(run / RESULTS)
        return results

    def _keep_best(self) -> None:
        """Puts the adapter of the best round where users look for it; none if none has helped."""
        final = self.options.output / ADAPTER
        partial = final.with_name(f".{ADAPTER}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self.best is not None and self.best.policy.adapter is not None:
            shutil.copytree(self.best.policy.adapter, partial)
        shutil.rmtree(final, ignore_errors=True)
        if partial.exists():
            partial.replace(final)


def _verdicts(folder: Path) -> list[Mapping[str, Any]]:
    return [row for _, row in read_rows(folder / "verdicts.jsonl")]


def _cost(made: Iterable[Made]) -> dict[str, Any]:
    stages = list(made)
    calls = reduce(Totals.plus, (stage.calls for stage in stages), Totals())
    return {**calls._asdict(), "seconds": round(sum(stage.seconds for stage in stages), 2)}


def _dropped(made: Iterable[Made]) -> dict[str, int]:
    """Reason -> rows that the stages have rejected."""
    files = [path for stage in made for path in sorted(stage.folder.rglob("*rejects.jsonl"))]
    reasons = Counter(row["reason"] for path in files for _, row in read_rows(path))
    return dict(sorted(reasons.items()))
