"""The dataset card: a README.md beside the data in the Hub's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PROJECT = "contrastive-alignment"
KEY = PROJECT.replace("-", "_")
"""The key of the front matter under which what only this project knows stands."""

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def card_path(output: Path) -> Path:
    """Where the card of a data set goes: `README.md` beside it unless that is another's.

    Where the folder has a README of its own, or the card of another data set, it is
    `<output>.README.md`.
    """
    readme = output.with_name("README.md")
    if not readme.exists():
        return readme
    mine = _front_matter(readme).get(KEY)
    if isinstance(mine, dict) and mine.get("data") == output.name:
        return readme
    return output.with_name(f"{output.name}.README.md")


def card_text(
    output: Path,
    summary: Mapping[str, Any],
    licence: str | None,
    counted: Mapping[str, Mapping[str, int]],
) -> str:
    """The card of a data set.

    Args:
        output: The file of rows.
        summary: What `data_builders.summary.summarise` says of it.
        licence: An identifier of the Hub's, None where it is not known.
        counted: What the builder has counted beside: name -> what -> how often.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=licence or "unknown",
        pretty_name=output.stem,
        annotations_creators=["machine-generated"],
        size_categories=[_size(summary["written"])],
        task_categories=["text-generation"],
        tags=[PROJECT, "synthetic", *filter(None, [summary["builder"]])],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": output.name}],
            }
        ],
    )
    names = ("builder", "version", "models", "dollars", "kept", "dropped", "versions")
    data[KEY] = {"data": output.name, **{name: summary[name] for name in names}}
    body = "\n\n".join(_sections(output, summary, licence, counted))
    return f"---\n{data.to_yaml(line_break='')}\n---\n\n{body}\n"


def _sections(
    output: Path,
    summary: Mapping[str, Any],
    licence: str | None,
    counted: Mapping[str, Mapping[str, int]],
) -> Iterator[str]:
    maker = " ".join(summary["command"].split()[:3])
    yield f"# {output.stem}\n\nData for alignment from contrasts, made by `{maker}`."
    yield _table(("", ""), _origin(summary, licence))
    yield f"```bash\n{summary['command']}\n```"
    yield "## Rows\n\n" + _table(("rows of the input", "count"), _rows(summary))
    yield "## Statistics\n\n" + _lengths(summary["statistics"]["lengths"])
    yield _table(("", ""), _contrast(summary["statistics"]))
    for name, found in counted.items():
        if found:
            yield _table((name.replace("_", " "), "count"), found.items())
    if summary["overlap"] is not None:
        yield "## Evaluation prompts\n\n" + _overlap(summary)
    yield (
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("FOLDER", split="train")  # the folder or repository of this card'
        "\n```"
    )


def _origin(summary: Mapping[str, Any], licence: str | None) -> Iterator[tuple[str, object]]:
    for role, source in summary["models"].items():
        told = f"`{source['model']}` at {source['provider']}"
        mark = source["fingerprint"]
        yield role, f"{told}, fingerprint `{mark}`" if mark else told
    if "judge" not in summary["models"]:
        yield "judge", "none"
    yield "builder", f"`{summary['builder']}`, version {summary['version']}"
    yield "licence", licence or "unknown: that of the prompts and the terms of the models apply"
    prices = [summary["options"].get(name) for name in ("price", "judge_price")]
    yield "cost", f"${summary['dollars']:.2f}" if any(prices) else "unknown: no prices were given"
    yield "versions", ", ".join(f"{name} {is_}" for name, is_ in summary["versions"].items())


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "read", summary["kept"] + sum(summary["dropped"].values())
    yield f"kept, giving {summary['written']} rows of data", summary["kept"]
    for reason, count in summary["dropped"].items():
        yield f"dropped: `{reason}`", count
    for reason, count in summary["partial"].items():
        yield f"could not be made beside others of its row: `{reason}`", count


def _lengths(lengths: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(lengths.values())))
    rows = [(what, *(f"{of[name]:.0f}" for name in names)) for what, of in lengths.items()]
    return "Lengths in characters:\n\n" + _table(("", *names), rows)


def _contrast(statistics: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from ((f"rows that are a {name}", count) for name, count in statistics["formats"].items())
    yield from ((f"`{name}`", count) for name, count in statistics["labels"].items())
    for name, value in {**(statistics["pairs"] or {}), **(statistics["groups"] or {})}.items():
        shown = "none" if value is None else f"{value:.3f}" if isinstance(value, float) else value
        yield name.replace("_", " "), shown
    for name, count in statistics["near_duplicates"].items():
        yield f"{name} that nearly repeat an earlier one", count


def _overlap(summary: Mapping[str, Any]) -> str:
    hits = summary["overlap"]
    told = f"{len(hits)} rows have one of {summary['evaluation_prompts']} evaluation prompts."
    rows = [(hit["row"], hit["how"], hit["source"]) for hit in hits]
    return f"{told}\n\n{_table(('row', 'how', 'evaluation prompt'), rows)}" if hits else told


def _table(head: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    lines: list[Iterable[object]] = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _size(rows: int) -> str:
    return next((size for limit, size in _SIZES.items() if rows < limit), "1M<n<10M")


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the top of a README; empty where there is none."""
    _, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        loaded = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
