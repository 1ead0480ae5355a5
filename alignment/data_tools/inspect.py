"""Look at a file of rows: columns, lengths, contrast, rejects, and pairs side by side.

alignment data inspect pairs.jsonl --examples 5 --tokenizer MODEL --html pairs.html
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.cli import UserError, parse, run
from alignment.data_tools.inspection import Inspection, inspect_file
from data_builders.overlap import EvalPrompts


@dataclass(kw_only=True)
class Options:
    """Options of `alignment data inspect`."""

    file: Path = field(metadata={"help": "file of rows, of any kind that training reads"})
    examples: int = field(default=3, metadata={"help": "rows to show, drawn at random"})
    seed: int = field(default=0, metadata={"help": "of the draw"})
    longest: int = field(
        default=1200, metadata={"help": "characters shown of a text; 0 for all of them"}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or hub id: lengths in its tokens"}
    )
    eval_prompts: tuple[Path, ...] = field(
        default=(), metadata={"help": "files of prompts to find among those of the file"}
    )
    json: str | None = field(
        default=None, metadata={"help": "file for the figures; `-` prints them and nothing else"}
    )
    html: Path | None = field(
        default=None, metadata={"help": "file for a page to read, filter and search the rows in"}
    )
    html_rows: int = field(
        default=10_000, metadata={"help": "rows of that page; of more, so many are drawn"}
    )
    width: int | None = field(
        default=None, metadata={"help": "columns to use; those of the terminal, 100 without one"}
    )

    def __post_init__(self) -> None:
        for name, least in (("examples", 0), ("longest", 0), ("width", 20), ("html_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}; it must be at least {least}")


def main(argv: list[str]) -> None:
    """`alignment data inspect`."""
    options = parse(Options, argv, "alignment data inspect", __doc__, bare="file")
    made = inspect_file(
        options.file,
        examples=options.examples,
        seed=options.seed,
        length=_token_count(options.tokenizer) if options.tokenizer is not None else None,
        evaluation=EvalPrompts(options.eval_prompts) if options.eval_prompts else None,
    )
    figures = json.dumps(made.as_dict(), indent=2) + "\n"
    if options.json not in (None, "-"):
        Path(str(options.json)).write_text(figures, encoding="utf-8")
    shown = figures if options.json == "-" else _shown(made, options)
    if options.html is not None:
        from alignment.data_tools.viewer import write_viewer

        write_viewer(options.file, options.html, most=options.html_rows, seed=options.seed)
        shown += "" if options.json == "-" else f"written to {options.html}\n"
    _print(shown)


def _shown(made: Inspection, options: Options) -> str:
    from rich.console import Console

    from alignment.data_tools.terminal import show

    console = Console(highlight=False, markup=False, emoji=False)
    if options.width is not None or not console.is_terminal:
        console.width = options.width or 100
    with console.capture() as captured:
        show(made, console, options.longest)
    return captured.get()


def _print(text: str) -> None:
    """Writes to standard output, whatever it can encode and however soon its reader leaves."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _token_count(name: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot load the tokenizer `{name}`: {told}") from None

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


if __name__ == "__main__":
    run(main)
