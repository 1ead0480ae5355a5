"""What all builders share: their options, and the way from a builder to a data set on disk."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from alignment.cli import say
from alignment.core.groups import Group, RowError, group_from_row, row_from_group
from alignment.core.rows import read_rows, require_columns
from alignment.llm.connect import connect, open_ledger, run_rows
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.options import CallOptions, ShardOptions
from alignment.llm.prompts import as_messages
from alignment.llm.protocol import Prompt
from alignment.llm.rows import MapReport, Named, Reject, Row, prompt_of
from data_builders.card import card_path, card_text
from data_builders.hub import check_repo, push
from data_builders.overlap import EvalPrompts
from data_builders.summary import examine, summarise, told

logger = logging.getLogger(__name__)

PROMPTS = Path(__file__).parent / "prompts"

Made: TypeAlias = "Group | Row | Reject"
"""One output of a builder: a group, a row that is no group, or why there is none."""
Build: TypeAlias = Callable[..., Awaitable["Made | Sequence[Made]"]]
"""What a builder is: `build(row, *models)` makes the output of one input row."""


class ModelAt(NamedTuple):
    """A model to ask, and where.

    Attributes:
        name: A name on the server, a folder, a hub id, or a program.
        base_url: Address of its server; None for one in this process.
        price: Dollars for a million prompt and completion tokens; those of the options if None.
        api_key_env: Variable with its API key; that of the options if None, no key if empty.
    """

    name: str
    base_url: str | None = None
    price: tuple[float, ...] | None = None
    api_key_env: str | None = None

    @classmethod
    def of(cls, name: str, base_url: str | None = None) -> ModelAt:
        """The model that an option names as `NAME` or, at an address of its own, `NAME@URL`."""
        own = re.fullmatch(r"(.+)@(https?://.+)", name)
        return cls(own[1], own[2]) if own else cls(name, base_url)

    def connect(self, ledger: Ledger, options: CallOptions) -> LLM:
        """The model, ready to be asked.

        Raises:
            UserError: There is no such model, program or key.
        """
        price = self.price or options.price
        key = options.api_key_env if self.api_key_env is None else self.api_key_env
        own = replace(options, price=price, api_key_env=key)
        return connect(self.name, self.base_url, ledger, own)


@dataclass(kw_only=True)
class DataOptions(ShardOptions):
    """Options of every builder, also of one that asks no model."""

    input: Path = field(metadata={"help": "file of rows to build from"})
    output: Path = field(metadata={"help": "file of rows to write: .jsonl or .parquet"})
    eval_prompts: tuple[Path, ...] = field(
        default=(), metadata={"help": "files of prompts to find among those of the data"}
    )
    license: str | None = field(
        default=None, metadata={"help": "of the data, for its card; an identifier of the Hub's"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "repository on the Hub that gets the data and its card"}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "whether a repository that is created is private"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"`output` is {self.output}; it must end in .jsonl or .parquet")


@dataclass(kw_only=True)
class BuildOptions(DataOptions):
    """Options of a builder that asks a model."""

    model: str = field(
        metadata={"help": "model to ask: a name on the server, a folder or a hub id"}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "address of the server; unset, the model runs here"}
    )

    @property
    def generator(self) -> ModelAt:
        """The model that writes."""
        return ModelAt(self.model, self.base_url)


@dataclass(kw_only=True)
class JudgeOptions:
    """Options of a builder that asks a judge as well; it inherits from these too."""

    judge_model: str | None = field(
        default=None, metadata={"help": "the judge: a name on its server, a folder or a hub id"}
    )
    judge_url: str | None = field(
        default=None, metadata={"help": "address of the judge's server; unset, it runs here"}
    )
    judge_price: tuple[float, ...] | None = field(
        default=None, metadata={"help": "as `--price`, for the judge's tokens"}
    )
    judge_api_key_env: str | None = field(
        default=None, metadata={"help": "as `--api-key-env`, for the judge's server"}
    )

    @property
    def judge(self) -> ModelAt | None:
        """The model that judges, None where none is named."""
        if self.judge_model is None:
            return None
        return ModelAt(self.judge_model, self.judge_url, self.judge_price, self.judge_api_key_env)


class Built(NamedTuple):
    """What a builder has made.

    Attributes:
        report: What became of the input rows.
        summary: All figures, as `<output>.report.json` holds them.
    """

    report: MapReport
    summary: dict[str, Any]


def build_dataset(  # noqa: PLR0913 - all named
    options: DataOptions,
    build: Build,
    *,
    models: Mapping[str, ModelAt] | None = None,
    rows: Iterable[Named] | None = None,
    needs: Sequence[Sequence[str]] = (),
    later: str | None = None,
    counts: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
) -> Built:
    """Runs a builder over its input and writes rows, rejects, a report and a dataset card.

    Beside `<output>` stand `<output>.rejects.jsonl`, `<output>.report.json`, the card (`README.md`)
    and the ledger.

    Args:
        options: Where to read, write and ask.
        build: Makes one output or several of one input row, or raises `Reject` or `CallError`; a
            `Reject` among several outputs tells of one that could not be made.
        models: Role -> model, in the order in which `build` takes them after the row; the options'
            own model as `generator` by default.
        rows: The input; the rows of `options.input` by default. A `Bundle` stands for several.
        needs: Columns that the input must have, as for `require_columns`.
        later: As for `run_rows`.
        counts: What else the builder has counted, once it is through, for report and card.

    Raises:
        UserError: The input cannot be read or lacks a column, the output exists, or nothing came
            out.
    """
    if models is None:
        models = {"generator": options.generator} if isinstance(options, BuildOptions) else {}
    if options.push_to_hub is not None:
        check_repo(options.push_to_hub)
    evaluation = EvalPrompts(options.eval_prompts) if options.eval_prompts else None
    rows = require_columns(read_rows(options.input) if rows is None else rows, *needs)
    with open_ledger(options.output, options) as ledger:
        llms = {role: model.connect(ledger, options) for role, model in models.items()}
        _warn_of_self_preference(llms)

        async def rows_of(row: Row) -> list[Row | Reject]:
            plain = _plain_prompt(row)
            made = await build(row, *llms.values())
            outputs = [made] if isinstance(made, Group | Mapping | Reject) else list(made)
            if not outputs:
                raise Reject("empty", "the builder made nothing of the row")
            return [_checked(output, plain) for output in outputs]

        report_file = Path(f"{options.output}.report.json")
        if not options.dry_run and options.part is None:
            report_file.unlink(missing_ok=True)
        asked = [*llms.values()]
        report = run_rows(options, asked, rows, rows_of, options.output, later=later)
        dollars = ledger.spent()
    report.refuse_empty(options.input)
    summary = summarise(options, report, llms, examine(options.output, evaluation), dollars)
    counted = {name: dict(found) for name, found in counts().items()}
    summary |= counted
    report_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    card = card_text(options.output, summary, options.license, counted)
    card_path(options.output).write_text(card, encoding="utf-8")
    say(f"{options.output}: {report}")
    for line in told(summary):
        say(line)
    for name, found in counted.items():
        numbers = ", ".join(f"{what} {count}" for what, count in found.items()) or "none"
        say(f"{name.replace('_', ' ')}: {numbers}")
    for role, llm in llms.items():
        say(f"{role} {llm.model}: {llm.usage}")
    say(f"card: {card_path(options.output)}")
    if options.push_to_hub is not None:
        push(options.output, options.push_to_hub, card, options.hub_private_repo)
        say(f"pushed to {options.push_to_hub}")
    return Built(report, summary)


def _plain_prompt(row: Row) -> Prompt | None:
    """The prompt of an input row, None where it has none that is known.

    Raises:
        Reject: `prompt_ends_with_assistant`.
    """
    try:
        prompt = prompt_of(row)
    except Reject:
        return None
    if isinstance(prompt, list) and prompt[-1].get("role") == "assistant":
        raise Reject(
            "prompt_ends_with_assistant",
            "the conversation ends with the assistant's turn; end it with the user's",
        )
    return prompt


def _checked(made: Made, plain: Prompt | None) -> Row | Reject:
    """An output as a row that training reads, or why it is none."""
    if isinstance(made, Reject):
        return made.with_traceback(None)
    try:
        row = row_from_group(made) if isinstance(made, Group) else made
        group = group_from_row(row)  # what training would refuse is no data
    except RowError as error:
        return Reject(error.reason, str(error))
    if plain is not None and _turns(group.prompt) != _turns(plain):
        return Reject(
            "prompt_changed",
            "the prompt is not the input's; what is added to generate belongs to "
            "`meta.generation_prompt`",
        )
    return row


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    """A prompt for comparisons: text or the one message that holds it, ends without white space."""
    turns = as_messages(prompt)
    return [(str(turn["role"]), str(turn.get("content") or "").strip()) for turn in turns]


def _warn_of_self_preference(llms: Mapping[str, LLM]) -> None:
    judge = llms.get("judge")
    for role, llm in llms.items():
        if judge is not None and llm is not judge and llm.model == judge.model:
            logger.warning(
                "%s and judge are both %s: models prefer what they wrote themselves, so its "
                "verdicts flatter it; name another judge",
                role,
                llm.model,
            )
