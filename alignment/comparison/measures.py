"""What a trained model does on held-out prompts, beside what it did at the start.

All of it is computed from log-probs, without sampling noise, but for the answers themselves:

- right: the probability of a right answer, which is the accuracy of samples at temperature 1 in
  the limit of many; a prompt of the world has two right answers, so it is their sum;
- chosen, rejected: by how much the log-prob of the right answer nearest to a wrong sample of the
  start has changed, and that of the sample;
- kl: KL(model || start) in nats for each answer, on the model's own answers: at every token the sum
  over the whole vocabulary, which has less variance than the ratio of the drawn token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignment.cli import UserError
from alignment.comparison import material
from alignment.comparison.methods import Method
from alignment.core.groups import JUDGED_PROMPT
from alignment.core.rows import read_rows
from alignment.llm.model import LocalModel
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.rows import Output, prompt_of
from alignment.quickstart import world
from alignment.stages import write_whole

BATCH = 128
CUT_THRESHOLD = 1.1
"""CUT's default."""
THRESHOLDS = (1.0, CUT_THRESHOLD, 1.2, 1.5, 2.0, 3.0, 5.0)


class Text(NamedTuple):
    """An answer to a prompt, as a model reads it.

    Attributes:
        prompt: The instruction.
        answer: The answer, which ends with the end of a turn.
    """

    prompt: str
    answer: str


class Scorer:
    """Log-probs of answers under a model.

    Args:
        folder: Of the model or adapter.
        prefix: What stands before every answer.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.local = LocalModel(str(folder), "cpu")
        self.prefix = prefix

    def logps(self, texts: Sequence[Text]) -> list[float]:
        """The log-prob of each whole answer, its end included, in nats."""
        return [
            float(logps.gather(-1, ids[:, None]).sum()) for logps, ids in self.distributions(texts)
        ]

    @torch.inference_mode()
    def distributions(self, texts: Sequence[Text]) -> Iterable[tuple[Tensor, Tensor]]:
        """For each text (n, V) log-probs before its n answer tokens, and these tokens (n,)."""
        for start in range(0, len(texts), BATCH):
            rows = [self._ids(text) for text in texts[start : start + BATCH]]
            width = max(len(prompt) + len(answer) for prompt, answer in rows)
            pad = [0] * width
            ids = torch.tensor([(prompt + answer + pad)[:width] for prompt, answer in rows])
            # Padding on the right: no token of a text sees it, so it needs no mask.
            logits = self.local.model(input_ids=ids).logits.float()
            for row, (prompt, answer) in enumerate(rows):
                span = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
                yield logits[row, span].log_softmax(-1), torch.tensor(answer)

    def _ids(self, text: Text) -> tuple[list[int], list[int]]:
        tokenizer = self.local.tokenizer
        opened = opening(tokenizer, text.prompt) + self.prefix
        prompt = tokenizer(opened, add_special_tokens=False).input_ids
        answer = tokenizer(text.answer, add_special_tokens=False).input_ids
        return prompt, [*answer, tokenizer.eos_token_id]


def opening(tokenizer: Any, prompt: str) -> str:
    """A prompt in the chat template, up to where the answer begins."""
    text = tokenizer.apply_chat_template(
        as_messages(prompt), add_generation_prompt=True, tokenize=False
    )
    return str(text)


def open_answers(model: Path, prompts: Path, output: Path, prefix: str) -> None:
    """Writes prompts as text that ends with the beginning of an answer.

    Args:
        model: Whose chat template it is.
        prompts: The file of prompts.
        output: The file to write.
        prefix: How every answer begins.
    """
    tokenizer = LocalModel(str(model), "cpu").tokenizer
    with Output(output) as file:
        for _, row in read_rows(prompts):
            file.write({"prompt": opening(tokenizer, as_text(prompt_of(row))) + prefix})


def read_texts(path: Path) -> list[Text]:
    """The answers in a file that `alignment generate` wrote."""
    return [Text(as_text(prompt_of(row)), row["response"]) for _, row in read_rows(path)]


def right_answers(prompts: Iterable[str]) -> list[Text]:
    """Every right answer to each prompt, those of a prompt one after the other."""
    return [Text(prompt, answer) for prompt in prompts for answer in world.accepted(prompt)]


def contrast(before: Iterable[Text]) -> tuple[list[Text], list[Text]]:
    """Right and wrong sides: for each wrong answer the right one nearest to it, and itself."""
    wrong = [text for text in before if not world.is_right(*text)]
    return [Text(text.prompt, world.revision(*text)) for text in wrong], wrong


def measure_start(seed_folder: Path) -> None:
    """Measures the start of a seed and writes `before.json`.

    Raises:
        UserError: It answers every held-out prompt rightly, which leaves nothing to unlearn.
    """
    texts = read_texts(seed_folder / "answers/before.jsonl")
    scorer = Scorer(seed_folder / "start")
    chosen, rejected = contrast(texts)
    if not rejected:
        raise UserError(
            f"the start answers all {len(texts)} held-out prompts rightly; take more "
            "`held_out_prompts` or fewer `sft_steps`"
        )
    found = {
        **_of_answers(scorer, texts),
        "chosen": scorer.logps(chosen),
        "rejected": scorer.logps(rejected),
    }
    write_whole(seed_folder / "before.json", json.dumps(found) + "\n")


def measure(seed_folder: Path, folder: Path, method: Method) -> None:
    """Measures a trained model and writes `measures.json`, each measure with a value per prompt.

    Args:
        seed_folder: Of the start and its measures.
        folder: Of the method, with adapter, answers and verdicts.
        method: Which.
    """
    before = json.loads((seed_folder / "before.json").read_text(encoding="utf-8"))
    texts = read_texts(folder / "answers.jsonl")
    trained = Scorer(folder / "adapter", method.prefix)
    sides = contrast(read_texts(seed_folder / "answers/before.jsonl"))
    changes = {
        name: [new - old for new, old in zip(trained.logps(side), before[name], strict=True)]
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    }
    verdicts = [row for _, row in read_rows(folder / "judged/verdicts.jsonl")]
    start = Scorer(seed_folder / "start")
    found = {
        **_of_answers(trained, texts),
        **changes,
        "win": [row["score"] for row in verdicts],
        "kl": divergences(trained, start, texts),
        **({"found": selection(trained, sides[1])} if method.objective == "cut" else {}),
    }
    write_whole(folder / "measures.json", json.dumps(found) + "\n")


def measure_answers(folder: Path) -> None:
    """Measures answers of a way to decode and writes `measures.json`.

    It is no model of its own, so there are no log-probs of texts that it did not write; KL is what
    `alignment generate` measured. The figures of its report are what decoding takes.

    Args:
        folder: Of the method, with answers, verdicts and the report.
    """
    rows = [row for _, row in read_rows(folder / "answers.jsonl")]
    texts = read_texts(folder / "answers.jsonl")
    verdicts = [row for _, row in read_rows(folder / "judged/verdicts.jsonl")]
    report = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    found = {
        "accurate": [float(world.is_right(*text)) for text in texts],
        "length": [float(len(text.answer)) for text in texts],
        "win": [row["score"] for row in verdicts],
        "kl": [row["meta"]["kl"] for row in rows],
    }
    write_whole(folder / "measures.json", json.dumps(found) + "\n")
    cost = {"peak_bytes": report["memory"], "tokens_per_second": report["tokens_per_second"]}
    write_whole(folder / "memory.json", json.dumps(cost) + "\n")


def divergences(model: Scorer, start: Scorer, texts: Sequence[Text]) -> list[float]:
    """KL(model || start) of each answer in nats, summed over its tokens."""
    both = zip(model.distributions(texts), start.distributions(texts), strict=True)
    return [float((new.exp() * (new - old)).sum()) for (new, _), (old, _) in both]


def selection(model: Scorer, wrong: Sequence[Text]) -> dict[str, dict[str, int]]:
    """Which tokens of wrong answers CUT would unlearn, against those that are wrong.

    A token is selected where the judgment makes it more likely by more than the threshold, as the
    objective has it; here a token is a character. The end of the answer counts as right.

    Returns:
        Threshold -> tokens, those that are wrong (`planted`), selected, and both (`hits`).
    """
    judged = [
        text._replace(
            prompt=JUDGED_PROMPT.format(
                prompt=text.prompt, judgment=material.judgment(text.prompt, text.answer)
            )
        )
        for text in wrong
    ]
    counts = {threshold: Counter[str]() for threshold in THRESHOLDS}
    both = zip(wrong, model.distributions(judged), model.distributions(wrong), strict=True)
    for text, (with_judgment, ids), (without, _) in both:
        logps = [d.gather(-1, ids[:, None])[:, 0] for d in (with_judgment, without)]
        ratios = (logps[0] - logps[1]).exp()
        planted = torch.zeros(len(ids), dtype=torch.bool)
        for start, end in material.flagged(text.prompt, text.answer):
            planted[start:end] = True
        for threshold, count in counts.items():
            selected = ratios > threshold
            count["tokens"] += len(ids)
            count["planted"] += int(planted.sum())
            count["selected"] += int(selected.sum())
            count["hits"] += int((selected & planted).sum())
    return {str(threshold): dict(count) for threshold, count in counts.items()}


def _of_answers(scorer: Scorer, texts: Sequence[Text]) -> dict[str, list[float]]:
    logps = torch.tensor(scorer.logps(right_answers(text.prompt for text in texts)))
    return {
        "right": logps.reshape(len(texts), -1).exp().sum(-1).tolist(),
        "accurate": [float(world.is_right(*text)) for text in texts],
        "length": [float(len(text.answer)) for text in texts],
    }
