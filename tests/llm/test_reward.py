"""A reward model in this process: batches change nothing, what cannot be rated is told."""

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.protocol import CallError, Message
from alignment.llm.reward import RewardBackend
from eval.judge import RewardJudge, compare
from tests.tiny import tiny_config, tiny_tokenizer


def save(folder: Path, labels: int = 1, template: bool = True) -> str:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    if not template:
        tokenizer.chat_template = None
    model = LlamaForSequenceClassification(tiny_config(num_labels=labels))
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("reward"))


def conversation(answer: str) -> list[Message]:
    return [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": answer}]


def rewards(folder: str, answers: list[str], batch_size: int) -> list[float]:
    async def all_of_them() -> list[float]:
        llm = LLM(RewardBackend(folder, "cpu", batch_size))
        return await asyncio.gather(*(llm.reward(conversation(answer)) for answer in answers))

    return asyncio.run(all_of_them())


def test_a_reward_depends_on_no_neighbour_and_is_that_of_transformers(folder: str):
    answers = ["2", "two, I am quite sure of that", "3"]
    together, alone = rewards(folder, answers, 3), rewards(folder, answers, 1)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({*alone}) == 3
    tokenizer = tiny_tokenizer()
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    for answer, reward in zip(answers, alone, strict=True):
        ids = tokenizer.apply_chat_template(
            conversation(answer), return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            assert float(model(ids).logits[0, 0]) == pytest.approx(reward, abs=1e-5)


def test_it_judges_as_any_other_judge(folder: str):
    judge = RewardJudge(LLM(RewardBackend(folder, "cpu")))
    better, worse = (
        asyncio.run(compare(judge, "1+1?", *answers)) for answers in (("2", "3"), ("3", "2"))
    )
    assert better.score is not None
    assert better.score == pytest.approx(1 - (worse.score or 0))
    assert judge.identity()["fingerprint"]


def test_a_conversation_that_is_too_long_has_no_reward(folder: str):
    with pytest.raises(CallError, match="tokens, the model takes"):
        rewards(folder, ["word " * 5000], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": 2}, "has 2 outputs"), ({"template": False}, "has no chat template")],
)
def test_other_models_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        RewardBackend(save(tmp_path, **change), "cpu")
