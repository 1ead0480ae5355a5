"""The data that methods learn from: all of it made from the same prompts and the same samples.

Rewards, flags and words of fault come from the world, which knows every right answer. Each kind of
data is a file in a format of docs/data_format.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rapidfuzz.distance import Levenshtein

from alignment.core.rows import read_rows
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Request
from alignment.llm.rows import Output, prompt_of
from alignment.quickstart import world

Row: TypeAlias = "dict[str, Any]"

WEAK, STRONG = 0.6, 0.95
"""How often a labeller is true about two answers of which one is right."""
NOTHING_WRONG = "FLAWLESS"
"""How the judge begins who finds no fault, as `alignment build judgments` asks for it."""


@dataclass(frozen=True)
class Samples:
    """Answers of several writers to the same prompts.

    Attributes:
        own: Prompt -> answers of the model that training starts from, drawn anew each time.
        teacher: Prompt -> answers of the larger model.
        kind: Prompt -> answers of the simulator that is told to be careful.
        unkind: Prompt -> answers of the simulator that is told to be careless.
        plain: Prompt -> answers of the simulator that is told neither.
        seed: Of what is drawn here.
    """

    own: Mapping[str, Sequence[str]]
    teacher: Mapping[str, Sequence[str]]
    kind: Mapping[str, Sequence[str]]
    unkind: Mapping[str, Sequence[str]]
    plain: Mapping[str, Sequence[str]]
    seed: int

    def draws(self, name: str) -> random.Random:
        """Random numbers of one kind of data."""
        return random.Random(f"{name} {self.seed}")


def read_answers(path: Path) -> dict[str, list[str]]:
    """Prompt -> its answers, from a file that `alignment generate` wrote; descriptions left out."""
    found: dict[str, list[str]] = {}
    for _, row in read_rows(path):
        prompt = as_text(prompt_of(row)).partition(" (")[0]
        found.setdefault(prompt, []).append(row["response"])
    return found


def reward(prompt: str, answer: str) -> float:
    """1 for a right answer; for another half of its likeness to the nearest right one."""
    if world.is_right(prompt, answer):
        return 1.0
    return max(Levenshtein.normalized_similarity(answer, r) for r in world.accepted(prompt)) / 2


def flagged(prompt: str, answer: str) -> list[tuple[int, int]]:
    """Characters of an answer that the nearest right one lacks or has otherwise, `[start, end)`.

    Where something is missing, the character after the gap is flagged, or the last one.
    """
    spans = []
    for edit in Levenshtein.opcodes(answer, world.revision(prompt, answer)):
        if edit.tag == "equal":
            continue
        start = min(edit.src_start, len(answer) - 1)
        spans.append((start, max(edit.src_end, start + 1)))
    return spans


def first_answers(samples: Samples) -> Iterator[Row]:
    """One answer to each prompt, to be revised or judged."""
    for prompt, answers in samples.own.items():
        if answers[0]:
            yield {"prompt": _asked(prompt), "response": answers[0], "model": "start"}


def teacher_answers(samples: Samples) -> Iterator[Row]:
    """One answer of the teacher to each prompt."""
    for prompt, answers in samples.teacher.items():
        yield {"prompt": _asked(prompt), "response": answers[0], "model": "teacher"}


def groups(samples: Samples) -> Iterator[Row]:
    """All samples of a prompt with their rewards, where these are not all equal."""
    for prompt, answers in samples.own.items():
        rewards = [reward(prompt, answer) for answer in answers]
        if all(answers) and len(set(rewards)) > 1:
            responses = [_said(answer) for answer in answers]
            yield {"prompt": _asked(prompt), "responses": responses, "rewards": rewards}


def sides(samples: Samples) -> Iterator[Row]:
    """A wrong sample against the other samples of its prompt, right or not."""
    for prompt, answers in samples.own.items():
        wrong = [i for i, answer in enumerate(answers) if not world.is_right(prompt, answer)]
        others = [answer for i, answer in enumerate(answers) if wrong and i != wrong[0]]
        if wrong and all(answers) and answers[wrong[0]] not in others:
            texts = [*others, answers[wrong[0]]]
            roles = [1] * len(others) + [-1]
            yield {
                "prompt": _asked(prompt),
                "responses": [_said(text) for text in texts],
                "roles": roles,
            }


def aspects(samples: Samples) -> Iterator[Row]:
    """All samples of a prompt, judged for being right and, by another judge, for being short."""
    for row in groups(samples):
        lengths = [len(response[0]["content"]) for response in row["responses"]]
        judged = zip(row.pop("rewards"), lengths, strict=True)
        yield {**row, "aspects": [[reward, -float(length)] for reward, length in judged]}


def judged_pairs(samples: Samples) -> Iterator[Row]:
    """Two samples of the model, ordered by a judge that is always true; equals make no pair."""
    yield from _labelled(samples.own, 1.0, samples.draws("judged"))


def stronger_pairs(samples: Samples) -> Iterator[Row]:
    """The teacher's answer against the model's own, unseen by any judge."""
    for prompt, answers in samples.own.items():
        yield from _pair(prompt, samples.teacher[prompt][0], answers[0])


def worse_pairs(samples: Samples) -> Iterator[Row]:
    """A flawed answer against one that is flawed twice: even the chosen one is never right."""
    rng = samples.draws("worse")
    for prompt in samples.own:
        for _ in range(8):
            chosen = world.flaw(prompt, rng)
            rejected = spoilt(chosen, rng)
            if not world.is_right(prompt, rejected) and rejected != chosen:
                yield from _pair(prompt, chosen, rejected)
                break


def spoilt(answer: str, rng: random.Random) -> str:
    """An answer without one of its characters, or with a letter doubled where it has but one."""
    place = rng.randrange(len(answer))
    return answer[:place] + answer[place + 1 :] if len(answer) > 1 else answer * 2


def provenance_pairs(samples: Samples) -> Iterator[Row]:
    """What was written under the careful description against the careless: RLCD, no labels."""
    for prompt, answers in samples.kind.items():
        yield from _pair(prompt, answers[0], samples.unkind[prompt][0])


def weakly_labelled_pairs(samples: Samples) -> Iterator[Row]:
    """Two answers of the plain simulator, ordered by a labeller that is right in 60% of cases."""
    yield from _labelled(samples.plain, WEAK, samples.draws("weak"))


def strongly_labelled_pairs(samples: Samples) -> Iterator[Row]:
    """Two answers of the plain simulator, ordered by a labeller that is right in 95% of cases."""
    yield from _labelled(samples.plain, STRONG, samples.draws("strong"))


def labelled(samples: Samples) -> Iterator[Row]:
    """Single answers with a thumb up or down."""
    for prompt, answers in samples.own.items():
        for answer in dict.fromkeys(answers[:2]):
            if answer:
                yield {**_single(prompt, answer), "label": world.is_right(prompt, answer)}


def spans(samples: Samples) -> Iterator[Row]:
    """Single answers with their wrong characters flagged."""
    for prompt, answers in samples.own.items():
        for answer in dict.fromkeys(answers[:2]):
            if answer:
                yield {**_single(prompt, answer), "spans": flagged(prompt, answer)}


def segments(samples: Samples) -> Iterator[Row]:
    """Single answers in words, each with score 1 where it is flagged; higher is worse."""
    for row in spans(samples):
        text = row["completion"][0]["content"]
        yield {
            "prompt": row["prompt"],
            "completion": row["completion"],
            "segments": [
                {
                    "start": start,
                    "end": end,
                    "score": float(any(a < end and start < b for a, b in row["spans"])),
                }
                for start, end in _words(text)
            ],
        }


def whole_segments(samples: Samples) -> Iterator[Row]:
    """Single answers of one segment: score 0 where the answer is right, 1 elsewhere."""
    for row in labelled(samples):
        text = row["completion"][0]["content"]
        score = 0.0 if row["label"] else 1.0
        yield {
            "prompt": row["prompt"],
            "completion": row["completion"],
            "segments": [{"start": 0, "end": len(text), "score": score}],
        }


KINDS: Mapping[str, Callable[[Samples], Iterable[Row]]] = {
    "first": first_answers,
    "teacher": teacher_answers,
    "groups": groups,
    "sides": sides,
    "aspects": aspects,
    "judged_pairs": judged_pairs,
    "stronger_pairs": stronger_pairs,
    "worse_pairs": worse_pairs,
    "provenance_pairs": provenance_pairs,
    "weakly_labelled_pairs": weakly_labelled_pairs,
    "strongly_labelled_pairs": strongly_labelled_pairs,
    "labelled": labelled,
    "spans": spans,
    "segments": segments,
    "whole_segments": whole_segments,
}
"""Kind of data -> what makes it of samples."""


def write(samples: Samples, folder: Path) -> None:
    """Writes every kind of data to a file of its name."""
    for name, make in KINDS.items():
        with Output(folder / f"{name}.jsonl") as file:
            for row in make(samples):
                file.write(row)


def judge_in_words(request: Request) -> str:
    """Answers the prompt of `alignment build judgments`: says what an answer should have been."""
    shown = sections(as_text(request.prompt))
    prompt, answer = shown["task"], shown["answer"]
    return NOTHING_WRONG if world.is_right(prompt, answer) else judgment(prompt, answer)


def judgment(prompt: str, answer: str) -> str:
    """What the judge says of a wrong answer."""
    return f"no: {world.revision(prompt, answer)}"


def hinted(count: int, seed: int) -> Iterator[Row]:
    """Demonstrations for the simulator: as careful or careless as their prompt says, or plain."""
    rng = random.Random(f"hinted {seed}")
    prompts = world.prompts("train", count, seed)
    for index, prompt in enumerate(prompts):
        hint, flaws = HINTS[index % len(HINTS)]
        answer = world.accepted(prompt)[0] if rng.random() > flaws else world.flaw(prompt, rng)
        yield {
            "prompt": _asked(f"{prompt}{hint}"),
            "completion": _said(answer + rng.choice(("", "."))),
        }


CAREFUL, CARELESS = " (careful)", " (careless)"
HINTS = ((CAREFUL, 0.05), (CARELESS, 0.9), ("", world.FLAWED_SHARE))
"""Description -> the share of demonstrations under it that are flawed."""


def _labelled(
    answers: Mapping[str, Sequence[str]], skill: float, rng: random.Random
) -> Iterator[Row]:
    for prompt, (first, second, *_) in answers.items():
        rights = world.is_right(prompt, first), world.is_right(prompt, second)
        if rights[0] == rights[1]:
            continue
        better, worse = (first, second) if rights[0] else (second, first)
        if rng.random() >= skill:
            better, worse = worse, better
        yield from _pair(prompt, better, worse)


def _pair(prompt: str, chosen: str, rejected: str) -> Iterator[Row]:
    if chosen.strip() and rejected.strip() and chosen.strip() != rejected.strip():
        yield {"prompt": _asked(prompt), "chosen": _said(chosen), "rejected": _said(rejected)}


def _single(prompt: str, answer: str) -> Row:
    return {"prompt": _asked(prompt), "completion": _said(answer)}


def _asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _words(text: str) -> Iterator[tuple[int, int]]:
    """`[start, end)` of each word with the space before it; they cover the text."""
    start = 0
    while start < len(text):
        end = text.find(" ", start + 1)
        end = len(text) if end < 0 else end
        yield start, end
        start = end
