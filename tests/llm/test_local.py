"""A model in this process: fair draws, exact scores, answers that do not depend on neighbours."""

import asyncio
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.cli import UserError
from alignment.llm import protocol
from alignment.llm.engine import LLM
from alignment.llm.fingerprint import fingerprint
from alignment.llm.local import LocalBackend
from alignment.llm.model import Encoded, Encoder, LocalModel, _GumbelNoise
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Message, Reply, Request, Sampling
from alignment.llm.reward import RewardBackend
from tests.tiny import save_tiny, save_tiny_reward, tiny_tokenizer
from tests.trainers.runs import lora


@pytest.fixture(scope="module")
def local(model_dir: Path) -> LocalModel:
    return LocalModel(str(model_dir), "cpu")


def test_importing_the_engine_and_its_backends_loads_no_torch():
    names = [f"alignment.llm.{path.stem}" for path in Path(protocol.__file__).parent.glob("*.py")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert len(names) > 8
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_greedy_answers_are_those_of_generate(local: LocalModel, model_dir: Path):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    request = Request("complete", "the answer", sampling=Sampling(0.0, max_tokens=6))
    (reply,) = local.answer([local.encode(request)])
    ids = tokenizer("the answer", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert reply.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 6)
    assert reply.prompt_tokens == ids.input_ids.shape[1]


def test_a_draw_does_not_depend_on_its_neighbours_in_the_batch(local: LocalModel):
    requests = [
        Request("chat", user("word " * (index + 1)), (), Sampling(seed=7, max_tokens=12), index)
        for index in range(5)
    ]
    encoded = [local.encode(request) for request in requests]
    together = local.answer(encoded)
    alone = [local.answer([one])[0] for one in encoded]
    assert together == alone
    assert len({reply.text for reply in together}) == 5


def test_an_answer_is_not_cut_because_a_neighbour_has_no_more_room(tmp_path: Path):
    local = LocalModel(str(save_tiny(tmp_path, max_position_embeddings=64)), "cpu")
    sampling = Sampling(seed=7, max_tokens=40)
    texts = ["the", "the user " * 22, "what", "the user " * 15]
    encoded = [local.encode(Request("complete", text, sampling=sampling)) for text in texts]
    alone = [local.answer([one])[0] for one in encoded]
    assert local.answer(encoded) == alone
    least = 64 - len(encoded[1].rows[0])
    assert alone[1].completion_tokens == least
    assert any((reply.completion_tokens or 0) > least for reply in alone)


def test_draws_follow_the_softmax_of_the_scores():
    """20,000 draws from probabilities .5, .3, .2: each count within 4 standard deviations."""
    probabilities = [0.5, 0.3, 0.2]
    count = 20_000
    scores = torch.tensor(probabilities).log().expand(count, 3)
    drawn = _GumbelNoise(range(count))(torch.zeros(count, 1), scores).argmax(-1)
    counts = Counter(drawn.tolist())
    for token, p in enumerate(probabilities):
        assert abs(counts[token] - count * p) < 4 * math.sqrt(count * p * (1 - p))


def test_filters_keep_what_they_keep_in_generate(local: LocalModel):
    """With top_k 1 every draw is the greedy one, whatever the temperature."""
    greedy, filtered = (
        local.answer([local.encode(Request("complete", "a user", sampling=sampling))])[0].text
        for sampling in (Sampling(0.0, max_tokens=8), Sampling(2.0, top_k=1, max_tokens=8))
    )
    assert greedy == filtered


def test_scores_are_the_log_probs_of_the_tokens(local: LocalModel, model_dir: Path):
    prompt, continuations = "the user asked", [" a question", " in return\n", "x"]
    request = Request("score", prompt, tuple(continuations))
    (reply,) = local.answer([local.encode(request)])
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert reply.logps is not None
    for continuation, logps in zip(continuations, reply.logps, strict=True):
        ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
        table = model(ids).logits[0, :-1].log_softmax(-1)
        expected = table.gather(1, ids[0, 1:, None])[-len(logps) :, 0]
        torch.testing.assert_close(torch.tensor(logps), expected, atol=1e-5, rtol=0)
        assert len(logps) == len(tokenizer(continuation).input_ids)


def test_top_logprobs_are_those_of_the_drawn_positions(local: LocalModel):
    request = Request("complete", "a", sampling=Sampling(0.0, max_tokens=3, top_logprobs=5))
    (reply,) = local.answer([local.encode(request)])
    assert reply.top_logprobs is not None
    assert len(reply.top_logprobs) == 3
    assert all(sum(map(math.exp, top.values())) < 1 for top in reply.top_logprobs)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(local: LocalModel):
    whole = local.answer(
        [local.encode(Request("complete", "the", sampling=Sampling(0.0, max_tokens=20)))]
    )[0].text
    stop = next(char for char in whole[2:] if char.isascii() and char not in whole[:2])
    sampling = Sampling(0.0, max_tokens=20, stop=(stop,))
    (reply,) = local.answer([local.encode(Request("complete", "the", sampling=sampling))])
    assert (reply.text, reply.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_requests_of_different_sampling_share_no_batch(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    backend = LocalBackend(str(model_dir), "cpu", batch_size=4)
    sizes: list[int] = []
    answer = backend.local.answer

    def counting(batch: Sequence[Encoded]) -> list[Reply]:
        sizes.append(len(batch))
        return answer(batch)

    monkeypatch.setattr(backend.local, "answer", counting)

    async def ask() -> list[Reply]:
        async with LLM(backend, limits=Limits(concurrency=16)) as llm:
            calls = [
                llm.chat(
                    user(f"{index}"), Sampling(float(index % 2), max_tokens=2), keep_truncated=True
                )
                for index in range(12)
            ]
            return await asyncio.gather(*calls)

    assert len(asyncio.run(ask())) == 12
    assert sorted(sizes) == [2, 2, 4, 4]


def test_a_prompt_longer_than_the_model_takes_is_a_failed_call(tmp_path: Path):
    local = LocalModel(str(save_tiny(tmp_path, max_position_embeddings=16)), "cpu")
    with pytest.raises(CallError, match=r"the prompt has .* tokens, the model takes 16"):
        local.encode(Request("complete", "x" * 40))


REFUSING = "{{ raise_exception('System role not supported') }}"


def test_a_conversation_that_the_template_refuses_is_a_failed_call(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REFUSING
    encoder = Encoder(tokenizer, "m", None)
    told = "the chat template refuses the conversation: System role not supported"
    with pytest.raises(CallError, match=told):
        encoder.encode(Request("chat", user("hello")))
    folder = save_tiny_reward(tmp_path)
    tokenizer.save_pretrained(folder)
    backend = RewardBackend(str(folder), "cpu")
    with pytest.raises(CallError, match=told):
        asyncio.run(backend.ask(Request("reward", user("hello"))))


def test_an_adapter_stands_on_the_revision_of_its_base_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = save_tiny(tmp_path / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), revision="abc")
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    load, asked = AutoModelForCausalLM.from_pretrained, list[Any]()

    def noted(source: Any, **more: Any) -> Any:
        asked.append((source, more.get("revision")))
        return load(source, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    local = LocalModel(str(tmp_path / "adapter"), "cpu")
    assert asked == [(str(base), "abc")]
    request = Request("complete", "the user", sampling=Sampling(0.0, max_tokens=3))
    assert local.answer([local.encode(request)])[0].completion_tokens == 3


def test_half_of_a_surrogate_pair_is_a_failed_call(local: LocalModel):
    told = r"half of a surrogate pair, `\\ud83d`, which is no character"
    with pytest.raises(CallError, match=told):
        local.encode(Request("complete", "the \ud83d"))
    with pytest.raises(CallError, match=told):
        local.encode(Request("score", "the", continuations=("user", "\ud83d")))


def test_a_model_without_a_chat_template_is_told(model_dir: Path, tmp_path: Path):
    save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    local = LocalModel(str(tmp_path), "cpu")
    with pytest.raises(UserError, match="has no chat template"):
        local.encode(Request("chat", user("hello")))


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "a/b/c"])
def test_a_missing_folder_is_told(model: str):
    with pytest.raises(UserError, match=f"no model at {model}: there is no such folder"):
        LocalModel(model)


def test_what_is_neither_here_nor_on_the_hub_is_told_with_the_ways_to_name_a_model():
    with pytest.raises(
        UserError, match=r"cannot load the model no_such \(.*\); give a folder, a hub"
    ):
        LocalModel("no_such")


def test_a_folder_without_a_model_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="cannot load the model"):
        LocalModel(str(tmp_path))


def test_the_fingerprint_follows_the_weights_and_not_the_place(tmp_path: Path):
    first = fingerprint(save_tiny(tmp_path / "a"))
    assert fingerprint(save_tiny(tmp_path / "b")) == first
    assert fingerprint(save_tiny(tmp_path / "c", seed=1)) != first
    (tmp_path / "b" / "trainer_state.json").write_text("{}")
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "b/run.json").write_text('{"seconds": 3.5}')  # how it was made, and not what it is
    assert fingerprint(tmp_path / "b") == first


def test_the_fingerprint_of_an_adapter_follows_its_base(tmp_path: Path):
    prints = []
    for seed in (0, 1):
        save_tiny(tmp_path / "base", seed=seed)
        (tmp_path / "adapter").mkdir(exist_ok=True)
        (tmp_path / "adapter" / "adapter_config.json").write_text(
            f'{{"base_model_name_or_path": "{tmp_path / "base"}"}}'
        )
        prints.append(fingerprint(tmp_path / "adapter"))
    assert prints[0] != prints[1]
