"""Data sets as alignment-handbook and its descendants name them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from alignment.cli import UserError
from alignment.migration.draft import Draft


def move_data(draft: Draft) -> None:
    """Turns `dataset_mixer` or `dataset_mixture` into the keys of a recipe.

    Raises:
        UserError: The mixture is not laid out as the handbook has it.
    """
    if "dataset_mixer" in draft.left:
        _mixer(draft)
    if "dataset_mixture" in draft.left:
        _mixture(draft)


def _mixer(draft: Draft) -> None:
    """`{name: share of its rows}`, beside `dataset_splits` and `dataset_configs`."""
    mixer = draft.take("dataset_mixer")
    if not isinstance(mixer, dict) or not mixer:
        raise UserError("`dataset_mixer` must hold `name: share` lines")
    splits = _listed(draft.take("dataset_splits") or ["train", "test"])
    configs = _listed(draft.take("dataset_configs") or [None] * len(mixer))
    if len(configs) != len(mixer):
        raise UserError(f"`dataset_configs` names {len(configs)} of {len(mixer)} data sets")
    trained = [split for split in splits if "train" in split] or ["train"]
    tested = [split for split in splits if "train" not in split]
    named = list(product(zip(mixer, configs, strict=True), trained))
    sources = [
        _source(draft, name, config, split, share)
        for ((name, config), split), share in zip(named, mixer.values(), strict=False)
    ]
    for (name, _), split in named[len(mixer) :]:
        draft.lost[f"`{name}` ({split})"] = (
            "the handbook's code deals the shares out to the first splits, one to each, and does "
            "not train on the others; name it under `datasets` to train on it here"
        )
    told = "`dataset_mixer`, `dataset_splits` and `dataset_configs` there"
    _put(draft, sources, f"{told}; a share is the first rows, here as there.")
    if not tested:
        return
    if len(sources) > 1:
        _evaluate_nothing(draft, f"the splits {', '.join(tested)} of several sets")
        return
    draft.put("dataset_test_split", tested[0])
    for split in tested[1:]:
        draft.lost[f"`{sources[0]['path']}` ({split})"] = "one split is evaluated on"


def _mixture(draft: Draft) -> None:
    """`{datasets: [{id, config, split, columns, weight}], test_split_size, seed}`."""
    mixture = draft.take("dataset_mixture")
    sets = mixture.get("datasets") if isinstance(mixture, dict) else None
    sets = sets if isinstance(sets, list) else []
    if not sets or not all(isinstance(each, dict) and "id" in each for each in sets):
        raise UserError("`dataset_mixture` must hold `datasets`, each with an `id`")
    sources = [
        _source(draft, s["id"], s.get("config"), s.get("split", "train"), s.get("weight"))
        for s in sets
    ]
    _put(draft, sources, "`dataset_mixture` there; a `weight` below 1 takes the first rows.")
    columns = sorted({column for s in sets for column in s.get("columns") or ()})
    if columns:
        draft.unneeded[f"`columns` ({', '.join(columns)})"] = "columns are read by name"
    if mixture.get("seed") is not None:
        draft.unneeded[f"`dataset_mixture.seed` ({mixture['seed']})"] = "`seed` orders the rows"
    if mixture.get("test_split_size") is not None:
        draft.put("test_split_size", mixture["test_split_size"])
    else:
        _evaluate_nothing(draft, "other splits")


def _source(draft: Draft, name: str, config: Any, split: str, share: Any) -> dict[str, Any]:
    source = {"path": name, "name": config, "split": _slice(draft, name, split, share)}
    return {key: value for key, value in source.items() if value is not None}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _slice(draft: Draft, name: str, split: str, share: Any) -> str:
    """The split, cut to a share of its rows in whole percent."""
    if share is None or share == 1:
        return split
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise UserError(f"the share of `{name}` is `{share}`; it must be a number")
    percent = round(share * 100)
    if abs(percent - share * 100) > 1e-9 or not 0 < percent < 100:
        draft.lost[f"`{name}` ({share})"] = "a slice takes whole percent from 1 to 99; it is whole"
        return split
    return f"{split}[:{percent}%]"


def _put(draft: Draft, sources: Sequence[dict[str, Any]], comment: str) -> None:
    if len(sources) > 1:
        draft.put("datasets", list(sources), comment)
        return
    (source,) = sources
    draft.put("dataset_name", source["path"], comment)
    if "name" in source:
        draft.put("dataset_config", source["name"])
    draft.put("dataset_train_split", source["split"])


def _evaluate_nothing(draft: Draft, what: str) -> None:
    """A mixture is evaluated on a file of its own, or on a part held out."""
    strategy = next((k for k in ("eval_strategy", "evaluation_strategy") if k in draft.left), None)
    remedy = "name a set by `eval_dataset_name`, or hold rows out by `test_split_size`"
    if strategy is not None and draft.left[strategy] not in ("no", False):
        draft.lose(strategy, f"there is nothing to evaluate on, not {what}: {remedy}")
        draft.put("eval_strategy", "no")
        if draft.left.get("do_eval"):
            draft.lose("do_eval", "see above")
    elif draft.left.get("do_eval"):
        draft.lose("do_eval", f"there is nothing to evaluate on, not {what}: {remedy}")
