"""A model in this process behind vLLM's offline interface: `vllm:FOLDER` or `vllm:HUB_ID`.

vLLM pins its own build of torch, so it lives in an environment of its own (docs/calls.md). The
project's tests cannot hold it: they run this module against a stand-in for the few names of
vLLM's public interface that it uses, `LLM`, `LLM.get_tokenizer`, `LLM.generate` on token ids, and
`SamplingParams`. It has not been run against vLLM itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from alignment.cli import UserError
from alignment.llm.fingerprint import identity
from alignment.llm.gather import Gatherer
from alignment.llm.model import Encoded, Encoder
from alignment.llm.prompts import shorten
from alignment.llm.protocol import Reply, Request, Verb


class VLLMBackend:
    """A model that vLLM runs.

    Args:
        model: A folder of a whole model, not of an adapter, as `save_pretrained` writes it; or a
            hub id.
        revision: Tells models of the same name apart, in the ledger. By default the checksum of
            the folder.

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    provider = "vllm"
    verbs: frozenset[Verb] = frozenset({"chat", "complete", "score"})

    def __init__(self, model: str, revision: str | None = None) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise UserError(
                f"vLLM cannot be imported ({shorten(error)}); it needs an environment of its own, "
                "see docs/calls.md, or serve the model and give its address"
            ) from None
        self.model, self.fingerprint = identity(model, revision)
        try:
            self._llm = self._vllm.LLM(model=model)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"vLLM cannot load the model {model}: {shorten(error)}") from None
        longest = self._llm.llm_engine.model_config.max_model_len
        self._encoder = Encoder(self._llm.get_tokenizer(), model, longest)
        self._gatherer: Gatherer[Encoded] = Gatherer(self._answer, lambda _: None, 1_000_000)

    async def ask(self, request: Request) -> Reply:
        """Queues a request and waits for its reply."""
        return await self._gatherer.ask(self._encoder.encode(request))

    async def close(self) -> None:
        """Nothing to free that the end of the process would not."""

    def _answer(self, batch: Sequence[Encoded]) -> list[Reply]:
        prompts = [{"prompt_token_ids": row} for encoded in batch for row in encoded.rows]
        params = [self._params(encoded.request) for encoded in batch for _ in encoded.rows]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        ends = [0, *accumulate(len(encoded.rows) for encoded in batch)]
        several = (outputs[start:end] for start, end in pairwise(ends))
        return [
            _scored(encoded, own) if encoded.request.verb == "score" else _written(own[0])
            for encoded, own in zip(batch, several, strict=True)
        ]

    def _params(self, request: Request) -> Any:
        if request.verb == "score":
            # vLLM always writes something; the log-prob of each token of the prompt comes along.
            return self._vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
        settings = {"max_tokens": None, **request.sampling.settings()}  # its own default is 16
        settings |= settings.pop("extra", {})
        if "seed" in settings:
            settings["seed"] = request.draw()
        if "stop" in settings:
            settings["stop"] = list(request.sampling.stop)
        if "top_logprobs" in settings:
            settings["logprobs"] = settings.pop("top_logprobs")
        return self._vllm.SamplingParams(**settings)


def _written(output: Any) -> Reply:
    made = output.outputs[0]
    top = None
    if made.logprobs is not None:
        top = tuple(
            {logprob.decoded_token: logprob.logprob for logprob in position.values()}
            for position in made.logprobs
        )
    return Reply(
        made.text,
        made.finish_reason or "abort",
        len(output.prompt_token_ids),
        len(made.token_ids),
        top_logprobs=top,
    )


def _scored(encoded: Encoded, outputs: Sequence[Any]) -> Reply:
    logps = []
    for row, count, output in zip(encoded.rows, encoded.scored, outputs, strict=True):
        positions = list(zip(row, output.prompt_logprobs, strict=True))[-count:]
        logps.append(tuple(position[token].logprob for token, position in positions))
    return Reply(prompt_tokens=sum(map(len, encoded.rows)), completion_tokens=0, logps=tuple(logps))
