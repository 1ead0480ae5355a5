"""The model card: a README.md beside the weights in the Hub's format, true as of its save."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from alignment.core.rows import is_local
from alignment.trainers.record import record
from alignment.trainers.verdicts import alarms, verdicts

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

CARD = "README.md"
PROJECT = "contrastive-alignment"
KEY = PROJECT.replace("-", "_")
"""The key of the front matter under which what only this project knows stands."""

_MARKS = re.compile(r"[\\`|<>*_\[\]]")
_TEMPLATE = Path(__file__).with_name("card.md")
_RESULTS = {
    "loss": "loss",
    "rewards/accuracies": "accuracy of implicit rewards",
    "rewards/margins": "margin of implicit rewards",
    "logratios/chosen": "log-ratio of chosen responses, nats",
    "logratios/rejected": "log-ratio of rejected responses, nats",
}
"""Metrics that the card shows, in its words."""


def is_own(path: Path) -> bool:
    """Whether a card may be replaced: it is that of a model of ours, or there is none."""
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"\n{KEY}:" in text and "\n  objective:" in text  # cards of data have the key, too


def step_of_weights(trainer: GroupTrainer) -> int:
    """The step that the trainer's weights are of: its last one, or the best that it ended with."""
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return int(state.best_global_step if is_best and not trainer.is_in_train else state.global_step)


def write_card(
    trainer: GroupTrainer, folder: Path, *, name: str | None = None, tags: Sequence[str] = ()
) -> None:
    """Writes the card of a run, unless the folder has a README of its own.

    Args:
        trainer: Of the run.
        folder: Where the weights lie.
        name: Its title; the name of the output folder by default.
        tags: Further tags.
    """
    if not is_own(folder / CARD):
        return
    title = name or Path(trainer.args.output_dir).resolve().name
    step = step_of_weights(trainer)
    history = [entry for entry in trainer.state.log_history if entry["step"] <= step]
    text = card_text({**record(trainer), "steps": step}, history, title, tags)
    (folder / CARD).write_text(text, encoding="utf-8")


def card_text(
    run: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    name: str,
    tags: Sequence[str] = (),
) -> str:
    """The card of a run.

    Args:
        run: As `record` gives it.
        history: What training logged, oldest first.
        name: Its title.
        tags: Further tags.
    """
    results = list(_results(history))
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"text": _text, "code": _code}
    body = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        run=run,
        papers=[f"https://arxiv.org/abs/{number}" for number in run["objective"]["arxiv"]],
        training=list(_training(run)),
        results=[(_RESULTS[metric], values) for metric, *values in results],
        warnings=[*map(str, (*verdicts(history), *alarms(history)))],
    )
    data = _metadata(run, results, name, tags).to_yaml(line_break="")
    return str(ModelCard(f"---\n{data}\n---\n\n{body}\n").content)


def _metadata(
    run: Mapping[str, Any],
    results: Sequence[tuple[str, Any, Any, Any]],
    name: str,
    tags: Sequence[str],
) -> ModelCardData:
    start, data = run["model"]["start"], run["data"]
    papers = [f"arxiv:{number}" for number in run["objective"]["arxiv"]]
    evaluated = ", ".join(data["eval"] or data["train"]) or "held-out data"
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=evaluated,
            dataset_name=evaluated,
            metric_type=metric,
            metric_name=_RESULTS[metric],
            metric_value=value,
        )
        for metric, _, _, value in results
        if value is not None
    ]
    card = ModelCardData(
        base_model=None if start is None or Path(start).is_dir() else start,
        datasets=[each for each in data["train"] if not is_local(each)] or None,
        library_name="transformers" if run["model"]["adapter"] is None else "peft",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys([PROJECT, run["objective"]["name"], *papers, *tags])),
        model_name=name if measured else None,
        eval_results=measured or None,
    )
    card[KEY] = {
        "version": run["version"],
        "objective": run["objective"]["method"],
        **{key: run["run"][key] for key in ("batch_size", "seed")},
        **{key: run[key] for key in ("steps", "tokens")},
    }
    return card


def _results(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Metric, and its value in the first log, in the last one, and in the last evaluation."""
    logs = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    for metric in _RESULTS:
        ends = [entry[metric] for entry in logs if metric in entry]
        evaluated = evaluations[-1].get(f"eval_{metric}") if evaluations else None
        if ends or evaluated is not None:
            yield metric, ends[0] if ends else None, ends[-1] if ends else None, evaluated


def _training(run: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What was done, in words."""
    data, how, machine = run["data"], run["run"], run["machine"]
    yield "data", ", ".join(data["train"]) or "rows in memory"
    yield "groups trained on", f"{data['kept']} with {data['responses']} responses"
    for reason, count in data["rejected"].items():
        yield f"rows rejected: {reason}", count
    yield "steps", f"{run['steps']} of {run['steps_planned']}, {how['batch_size']} groups each"
    if run["tokens"] is not None:
        yield "tokens computed", f"{run['tokens']:,}"
    if run["seconds"] is not None:
        yield "time of the steps", f"{run['seconds']:.0f} s"
    yield "machine", f"{machine['device']}, {machine['cores']} cores, {how['engine']}"
    yield "precision", machine["precision"]
    yield "seed", how["seed"]


def _text(value: object) -> str:
    """Markdown that says what the value is, in one line, and starts no cell, code or element."""
    return _MARKS.sub(r"\\\g<0>", " ".join(str(value).split()))


def _code(value: object) -> str:
    """What stands in a code span of a table."""
    return " ".join(str(value).replace("`", "'").replace("|", "\\|").split())
