"""The backend for vLLM against a stand-in, since vLLM needs an environment of its own.

The stand-in is a module named `vllm` with the few names that the backend uses. Behind them a tiny
transformers model reads and writes, so scores and greedy answers are checked against another path
through the same weights. What it cannot show: that vLLM accepts these arguments, schedules well,
or rounds alike; its `SamplingParams` knows only the fields in `FIELDS`, which were taken from
vLLM's documentation.
"""

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.cli import UserError
from alignment.llm.connect import connect
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.model import LocalModel
from alignment.llm.options import CallOptions
from alignment.llm.protocol import CallError, Message, Reply, Request, Sampling
from alignment.llm.vllm import VLLMBackend

FIELDS = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("max_tokens", "logprobs", "prompt_logprobs"),
}
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


class SamplingParams(SimpleNamespace):
    def __init__(self, **fields: Any) -> None:
        assert fields.keys() <= FIELDS
        super().__init__(**{"logprobs": None, "prompt_logprobs": None, "max_tokens": 16, **fields})


class Logprob(SimpleNamespace):
    """`logprob` and `decoded_token`."""


class StandIn:
    """vLLM's `LLM`, for greedy answers."""

    made: "list[StandIn]" = []  # noqa: RUF012 - one for the test

    def __init__(self, model: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))
        self.batches: list[list[SamplingParams]] = []
        self.made.append(self)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        assert not use_tqdm
        self.batches.append(params)
        pairs = zip(prompts, params, strict=True)
        return [self.one(prompt["prompt_token_ids"], param) for prompt, param in pairs]

    def position(self, logps: torch.Tensor, token: int, count: int) -> dict[int, Logprob]:
        """The likeliest tokens and the one that stands there, as vLLM returns them."""
        tokens = [*logps.topk(count).indices.tolist(), token]
        return {t: Logprob(logprob=logps[t].item(), decoded_token=self.name(t)) for t in tokens}

    def name(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def one(self, ids: list[int], params: SamplingParams) -> Any:
        room = 64 - len(ids)
        made = self.model.generate(
            torch.tensor([ids]),
            max_new_tokens=min(params.max_tokens or room, room),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = made.sequences[0, len(ids) :].tolist()
        ended = tokens[-1] == self.tokenizer.eos_token_id
        top = None
        if params.logprobs is not None:
            steps = [logits[0].log_softmax(-1) for logits in made.logits]
            pairs = zip(steps, tokens, strict=True)
            top = [self.position(step, token, params.logprobs) for step, token in pairs]
        of_prompt = None
        if params.prompt_logprobs is not None:
            table = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            pairs = zip(table, ids[1:], strict=False)
            rest = [self.position(row, token, params.prompt_logprobs) for row, token in pairs]
            of_prompt = [None, *rest]
        output = SimpleNamespace(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
            token_ids=tokens,
            finish_reason="stop" if ended else "length",
            logprobs=top,
        )
        return SimpleNamespace(outputs=[output], prompt_token_ids=ids, prompt_logprobs=of_prompt)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


def ask(model: Path, *requests: Request) -> list[Reply]:
    async def job() -> list[Reply]:
        options = CallOptions()
        async with connect(f"vllm:{model}", None, Ledger(), options) as llm:
            calls = (llm.ask(request, keep_truncated=True) for request in requests)
            return [*await asyncio.gather(*calls)]

    return asyncio.run(job())


def test_answers_and_scores_are_those_of_the_same_model_in_process(
    vllm: type[StandIn], model_dir: Path
):
    greedy = Sampling(0.0, max_tokens=6)
    requests = [
        Request("chat", HELLO, sampling=greedy),
        Request("complete", "the answer", sampling=greedy),
        Request("score", "the user asked", (" a question", " in return\n", "x")),
    ]
    local = LocalModel(str(model_dir), "cpu")
    expected = [local.answer([local.encode(request)])[0] for request in requests]
    replies = ask(model_dir, *requests)
    assert replies[:2] == expected[:2]
    assert replies[2].prompt_tokens == expected[2].prompt_tokens
    logps, expected_logps = replies[2].logps, expected[2].logps
    assert logps is not None
    assert expected_logps is not None
    for got, wanted in zip(logps, expected_logps, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_calls_in_flight_are_one_batch_whatever_their_sampling(
    vllm: type[StandIn], model_dir: Path
):
    requests = [Request("chat", HELLO, (), Sampling(float(i), max_tokens=2), i) for i in range(100)]
    assert len(ask(model_dir, *requests)) == 100
    ((first, *rest),) = [llm.batches for llm in vllm.made]
    assert len(first) + sum(map(len, rest)) == 100
    assert len(rest) <= 1


def test_sampling_is_told_in_vllms_words(vllm: type[StandIn], model_dir: Path):
    sampling = Sampling(0.5, 0.9, 5, 7, 1, ("END",), 2, {"min_p": 0.1})
    call = Request("chat", HELLO, sampling=sampling)
    (reply,) = ask(model_dir, call)
    (((params,),),) = [llm.batches for llm in vllm.made]
    assert vars(params) == {
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_tokens": 7, "min_p": 0.1},
        **{"seed": call.draw(), "stop": ["END"], "logprobs": 2, "prompt_logprobs": None},
    }
    assert reply.top_logprobs is not None
    assert len(reply.top_logprobs) == reply.completion_tokens


def test_an_answer_without_a_bound_is_not_cut_at_vllms_16_tokens(
    vllm: type[StandIn], model_dir: Path
):
    ask(model_dir, Request("chat", HELLO))
    (((params,),),) = [llm.batches for llm in vllm.made]
    assert params.max_tokens is None


def test_a_prompt_too_long_fails_alone(vllm: type[StandIn], model_dir: Path):
    async def job() -> list[Any]:
        async with LLM(VLLMBackend(str(model_dir))) as llm:
            calls = (llm.complete(text, Sampling(0.0, max_tokens=2)) for text in ("a", "x " * 99))
            return [*await asyncio.gather(*calls, return_exceptions=True)]

    short, long = asyncio.run(job())
    assert getattr(short, "outcome", None) in ("answered", "truncated")
    assert isinstance(long, CallError)
    assert "the model takes 64" in str(long)


def test_the_ledger_knows_the_model_by_its_weights(vllm: type[StandIn], model_dir: Path):
    backend = VLLMBackend(str(model_dir))
    assert (backend.provider, backend.model) == ("vllm", model_dir.name)
    assert backend.fingerprint == LocalModel(str(model_dir), "cpu").fingerprint


def test_missing_vllm_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs an environment of its own, see docs/calls\.md"):
        connect("vllm:some-model", None, Ledger(), CallOptions())


def test_a_model_that_vllm_cannot_load_is_one_line(vllm: type[StandIn], tmp_path: Path):
    with pytest.raises(UserError, match="vLLM cannot load the model"):
        connect(f"vllm:{tmp_path}", None, Ledger(), CallOptions())
