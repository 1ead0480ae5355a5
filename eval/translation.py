"""Translations against references: BLEU, chrF and COMET by direction, with a paired bootstrap.

What CPO's recipe needs: "Contrastive Preference Optimization: Pushing the Boundaries of LLM
Performance in Machine Translation", arXiv 2401.08417. BLEU and chrF are sacrebleu's, with the
signatures that make them comparable; a metric by which pairs were built must not be the headline.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from alignment.cli import UserError, check_counts, parse, run, tell
from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, shorten
from alignment.llm.rows import Reject, Row, prompt_of, response_of
from eval.answering import AnswerOptions, answered, rejects_of, unanswered
from eval.stats import ENOUGH_JUDGED, bootstrap_mean, check_seed


@dataclass(kw_only=True)
class Options(AnswerOptions):
    """Options of `alignment eval translation`."""

    references: Path = field(
        metadata={"help": "rows with `prompt`, `reference`, perhaps `source` and `direction`"}
    )
    output: Path | None = field(
        default=None, metadata={"help": "folder for the translations of models that are asked"}
    )
    temperature: float = field(default=0.0, metadata={"help": "of their translations; greedy"})
    comet: tuple[str, ...] = field(
        default=(), metadata={"help": "COMET models: names on the Hub or checkpoints"}
    )
    batch_size: int = field(default=16, metadata={"help": "segments that COMET scores together"})
    resamples: int = field(default=1000, metadata={"help": "resamples of the paired bootstrap"})
    seed: int = field(default=12345, metadata={"help": "of the bootstrap; 12345 is sacrebleu's"})
    allow_missing: bool = field(
        default=False,
        metadata={"help": f"report although fewer than {ENOUGH_JUDGED:.0%} are translated"},
    )
    json: str | None = field(
        default=None, metadata={"help": "file for the report as JSON; `-` is standard output"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.answers or self.model):
            raise ValueError("give `--answers` (files of translations) or `--model` to be asked")
        if self.output is None and (self.model or self.baseline_model):
            raise ValueError("`--output` is needed: the folder for what the model translates")
        check_counts(self, "resamples", "batch_size")
        check_seed(self)


Scorer: TypeAlias = "Callable[[list[dict[str, str]]], Sequence[float]]"


class Segment(NamedTuple):
    """What is to be translated.

    Attributes:
        prompt: What models are asked, by which translations are found.
        source: The text itself.
        references: Its translations.
        direction: Such as `en-de`; empty where it is not told.
    """

    prompt: str
    source: str
    references: tuple[str, ...]
    direction: str


def read_segments(path: Path) -> list[Segment]:
    """The segments of a file.

    Raises:
        UserError: A row has no prompt or no reference, or what is no text; it is named.
    """
    segments = []
    for name, row in read_rows(path):
        try:
            prompt = as_text(prompt_of(row))
        except Reject as error:
            raise UserError(f"{name}: {error}") from None
        reference = row.get("reference")
        references = [reference] if isinstance(reference, str) else reference
        texts = references if isinstance(references, list) else []
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{name}: `reference` must be a translation or a list of them")
        source, direction = row.get("source") or prompt, row.get("direction") or ""
        for column, value in (("source", source), ("direction", direction)):
            if not isinstance(value, str):
                raise UserError(f"{name}: `{column}` must be text or null, got `{value}`")
        segments.append(Segment(prompt, source, tuple(texts), direction))
    if not segments:
        raise UserError(f"{path}: the file holds no references")
    return segments


def read_translations(path: Path, segments: Sequence[Segment]) -> list[str | None]:
    """The translations of a file in the order of the segments, found by prompt.

    A prompt that comes back is translated as often, in the same order.

    Returns:
        (n,) the translations; None for all segments of a prompt to which the model gave none, or
        too few, by the rejects beside the file.

    Raises:
        UserError: Segments lack translations for no such reason, or translations lack segments.
    """
    found: dict[str, list[str]] = {}
    for name, row in read_rows(path):
        try:
            found.setdefault(as_text(prompt_of(row)), []).append(_translation(row))
        except Reject as error:
            raise UserError(f"{name}: {error}") from None
    wanted: dict[str, int] = {}
    for segment in segments:
        wanted[segment.prompt] = wanted.get(segment.prompt, 0) + 1
    few = {prompt for prompt, count in wanted.items() if len(found.get(prompt, ())) < count}
    refused = few & unanswered(path)
    lacking = [
        prompt
        for prompt, count in wanted.items()
        if len(found.get(prompt, ())) != count and prompt not in refused
    ]
    foreign = [prompt for prompt in found if prompt not in wanted]
    unsaid = f"{rejects_of(path)} does not say why"
    for prompts, told in (
        (lacking, f"have no translation, or not as many as references, and {unsaid}"),
        (foreign, "have no reference"),
    ):
        if prompts:
            raise UserError(
                f"{path}: {len(prompts)} prompts {told}; the first is `{shorten(prompts[0])}`"
            )
    left = {prompt: iter(texts) for prompt, texts in found.items()}
    return [None if s.prompt in refused else next(left[s.prompt]) for s in segments]


def lexical(
    systems: Mapping[str, Sequence[str]],
    segments: Sequence[Segment],
    seed: int,
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """BLEU and chrF of several systems, the first of which the others are tested against.

    Args:
        systems: Name -> (n,) translations.
        segments: (n,) of one direction; its target language chooses BLEU's tokenizer.
        seed: Seed of the bootstrap.
        resamples: Resamples of the bootstrap.

    Returns:
        Metric -> `signature`, and `systems`: name -> `score`, `ci` (95%) and, for all but the
        first, `p_value` of sacrebleu's paired bootstrap.

    Raises:
        UserError: sacrebleu, or a tokenizer that it needs, is not installed.
    """
    library = _imported("sacrebleu", "translation")
    significance = _imported("sacrebleu.significance", "translation")
    target = segments[0].direction.partition("-")[2]
    most = max(len(segment.references) for segment in segments)
    # sacrebleu takes the n-th references of all segments together, None where there are fewer.
    streams = [
        [s.references[n] if n < len(s.references) else None for s in segments] for n in range(most)
    ]
    try:
        metrics = {
            "BLEU": library.metrics.BLEU(trg_lang=target, references=streams),
            "chrF2": library.metrics.CHRF(references=streams),
        }
    except (ImportError, RuntimeError, SystemExit) as error:
        raise UserError(f"BLEU for `{target}` needs a tokenizer: {shorten(error)}") from None
    os.environ["SACREBLEU_SEED"] = str(seed)  # the only way in
    test = significance.PairedTest(
        [*systems.items()], metrics, references=None, test_type="bs", n_samples=resamples
    )
    signatures, scores = test()
    return {
        name: {
            "signature": str(signatures[name]),
            "systems": dict(zip(systems, map(_told, scores[name]), strict=True)),
        }
        for name in metrics
    }


def neural(
    scorer: Scorer,
    systems: Mapping[str, Sequence[str]],
    segments: Sequence[Segment],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """The mean of a model's scores of segments, with a paired bootstrap over them.

    The first reference of a segment counts.

    Args:
        scorer: Scores rows of `src`, `mt` and `ref`.
        systems: As for `lexical`.
        segments: As for `lexical`.
        seed: As for `lexical`.
        resamples: As for `lexical`.

    Returns:
        As one metric of `lexical`; beside a p-value stand `difference` and `difference_ci`.
    """
    scores = {}
    for name, translations in systems.items():
        rows = [
            {"src": segment.source, "mt": translation, "ref": segment.references[0]}
            for segment, translation in zip(segments, translations, strict=True)
        ]
        scores[name] = np.asarray(scorer(rows), np.float64)
    first, *others = scores
    told: dict[str, dict[str, Any]] = {
        name: {"score": float(own.mean()), "ci": bootstrap_mean(own, seed, resamples)}
        for name, own in scores.items()
    }
    for name in others:
        told[name] |= paired_bootstrap(scores[name] - scores[first], seed, resamples)
    return {"signature": f"bs:{resamples}|seed:{seed}", "systems": told}


def load_comet(model: str, batch_size: int) -> Scorer:
    """A COMET model as a function of segments.

    Args:
        model: Its name on the Hub, or its checkpoint.
        batch_size: Segments scored together.

    Raises:
        UserError: COMET is not installed, or has no such model.
    """
    library = _imported("comet", "comet")
    try:
        path = model if Path(model).is_file() else library.download_model(model)
        loaded = library.load_from_checkpoint(path)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"COMET has no model {model}: {shorten(error)}") from None
    gpus = int(_imported("torch", "comet").cuda.is_available())

    def score(rows: list[dict[str, str]]) -> Sequence[float]:
        scores: Sequence[float] = loaded.predict(rows, batch_size=batch_size, gpus=gpus).scores
        return scores

    return score


def paired_bootstrap(differences: Any, seed: int, resamples: int) -> dict[str, Any]:
    """Whether a mean difference over segments is more than chance.

    The p-value is sacrebleu's: how often a resampled difference is as far from its own mean as the
    difference is from zero.

    Args:
        differences: (n,) score of a system minus that of the baseline, for each segment.
        seed: Seed of the resampling.
        resamples: How often the segments are drawn anew.
    """
    data = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(data, data.size).mean() for _ in range(resamples)])
    beyond = int((np.abs(means - means.mean()) > abs(data.mean())).sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "p_value": (beyond + 1) / (resamples + 1),
        "difference": float(data.mean()),
        "difference_ci": (float(low), float(high)),
    }


def translated(
    segments: Sequence[Segment],
    systems: Mapping[Path, Sequence[str | None]],
    *,
    allow_missing: bool = False,
) -> dict[str, list[int]]:
    """The segments of each direction that all systems have translated.

    Args:
        segments: (n,) what is to be translated.
        systems: File -> (n,) translations, None where there is none.
        allow_missing: Whether some are enough.

    Returns:
        Direction -> indices of segments.

    Raises:
        UserError: Of a direction fewer are translated than `ENOUGH_JUDGED` demands, or none.
    """
    found: dict[str, list[int]] = {segment.direction: [] for segment in segments}
    for i, segment in enumerate(segments):
        if all(texts[i] is not None for texts in systems.values()):
            found[segment.direction].append(i)
    for direction, rows in found.items():
        n = sum(segment.direction == direction for segment in segments)
        if not rows or (len(rows) < ENOUGH_JUDGED * n and not allow_missing):
            files = ", ".join(str(rejects_of(path)) for path in systems if None in systems[path])
            where = f" of `{direction}`" if direction else ""
            raise UserError(
                f"only {len(rows)} of {n} segments{where} are translated by all; see {files}, or "
                + ("pass `--allow-missing`" if rows else "leave the direction out")
            )
    return found


def report(options: Options) -> dict[str, Any]:
    """All metrics by direction, and their means over directions.

    Raises:
        UserError: Files do not fit together, too little is translated, or a metric cannot be had.
    """
    segments = read_segments(options.references)
    if options.output is not None:
        options = answered(options, options.references, options.output)
    files = [*([options.baseline] if options.baseline else []), *options.answers]
    systems = {path: read_translations(path, segments) for path in files}
    if len(systems) < len(files):
        raise UserError("a file of translations is given twice")
    whole = translated(segments, systems, allow_missing=options.allow_missing)
    scorers = {model: load_comet(model, options.batch_size) for model in options.comet}
    drawn = (options.seed, options.resamples)
    directions: dict[str, dict[str, Any]] = {}
    for direction, rows in whole.items():
        part = [segments[i] for i in rows]
        own = {str(path): [str(texts[i]) for i in rows] for path, texts in systems.items()}
        metrics = lexical(own, part, *drawn)
        metrics |= {name: neural(score, own, part, *drawn) for name, score in scorers.items()}
        if options.baseline is None:
            _drop_tests(metrics)
        unscored = sum(segment.direction == direction for segment in segments) - len(part)
        directions[direction] = {"n": len(part), "unanswered": unscored, "metrics": metrics}
    return {
        "directions": directions,
        "average": {
            metric: {
                name: fmean(
                    made["metrics"][metric]["systems"][name]["score"]
                    for made in directions.values()
                )
                for name in map(str, systems)
            }
            for metric in next(iter(directions.values()))["metrics"]
        },
        "baseline": None if options.baseline is None else str(options.baseline),
    }


def main(argv: list[str]) -> None:
    """`alignment eval translation`."""
    options = parse(Options, argv, "alignment eval translation", __doc__)
    made = report(options)
    tell(made, options.json, lines(made))


def lines(made: Mapping[str, Any]) -> Iterator[str]:
    """A report to read."""
    for direction, part in made["directions"].items():
        without = part["unanswered"]
        left_out = f", {without} left out without a translation" if without else ""
        yield f"{direction or 'all'}: {part['n']} segments{left_out}"
        for metric, told in part["metrics"].items():
            for name, own in told["systems"].items():
                low, high = own["ci"]
                p = f", p = {own['p_value']:.4f}" if "p_value" in own else ""
                yield f"  {metric} {own['score']:.4g} [{low:.4g}, {high:.4g}]{p}  {name}"
            yield f"  {told['signature']}"
    if len(made["directions"]) > 1:
        for metric, systems in made["average"].items():
            for name, score in systems.items():
                yield f"mean over directions: {metric} {score:.4g}  {name}"


def _translation(row: Row) -> str:
    return "" if row.get("response") == "" else response_of(row)


def _told(result: Any) -> dict[str, Any]:
    """A result of sacrebleu's paired test."""
    ends = (float(result.mean - result.ci), float(result.mean + result.ci))
    told = {"score": float(result.score), "ci": ends}
    return told if result.p_value is None else {**told, "p_value": float(result.p_value)}


def _drop_tests(metrics: Mapping[str, Any]) -> None:
    """Without a baseline the first file is none: its tests are not reported."""
    for metric in metrics.values():
        for own in metric["systems"].values():
            for name in ("p_value", "difference", "difference_ci"):
                own.pop(name, None)


def _imported(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name} cannot be imported ({shorten(error)}); install the extra `{extra}`, "
            "see docs/evaluation.md"
        ) from None


if __name__ == "__main__":
    run(main)
