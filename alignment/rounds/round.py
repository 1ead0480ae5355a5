"""One round: what a method may do in it, each thing a stage that is done once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.fingerprint import fingerprint
from alignment.llm.rows import Output
from alignment.rounds.guards import VERSION as GUARDS
from alignment.rounds.guards import write_admitted
from alignment.rounds.options import Asked, Options
from alignment.rounds.serving import serving
from alignment.rounds.store import Store, here
from alignment.stages import command, command_module, option_words, training

ADAPTER = {"use_peft": True, "lora_target_modules": "all-linear"}
"""What is trained unless the recipe says otherwise."""


class Policy(NamedTuple):
    """A model as it is at some time of the loop.

    Attributes:
        base: What the loop started from: a hub id, or a folder.
        adapter: What was trained on top; None before the first round.
    """

    base: str | Path
    adapter: Path | None = None

    @property
    def model(self) -> str | Path:
        """What commands take as a model."""
        return self.adapter or self.base


class Round:
    """A round at work.

    Args:
        number: From 1; 0 is the start, which is evaluated alone.
        options: Of the loop.
        store: Where stages go.
        policy: The model that makes the data.
        prompts: The round's prompts.
        held_out: The evaluation's prompts.
        earlier: What the rounds before have trained on.
        trained: The adapters that they have made.

    Attributes:
        number: The same, as are all others.
    """

    def __init__(  # noqa: PLR0913 - all named
        self,
        number: int,
        *,
        options: Options,
        store: Store,
        policy: Policy,
        prompts: Path,
        held_out: Path,
        earlier: Sequence[Path] = (),
        trained: Sequence[Path] = (),
    ) -> None:
        self.number = number
        self.options = options
        self.store = store
        self.policy = policy
        self.prompts = prompts
        self.held_out = held_out
        self.earlier = list(earlier)
        self.trained = list(trained)

    @property
    def place(self) -> str:
        """The folder of the round within the run's."""
        return f"round-{self.number}" if self.number else "start"

    @property
    def seed(self) -> int:
        """Of this round's draws: other rounds of the loop, and of other seeds, have others."""
        return 1000 * self.options.seed + self.number

    @property
    def builder(self) -> Asked:
        """Whom the method asks about answers.

        Raises:
            UserError: The recipe names nobody.
        """
        if self.options.builder is None:
            raise UserError(f"the loop `{self.options.method}` needs `builder_model`")
        return self.options.builder

    def generate(
        self,
        prompts: Path,
        *,
        name: str = "answers",
        model: str | Path | None = None,
        **options: Any,
    ) -> Path:
        """The file of answers to prompts, by the policy unless another model is named.

        Args:
            prompts: Rows with `prompt`; other columns are kept.
            name: Of the stage.
            model: Another model, which answers in this process.
            **options: Of `alignment generate`; they go before the recipe's.
        """
        chosen = {**here(self.options.generate), "seed": self.seed, **options}
        template = self.options.serve if model is None else None
        model = self.policy.model if model is None else model
        words = {"prompts": prompts, **chosen}
        settings = {"model": model, **words}
        file = f"{self.place}.jsonl"  # by which reports of comparisons call it
        if template is not None:
            model = self._whole()
            settings |= {"model": model, "serve": template}

        def work(folder: Path) -> None:
            output = folder / file
            if template is None:
                self._run("generate", settings, output)
            else:
                self._generate_served(template, model, words, output)

        return self.store.make(self.place, name, settings, work) / file

    def build(self, builder: str, source: Path, *, name: str = "built", **options: Any) -> Path:
        """The file that a builder makes of a file.

        Args:
            builder: As `alignment build` calls it.
            source: Its input.
            name: Of the stage.
            **options: Of the builder, whom it asks among them; the recipe's `build` goes before.
        """
        chosen = {"input": source, "seed": self.seed, **options, **here(self.options.build)}
        verb = f"build {builder}"
        version = getattr(importlib.import_module(command_module(verb)), "VERSION", None)

        def work(folder: Path) -> None:
            self._run(verb, chosen, folder / "data.jsonl")

        settings = {"verb": verb, "version": version, **chosen}
        return self.store.make(self.place, name, settings, work) / "data.jsonl"

    def rows(self, name: str, write: Callable[[Output], None], settings: Mapping[str, Any]) -> Path:
        """A file of rows that the method makes itself.

        Args:
            name: Of the stage.
            write: Writes and rejects rows.
            settings: All that they depend on, files among them, and a version of the code.

        Raises:
            UserError: Nothing was written; it says what was rejected first.
        """

        def work(folder: Path) -> None:
            with Output(folder / "data.jsonl") as output:
                write(output)
            if not (folder / "data.jsonl").exists():
                _refuse_empty(name, folder / "data.jsonl.rejects.jsonl")

        return self.store.make(self.place, name, settings, work) / "data.jsonl"

    def admitted(self, data: Path, most: int | None = None, *, name: str = "admitted") -> Path:
        """The rows of a file whose prompts are none of the evaluation's, the first of them."""
        settings = {"data": data, "held_out": self.held_out, "most": most, "version": GUARDS}

        def work(folder: Path) -> None:
            write_admitted(folder / "data.jsonl", data, self.held_out, most)

        return self.store.make(self.place, name, settings, work) / "data.jsonl"

    def train(self, data: Path, objective: str, more: Mapping[str, Any]) -> Path:
        """The folder of the adapter that the policy becomes by training on data.

        Args:
            data: Rows.
            objective: What to train with.
            more: The method's options of `alignment train`; the recipe's go before them, and of
                the objective's hyper-parameters one by one.
        """
        given = here(self.options.train)
        if self.policy.adapter is not None:  # it goes on, and is what the recipe has made it
            given.pop("adapter", None)
            given.pop("adapter_kwargs", None)
        kwargs = {**more.get("objective_kwargs", {}), **(given.get("objective_kwargs") or {})}
        settings = {
            **{"model_name_or_path": self.policy.base, "dataset_name": data},
            "adapter_name_or_path": self.policy.adapter,
            **{"objective": objective, "seed": self.seed},
            **({} if given.get("adapter") else ADAPTER),
            **more,
            **given,
            "objective_kwargs": kwargs,
        }

        def work(folder: Path) -> None:
            training("train", option_words(settings), folder / "adapter").work()

        return self.store.make(self.place, "train", settings, work) / "adapter"

    def judge(self, answers: Path, baseline: Path, asked: Asked, name: str = "judged") -> Path:
        """The folder of a comparison of answers with those of the start."""
        chosen = {
            **{"answers": answers, "baseline": baseline, "seed": self.options.seed},
            **asked.options("judge_model", "judge_url"),
            **here(self.options.evaluate),
        }

        def work(folder: Path) -> None:
            self._run("eval winrate", chosen, folder / "winrate")

        return self.store.make(self.place, name, chosen, work) / "winrate"

    def _run(self, verb: str, options: Mapping[str, Any], output: Path) -> None:
        going_on = ("--output", output, "--ledger", self.store.ledger, "--resume")
        command(verb, verb, option_words(options), going_on).work()

    def _generate_served(
        self, template: str, model: str | Path, words: Mapping[str, Any], output: Path
    ) -> None:
        mark = fingerprint(model) if Path(model).is_dir() else None
        with serving(template, model, output.with_name("server.log")) as url:
            asked = {"model": model, "base_url": url, "model_revision": mark}
            self._run("generate", {**asked, **words}, output)

    def _whole(self) -> str | Path:
        """The policy as a whole model, which every server takes."""
        adapter = self.policy.adapter
        if adapter is None:
            return self.policy.base

        def work(folder: Path) -> None:
            merged = folder / "model"
            if not (merged / "config.json").exists():
                command("merge", "merge", ("--adapter", adapter), ("--output", merged)).work()

        return self.store.make(self.place, "merged", {"adapter": adapter}, work) / "model"


def first_prompts(output: Path, pool: Path, start: int, count: int) -> None:
    """Writes the prompts of one round, `count` of the pool from `start` on."""
    with Output(output) as file:
        for _, row in islice(read_rows(pool), start, start + count):
            file.write(row)


def _refuse_empty(name: str, rejects: Path) -> None:
    if not rejects.exists():
        raise UserError(f"the stage `{name}` made no rows")
    source, first = next(iter(read_rows(rejects)))
    raise UserError(
        f"the stage `{name}` made no rows: {first['reason']}: {first['message']}; all of them "
        f"stand in {rejects} ({source})"
    )
