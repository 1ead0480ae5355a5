"""A reward model in this process: a sequence classifier with one output, `reward:FOLDER`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.cli import UserError
from alignment.llm.gather import Gatherer
from alignment.llm.model import PROVIDER, load_pretrained, refusals_told
from alignment.llm.protocol import CallError, Reply, Request, Verb


class RewardBackend:
    """A model of transformers' `AutoModelForSequenceClassification`, asked in batches.

    Args:
        model: A folder as `save_pretrained` writes it, or a hub id.
        device: Where it runs; by default an accelerator where there is one.
        batch_size: Most conversations rated together; one where the tokenizer cannot pad.

    Raises:
        UserError: There is no such model, it has no chat template, or not one output.
    """

    provider = f"{PROVIDER} reward"
    verbs: frozenset[Verb] = frozenset({"reward"})

    def __init__(self, model: str, device: str | None = None, batch_size: int = 16) -> None:
        self._loaded = load_pretrained(model, "AutoModelForSequenceClassification", device)
        self.model, self.fingerprint = self._loaded.name, self._loaded.fingerprint
        config, tokenizer = self._loaded.model.config, self._loaded.tokenizer
        if config.num_labels != 1:
            raise UserError(f"{model} has {config.num_labels} outputs; a reward model has one")
        if not tokenizer.chat_template:
            raise UserError(f"{model} has no chat template, by which a reward model is asked")
        # Which token is the last one of a row is told from this id.
        config.pad_token_id = tokenizer.pad_token_id
        most = 1 if tokenizer.pad_token_id is None else batch_size
        self._gatherer: Gatherer[list[int]] = Gatherer(self._answer, lambda _: None, most)

    async def ask(self, request: Request) -> Reply:
        """Queues a conversation and waits for its reward.

        Raises:
            CallError: The conversation is longer than the model takes, or its template refuses it.
        """
        with refusals_told():
            tokens: list[int] = self._loaded.tokenizer.apply_chat_template(
                list(request.prompt), tokenize=True, return_dict=False
            )
        longest = self._loaded.longest
        if longest is not None and len(tokens) > longest:
            raise CallError("failed", f"it has {len(tokens)} tokens, the model takes {longest}")
        return await self._gatherer.ask(tokens)

    async def close(self) -> None:
        """Nothing to free that the garbage collector would not."""

    def _answer(self, batch: Sequence[list[int]]) -> list[Reply]:
        import torch

        padded: Any = self._loaded.tokenizer.pad(
            {"input_ids": list(batch)}, padding_side="right", return_tensors="pt"
        ).to(self._loaded.device)
        with torch.inference_mode():
            logits = self._loaded.model(**padded).logits  # (B, 1)
        return [
            Reply(repr(reward), prompt_tokens=len(tokens), completion_tokens=0)
            for tokens, reward in zip(batch, logits[:, 0].float().tolist(), strict=True)
        ]
