"""From rows to groups of token ids on disk: sources, rejects, and what the trainer reads.

Every row ends in the prepared data or among the rejects, with a reason; nothing is dropped
silently. The ids live in a memory-mapped Arrow file, so memory does not grow with the number of
rows.
"""

from __future__ import annotations

import glob
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from alignment.cli import UserError, unknown
from alignment.core.edits import mark_edits
from alignment.core.groups import (
    CHOSEN,
    REJECTED,
    Group,
    Response,
    RowError,
    as_chat,
    binarise,
    group_from_row,
    scored_segments,
)
from alignment.core.packing import Layout, TokenGroup, group_from_record
from alignment.core.rendering import Renderer
from alignment.core.rows import SUFFIXES, is_local, read_rows, require_columns

if TYPE_CHECKING:
    import datasets

    from alignment.objectives.base import Objective

logger = logging.getLogger(__name__)

PairRule = Literal["best_worst"]
_BUILDERS = ("json", "csv", "parquet")
"""Builders of `datasets` whose files `read_rows` reads."""
_FORMAT = "4"
"""Part of the cache's key; raised when the same rows become other ids than before."""

NamedRows = Iterable[tuple[str, "Mapping[str, Any] | Group"]]


@dataclass(frozen=True)
class Source:
    """One data set, named as `datasets.load_dataset` and TRL's recipes name it.

    Attributes:
        path: A local file or folder, an id on the Hub, or the name of a builder such as `json`,
            for local files that `data_dir` or `data_files` name.
        name: Configuration on the Hub.
        data_dir: Folder within `path`.
        data_files: Files within `path` and `data_dir`, also as patterns, or by split.
        split: Split on the Hub, also with a slice: `train[:1%]`; of a local folder the files whose
            names begin so, all files where none does.
        columns: The only columns that are read; None reads all.
        fraction: Share of this source in a mixture; set for all sources or none.
        streaming: Reads a Hub set without downloading it whole.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None
    split: str = "train"
    columns: Sequence[str] | None = None
    fraction: float | None = None
    streaming: bool = False

    @property
    def files(self) -> list[Path] | None:
        """The local files this source stands for, in order; None for the Hub.

        Raises:
            UserError: A local folder holds no readable file, or a slice of it is asked for.
        """
        is_builder = self.path in _BUILDERS and bool(self.data_files or self.data_dir)
        if not is_builder and not is_local(self.path):
            return None
        if "[" in self.split:
            raise UserError(
                f"{self.path}: `{self.split}` is a slice, which sets of the Hub have alone; "
                "`fraction` bounds the share of a local file in a mixture"
            )
        path = Path("" if is_builder else self.path, self.data_dir or "")
        if self.data_files:
            return [file for pattern in self._patterns() for file in _matching(path, pattern)]
        if not path.is_dir():
            return [path]
        files = [p for p in sorted(path.iterdir()) if p.name.endswith(SUFFIXES)]
        named = [p for p in files if p.name.startswith(self.split)] or files
        if not named:
            raise UserError(
                f"{path}: the folder holds no file of a known kind ({', '.join(SUFFIXES)})"
            )
        return named

    def _patterns(self) -> Sequence[str]:
        """The data files of the split."""
        found = self.data_files or ()
        if isinstance(found, Mapping):
            if self.split not in found:
                raise unknown(f"split of the `data_files` of {self.path}", self.split, found)
            found = found[self.split]
        return [found] if isinstance(found, str) else found


def read_sources(sources: Sequence[Source]) -> NamedRows:
    """The rows of a mixture, in order.

    Where fractions are given, each source contributes its first rows, as many as keep the shares
    without repeating any row.

    Raises:
        UserError: A source cannot be read, or fractions are given for some sources only or are no
            shares.
    """
    fractions = [source.fraction for source in sources]
    if all(fraction is None for fraction in fractions):
        for source in sources:
            yield from _read_source(source)
        return
    if None in fractions:
        raise UserError("datasets: `fraction` must be set for all sources of a mixture or none")
    numbers = all(isinstance(f, int | float) and 0 <= f < math.inf for f in fractions)
    if not numbers or not any(fractions):
        raise UserError(
            f"datasets: the fractions are {fractions}; each must be a number of at least 0, and "
            "one of them above it"
        )
    shares = np.array(fractions, dtype=float) / sum(f for f in fractions if f is not None)
    sizes = np.array([sum(1 for _ in _read_source(source)) for source in sources])
    total = min(size / share for size, share in zip(sizes, shares, strict=True) if share > 0)
    for source, share in zip(sources, shares, strict=True):
        yield from islice(_read_source(source), round(share * total))


def fingerprint_sources(sources: Sequence[Source]) -> str | None:
    """A name of the rows' content for the cache of prepared data; None where it cannot be known."""
    parts: list[Any] = []
    for source in sources:
        files = source.files
        if files is None:
            return None
        for path in files:
            if not path.is_file():
                raise UserError(f"no such file: {path}")
            stat = path.stat()
            of_file = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
            parts.append((*of_file, source.fraction, source.columns))
    return repr(parts)


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern; the pattern itself where there is none, to be told as missing."""
    found = glob.glob(str(Path(glob.escape(str(folder)), pattern)))
    return [*map(Path, sorted(found))] or [folder / pattern]


def _read_source(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = _read_columns(source)
    if source.columns is None:
        yield from rows
        return
    wanted = source.columns
    for name, row in require_columns(rows, *([column] for column in wanted)):
        yield name, {column: row[column] for column in wanted if column in row}


def _read_columns(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = source.files
    if files is not None:
        for path in files:
            yield from read_rows(path)
        return
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path,
            name=source.name,
            data_dir=source.data_dir,
            data_files=source.data_files,
            split=source.split,
            streaming=source.streaming,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(
            f"data set `{source.path}` is no local file, and the Hub has none to load: "
            f"{str(error).splitlines()[0]}"
        ) from None
    for number, row in enumerate(rows):
        yield f"{source.path}[{number}]", row


@dataclass(frozen=True)
class DataReport:
    """What became of the rows.

    Attributes:
        kept: Rows that became groups.
        rejected: How many rows each reason rejected.
        notices: How many kept rows each notice concerns: `truncated`, `joined_as_ids`, `tie_best`,
            `tie_worst`.
        responses: Responses of all kept groups.
    """

    kept: int
    rejected: Mapping[str, int]
    notices: Mapping[str, int]
    responses: int

    def __str__(self) -> str:
        """One line: kept, rejected by reason, notices."""
        rejected = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
        notices = ", ".join(f"{count} {notice}" for notice, count in self.notices.items())
        lost = f"; rejected {sum(self.rejected.values())} ({rejected})" if rejected else ""
        return f"{self.kept} groups kept{lost}{f'; {notices}' if notices else ''}"


class GroupDataset:
    """Prepared groups, read one by one from disk.

    Attributes:
        table: The stored rows that were kept.
        rejects: The stored rows that were not.
        report: Counts of both.
    """

    def __init__(self, table: datasets.Dataset, rejects: datasets.Dataset) -> None:
        self.table, self.rejects = table, rejects
        light = table.select_columns(["notices", "shared_length", "plain_length", "size"])
        columns = light.with_format("numpy")[:] if len(table) else {}
        self._lengths = {
            kind: np.asarray(columns.get(f"{kind}_length", ()), dtype=np.int64)
            for kind in ("shared", "plain")
        }
        self.report = DataReport(
            kept=len(table),
            rejected=_by_count(rejects["reason"]),
            notices=_by_count(notice for notices in light["notices"] for notice in notices),
            responses=int(np.sum(columns.get("size", 0))),
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> TokenGroup:
        return group_from_record(self.table[int(index)])

    def lengths(self, layout: Layout) -> np.ndarray:
        """(G,) positions that each group takes in a layout."""
        return self._lengths["plain" if layout == "plain" else "shared"]

    def select(self, indices: Sequence[int]) -> GroupDataset:
        """Some of the groups, in the order given; the rejects stay."""
        return GroupDataset(self.table.select(indices), self.rejects)

    def split(self, size: float, seed: int) -> tuple[GroupDataset, GroupDataset]:
        """A training and a test part.

        Args:
            size: Share (below 1) or number of groups of the test part.
            seed: Decides which groups it gets.

        Raises:
            UserError: One of the parts would be empty.
        """
        count = round(size * len(self)) if size < 1 else int(size)
        if not 0 < count < len(self):
            raise UserError(
                f"test_split_size {size} of {len(self)} groups leaves one part empty; "
                "choose another"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        train, test = np.sort(order[count:]), np.sort(order[:count])
        empty = self.rejects.select([])
        return self.select(train.tolist()), GroupDataset(self.table.select(test.tolist()), empty)

    def write_rejects(self, path: Path) -> None:
        """Writes the rejected rows, one JSON object each: origin, reason, message, row."""
        # Half a surrogate pair becomes `\ud83d`, which is what JSON calls it.
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in self.rejects:
                record = {name: row[name] for name in ("origin", "reason", "message")}
                record["row"] = json.loads(row["row"])
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


class NothingUsable(UserError):
    """Every row was rejected.

    Attributes:
        groups: Without a group, but with the rejects.
    """

    def __init__(self, message: str, groups: GroupDataset) -> None:
        super().__init__(message)
        self.groups = groups


@dataclass(frozen=True)
class Preparation:
    """How rows become groups of ids; everything the result depends on beside the rows.

    Attributes:
        renderer: Tokenizer and length limits.
        objective: Whose needs every row must meet.
        pair_rule: `best_worst` makes pairs of scored groups; None leaves groups as they are.
        seed: Breaks ties between equal rewards.
        chat: Renders plain texts as a user's and an assistant's turn.
    """

    renderer: Renderer
    objective: Objective
    pair_rule: PairRule | None = None
    seed: int = 42
    chat: bool = False

    def __call__(
        self, rows: NamedRows, fingerprint: str | None = None, max_rows: int | None = None
    ) -> GroupDataset:
        """Prepares rows and stores them where `datasets` keeps its cache.

        Args:
            rows: Name of each row, and the row or group.
            fingerprint: Names the rows' content; an earlier result of the same content, tokenizer
                and settings is then taken from the cache. None prepares them anew.
            max_rows: Reads no more rows than this, for streams without end.

        Raises:
            NothingUsable: There are rows, but every one was rejected.
            UserError: There is no row, or the file that holds them is damaged.
        """
        import datasets
        from datasets.fingerprint import Hasher, generate_random_fingerprint

        rows = iter(rows)
        begin = next(rows, None)
        if begin is None:
            raise UserError("no row can be used: the data has no row")
        if fingerprint is not None:
            parts = (fingerprint, max_rows, self._settings())
            fingerprint = Hasher.hash(parts)
        try:
            table = datasets.Dataset.from_generator(
                self._records,
                features=_features(),
                gen_kwargs={"rows": islice(chain([begin], rows), max_rows)},
                fingerprint=fingerprint or generate_random_fingerprint(),
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
        reasons = table["reason"]
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        dropped = [index for index, reason in enumerate(reasons) if reason is not None]
        prepared = GroupDataset(table.select(kept), table.select(dropped))
        if not kept:
            first = table[0]["message"] if dropped else "the data has no row"
            where = f" (first: {table[0]['origin']}: {first})" if dropped else ""
            raise NothingUsable(f"no row can be used: {prepared.report}{where}", prepared)
        if "twin" in self.objective.needs and all(twin is None for twin in table["twin"]):
            name = type(self.objective).__name__
            raise UserError(f"{name} needs records with a `judgment`; no row of this data has one")
        return prepared

    def _settings(self) -> str:
        tokenizer, objective = self.renderer.tokenizer, self.objective
        vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
        return repr(
            (
                _FORMAT,
                vocabulary,
                tokenizer.chat_template,
                tokenizer.eos_token_id,
                self.renderer.max_length,
                self.renderer.truncation_mode,
                type(objective).__module__,
                objective,
                sorted(objective.needs),
                sorted(objective.roles),
                getattr(objective, "dimensions", None),
                self.pair_rule,
                self.seed,
                self.chat,
            )
        )

    def _records(self, rows: NamedRows) -> Iterator[dict[str, Any]]:
        for origin, row in rows:
            try:
                yield self._record(origin, row)
            except RowError as error:
                yield _rejected(origin, row, _with_likely_column(error, row))

    def _record(self, origin: str, row: Mapping[str, Any] | Group) -> dict[str, Any]:
        group = row if isinstance(row, Group) else group_from_row(row)
        notices: list[str] = []
        if self.pair_rule == "best_worst":
            group, ties = binarise(group, self.seed)
            notices += ties
        check_needs(group, self.objective)
        group = as_chat(group) if self.chat else group
        wanted = _wanted(group, self.objective)
        if not wanted:
            raise RowError("no_response", "the row has no response that the objective reads")
        rendered = self.renderer(replace(group, responses=wanted), origin)
        tokens = rendered.group
        if "edits" in self.objective.needs:
            tokens = mark_edits(tokens, self.renderer.end_tokens)
        shared, plain = tokens.lengths()
        return {
            **{name: getattr(tokens, name) for name in _features() if hasattr(tokens, name)},
            "notices": [*notices, *rendered.notices],
            "shared_length": shared,
            "plain_length": plain,
            "size": len(tokens.responses),
        }


def _wanted(group: Group, objective: Objective) -> tuple[Response, ...]:
    """The responses that an objective reads, labelled as those of any other row.

    Sources of a mixture may differ in their labels; in a batch every response has one or none has.
    """
    return tuple(
        replace(
            response,
            reward=response.reward if "reward" in objective.needs else None,
            weight=1.0 if response.weight is None else response.weight,
            aspects=response.aspects if "aspects" in objective.needs else None,
            spans=response.spans if "spans" in objective.needs else None,
            segments=scored_segments(response) if "scores" in objective.needs else None,
        )
        for response in group.responses
        if response.role in objective.roles and (response.twin is None or "twin" in objective.needs)
    )


def default_reference_folder() -> Path:
    """Where stored reference log-probs live: beside the prepared data."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "reference"


def check_needs(group: Group, objective: Objective) -> None:
    """Checks that a group carries the labels an objective reads, and that it fits.

    Raises:
        RowError: It does not; the message names what is missing, what is there and the remedy.
    """
    name = type(objective).__name__
    roles = [response.role for response in group.responses]
    scored = all(response.reward is not None for response in group.responses)
    paired = sorted(roles) == [REJECTED, CHOSEN]
    there = "`chosen` and `rejected`" if paired else "`rewards`" if scored else "no such labels"
    if "reward" in objective.needs and not scored:
        remedy = "add rewards"
        if paired and hasattr(objective, "form"):
            remedy = f"use `objective_kwargs: {{form: pair}}` or {remedy}"
        raise RowError("lacks_rewards", f"{name} needs `rewards`; this row has {there}: {remedy}")
    if "pairs" in objective.needs and not paired:
        remedy = "set `pair_rule: best_worst`" if scored and len(roles) > 1 else "add both sides"
        raise RowError(
            "lacks_pairs", f"{name} needs `chosen` and `rejected`; this row has {there}: {remedy}"
        )
    if "one_rejected" in objective.needs and (roles.count(REJECTED) != 1 or CHOSEN not in roles):
        raise RowError(
            "lacks_sides",
            f"{name} needs one response of role -1 and at least one of role 1; this row has "
            f"{there}: add `roles`",
        )
    if "aspects" in objective.needs:
        _check_aspects(group, name, getattr(objective, "dimensions", None))
    if "spans" in objective.needs and any(r.spans is None for r in group.responses):
        raise RowError(
            "lacks_spans",
            f"{name} needs `spans`, the flagged ranges of characters (an empty list where nothing "
            "is flagged); this row has none",
        )
    if "scores" in objective.needs and any(scored_segments(r) is None for r in group.responses):
        raise RowError(
            "lacks_scores",
            f"{name} needs `segments` with scores, or a `reward` for the whole response; this row "
            "has neither",
        )
    if "role" in objective.needs and 0 in roles:
        remedy = "set `pair_rule: best_worst`" if scored and len(roles) > 1 else "add a label"
        raise RowError(
            "lacks_roles",
            f"{name} needs `chosen` and `rejected`, or a `label`; this row has {there}: {remedy}",
        )
    if misfit := objective.misfit(group):
        raise RowError("misfit", f"{name} {misfit}")


def _check_aspects(group: Group, name: str, dimensions: int | None) -> None:
    """Checks that a group is judged in as many dimensions as an objective weighs."""
    found = {None if r.aspects is None else len(r.aspects) for r in group.responses}
    if found != {dimensions}:
        there = "none" if None in found else f"{max(filter(None, found))}"
        raise RowError(
            "lacks_aspects",
            f"{name} needs `aspects`, {dimensions} numbers for each response (null where nobody "
            f"judged); this row has {there}",
        )


_OTHER_NAMES = {
    "lacks_rewards": ("rewards", ("scores", "ratings", "score", "rating")),
    "no_prompt": ("prompt", ("question", "query", "instruction")),
}
"""By reject code, a column and what others call it."""


def _with_likely_column(error: RowError, row: Mapping[str, Any] | Group) -> RowError:
    """The same error; it names a column that may hold what is lacking under another name."""
    name, others = _OTHER_NAMES.get(error.reason, ("", ()))
    there = None if isinstance(row, Group) else next(filter(row.get, others), None)
    if there is None:
        return error
    return RowError(error.reason, f"{error}; if `{there}` holds it, rename that to `{name}`")


def _rejected(origin: str, row: Mapping[str, Any] | Group, error: RowError) -> dict[str, Any]:
    shown = asdict(row) if isinstance(row, Group) else dict(row)
    empty = dict.fromkeys(_features())
    text = json.dumps(shown, ensure_ascii=False, default=str)
    told = {"origin": origin, "reason": error.reason, "message": str(error), "row": text}
    # Arrow holds no half of a surrogate pair either.
    told = {name: told[name].encode("utf-8", "backslashreplace").decode("utf-8") for name in told}
    return {**empty, **told, "notices": []}


def _features() -> datasets.Features:
    from datasets import Features, List, Value

    ids, number = List(Value("int32")), Value("int64")
    return Features(
        {
            "prefix": ids,
            "contexts": List(ids),
            "responses": List(ids),
            "role": List(Value("int8")),
            "reward": List(Value("float64")),
            "weight": List(Value("float64")),
            "aspects": List(List(Value("float64"))),
            "twin": ids,
            "mark": List(List(Value("int8"))),
            "score": List(List(Value("float32"))),
            "origin": Value("string"),
            "notices": List(Value("string")),
            "shared_length": number,
            "plain_length": number,
            "size": number,
            "reason": Value("string"),
            "message": Value("string"),
            "row": Value("string"),
        }
    )


def _by_count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
