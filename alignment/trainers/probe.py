"""A look at what the policy writes while it is trained: whether it ends, repeats itself, grows.

Losses do not show that answers stop ending. Every so many steps a few prompts are answered
greedily; the first answers, from before the first step, are what later ones are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from trl.models.utils import add_hooks, remove_hooks

from alignment.cli import UserError
from alignment.core.scoring import evaluating

if TYPE_CHECKING:
    from alignment.trainers.base import GroupTrainer

NGRAM = 4
"""Tokens of a piece of text that counts as repeated where it stands twice."""


class Probe(TrainerCallback):
    """Answers prompts of the data every `probe_steps` steps, and logs what the answers are like.

    Greedy, so that no random number is drawn and a resumed run stays exact. Under ZeRO-3 the
    weights are gathered for it on every process.

    Raises:
        UserError: The engine is FSDP, whose weights generation cannot use.
    """

    def __init__(self, trainer: GroupTrainer) -> None:
        if trainer.is_fsdp_enabled:
            raise UserError("probe_steps: answers cannot be written under FSDP; leave it out")
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answers before the first step, to compare with."""
        if state.global_step == 0:
            self._probe(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answers where it is time to."""
        if state.global_step % args.probe_steps == 0:
            self._probe(control)

    def _probe(self, control: Any) -> None:
        ends = _ends(self._trainer)
        due = control.should_log
        self._trainer.log(described(answers(self._trainer, ends), ends))
        control.should_log = due  # which a log of any kind takes back


def answers(trainer: GroupTrainer, ends: Sequence[int]) -> list[list[int]]:
    """Greedy answers to the first prompts of the evaluation data, else of the training data.

    Args:
        trainer: Whose policy answers.
        ends: Ids that end an answer.

    Returns:
        Token ids of each answer, the one that ends it included.
    """
    args, tokenizer = trainer.args, trainer.processing_class
    model = trainer.model_wrapped
    found = []
    with (
        torch.no_grad(),
        evaluating(model),
        _whole(trainer) as policy,
        trainer.compute_loss_context_manager(),
    ):
        for prompt in _prompts(trainer):
            ids = torch.tensor([prompt], device=args.device)
            written = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.probe_max_new_tokens,
                do_sample=False,
                eos_token_id=list(ends),
                pad_token_id=tokenizer.pad_token_id,
            )
            found.append(written[0, len(prompt) :].tolist())
    return found


def described(found: Sequence[Sequence[int]], ends: Sequence[int]) -> dict[str, float]:
    """What answers are like.

    Args:
        found: Token ids of each answer.
        ends: Ids that end one.

    Returns:
        `probe/stop_rate`, the share that ends; `probe/length`, the mean of tokens;
        `probe/repetition`, the mean share of `NGRAM`s that stand earlier in the same answer.
    """
    return {
        "probe/stop_rate": fmean(bool(answer) and answer[-1] in ends for answer in found),
        "probe/length": fmean(len(answer) for answer in found),
        "probe/repetition": fmean(repetition(answer) for answer in found),
    }


def repetition(ids: Sequence[int]) -> float:
    """The share of `NGRAM`s that stand earlier in the same text; 0 in one shorter than that."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@contextmanager
def _whole(trainer: GroupTrainer) -> Iterator[Any]:
    """The policy as generation wants it: unwrapped, and under ZeRO-3 gathered for a while."""
    engine = trainer.model_wrapped
    policy = trainer.unwrap(engine)
    if not trainer.is_deepspeed_enabled or trainer.accelerator.deepspeed_plugin.zero_stage < 3:
        yield policy
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        remove_hooks(engine)
        try:
            yield policy
        finally:
            add_hooks(engine)


def _prompts(trainer: GroupTrainer) -> list[list[int]]:
    """Contexts of first responses; of several evaluation sets, the first one's."""
    data = trainer.eval_dataset or trainer.train_dataset
    groups = next(iter(data.values())) if isinstance(data, dict) else data
    chosen = [groups[index] for index in range(min(trainer.args.probe_prompts, len(groups)))]
    return [[*group.prefix, *group.contexts[0]] for group in chosen]


def _ends(trainer: GroupTrainer) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those the model was made to stop at."""
    model = trainer.unwrap(trainer.model)
    of_model = model.generation_config.eos_token_id
    listed = of_model if isinstance(of_model, list) else [of_model]
    return sorted({trainer.processing_class.eos_token_id, *listed} - {None})
