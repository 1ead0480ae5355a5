"""Run bundles: a folder of answers and verdicts from which every number can be recomputed offline.

A run writes its rows (`answers.jsonl`, `verdicts.jsonl`) into its output folder and seals it:

    seal(folder, "mt_bench", judge.identity(), {"seed": 0, "resamples": 10_000}, ["verdicts.jsonl"])

`bundle.json` then names the evaluator, the judge (model, fingerprint, checksum of its prompt,
sampling), the settings that numbers depend on, seeds included, and a checksum of each file. To
recompute, an evaluator opens the folder and runs the very function on its rows that the run has
called on them:

    bundle = unseal(folder, "mt_bench")
    report = summarise(bundle.rows("verdicts.jsonl"), **bundle.settings)

So a bundle holds whatever its numbers depend on, and needs neither model nor network nor ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import __version__
from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.rows import Row

MANIFEST = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """A sealed run.

    Attributes:
        folder: Where it lies.
        judge: What `Judge.identity` said of the judge.
        settings: What its numbers depend on beside its rows.
    """

    folder: Path
    judge: Mapping[str, Any]
    settings: Mapping[str, Any]

    def rows(self, name: str) -> list[Row]:
        """The rows of one of its files."""
        return [row for _, row in read_rows(self.folder / name)]


def seal(
    folder: str | Path,
    evaluator: str,
    judge: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: Iterable[str],
) -> None:
    """Makes a bundle of a run's output folder.

    Args:
        folder: The folder.
        evaluator: Whose run it is.
        judge: Its judge's identity.
        settings: What the numbers depend on beside the rows; plain JSON.
        files: Names of the files in the folder that hold the rows.
    """
    folder = Path(folder)
    manifest = {
        "evaluator": evaluator,
        "version": __version__,
        "judge": judge,
        "settings": settings,
        "files": {name: _checksum(folder / name) for name in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def unseal(folder: str | Path, evaluator: str) -> Bundle:
    """Opens a bundle and checks that it is whole.

    Raises:
        UserError: It is no bundle, of another evaluator, or its files are not those of the run.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["evaluator"], manifest["files"]
        bundle = Bundle(path.parent, manifest["judge"], manifest["settings"])
    except OSError as error:
        raise UserError(f"no bundle in {folder}: cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore it or run again") from None
    if found != evaluator:
        raise UserError(f"{path} is a run of `{found}`; recompute it by `alignment eval {found}`")
    for name, checksum in files.items():
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name} is missing; restore it or run again")
        if _checksum(path.parent / name) != checksum:
            raise UserError(
                f"{path.parent / name} was changed after the run; restore it or run again"
            )
    return bundle


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON Lines, for what a run has read rather than made."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
