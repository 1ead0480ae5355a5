"""Fetch a benchmark from the Hub: one revision, by its hash, with a checksum of every file.

alignment data fetch alpaca_eval --output data/alpaca_eval
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.cli import UserError, parse, run, say, unknown
from alignment.core.rows import read_rows

LOCK = "fetched.json"
"""What was fetched: repository, revision, checksums. A later fetch must find the same."""

Row = dict[str, Any]


@dataclass(kw_only=True)
class Options:
    """Options of `alignment data fetch`."""

    name: str = field(metadata={"help": "the benchmark: alpaca_eval"})
    output: Path = field(metadata={"help": "folder to write to"})
    revision: str | None = field(
        default=None,
        metadata={"help": "commit of 40 digits; unset, that of the lock, else the newest"},
    )

    def __post_init__(self) -> None:
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"`revision` is `{self.revision}`; only a commit's hash of 40 digits stays the same"
            )


@dataclass(frozen=True)
class Source:
    """A benchmark on the Hub.

    Attributes:
        repository: Id of the data set.
        files: What it consists of there.
        convert: Paths of those files -> rows by name of the file to write.
    """

    repository: str
    files: tuple[str, ...]
    convert: Callable[[Mapping[str, Path]], dict[str, list[Row]]]


def alpaca_eval(files: Mapping[str, Path]) -> dict[str, list[Row]]:
    """AlpacaEval 2: prompts with baseline answers and difficulty, and the reference rows.

    Raises:
        UserError: The files are not those that the published numbers were computed on.
    """
    answers = [row for _, row in read_rows(files[_BASELINE])]
    gamed = [row for _, row in read_rows(files[_GAMED])]
    try:
        text = json.dumps(
            [[row["instruction"], row["output"]] for row in answers], ensure_ascii=False
        )
        difficulty = {int(row["index"]): float(row["instruction_difficulty"]) for row in gamed}
        reference = [
            {
                "index": int(row["index"]),
                "std_delta_len": float(row["std_delta_len"]),
                "instruction_difficulty": difficulty[int(row["index"])],
                "preference": float(row["preference"]),
            }
            for row in gamed
        ]
        prompts = [
            {
                "index": index,
                "dataset": row.get("dataset"),
                "instruction": row["instruction"],
                "baseline_model": row.get("generator"),
                "baseline_output": row["output"],
                "instruction_difficulty": difficulty[index],
            }
            for index, row in enumerate(answers)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the files of AlpacaEval have changed their layout ({error!r})") from None
    if hashlib.sha256(text.encode()).hexdigest() != ALPACA_EVAL_TEXTS:
        raise UserError(
            f"{files[_BASELINE]}: prompts and baseline answers are not those of the published "
            "numbers; name an earlier commit with `--revision`"
        )
    return {"prompts.jsonl": prompts, "reference.jsonl": reference}


_BASELINE, _GAMED = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
ALPACA_EVAL_TEXTS = "89601b39c860454f7fe7f591722c8e551b8f3400a17d4a5c4b2239f77404b41f"
"""SHA-256 of the prompts and baseline answers, as JSON, that the published numbers stand on."""
SOURCES = {"alpaca_eval": Source("tatsu-lab/alpaca_eval", (_BASELINE, _GAMED), alpaca_eval)}


def fetch(name: str, output: Path, revision: str | None = None) -> dict[str, Any]:
    """Downloads a benchmark, checks it, and writes it in this project's columns.

    Args:
        name: One of `SOURCES`.
        output: Folder to write to.
        revision: A commit; that of the folder's lock, else the newest, where it is None.

    Returns:
        What stands in the lock: `repository`, `revision`, `files` with their SHA-256.

    Raises:
        UserError: There is no such benchmark, it cannot be reached, or it is not what it was.
    """
    if name not in SOURCES:
        raise unknown("benchmark", name, SOURCES)
    source, lock = SOURCES[name], output / LOCK
    known = json.loads(lock.read_text(encoding="utf-8")) if lock.is_file() else None
    commit = revision or (known and known["revision"]) or _newest(source.repository)
    files = {file: _download(source.repository, file, commit) for file in source.files}
    checksums = {
        file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files.items()
    }
    found = {"repository": source.repository, "revision": commit, "files": checksums}
    if known is not None and known["revision"] == commit and known != found:
        raise UserError(
            f"{source.repository} at {commit} is not what {lock} says it was; nothing is written: "
            "empty the Hub's cache and fetch again, or delete the lock to accept the change"
        )
    converted = source.convert(files)
    output.mkdir(parents=True, exist_ok=True)
    for written, rows in converted.items():
        _write(output / written, rows)
    lock.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def main(argv: list[str]) -> None:
    """`alignment data fetch`."""
    options = parse(Options, argv, "alignment data fetch", __doc__, bare="name")
    found = fetch(options.name, options.output, options.revision)
    say(f"{options.output}: {options.name} of {found['repository']} at {found['revision']}")


def _newest(repository: str) -> str:
    import huggingface_hub

    return str(_reached(lambda: huggingface_hub.HfApi().dataset_info(repository).sha, repository))


def _download(repository: str, file: str, commit: str) -> Path:
    import huggingface_hub

    def downloaded() -> str:
        return str(
            huggingface_hub.hf_hub_download(repository, file, repo_type="dataset", revision=commit)
        )

    return Path(_reached(downloaded, f"{repository}, {file} at {commit}"))


def _reached(ask: Callable[[], Any], what: str) -> Any:
    from huggingface_hub.errors import HTTPError

    try:
        return ask()
    except (HTTPError, OSError) as error:  # being offline is one of the latter
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot fetch {what}: {type(error).__name__}: {told}") from None


def _write(path: Path, rows: Iterable[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    run(main)
