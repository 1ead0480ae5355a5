"""Soft prompts: tuned for and against, saved with their model, read like any other token."""

import json
from pathlib import Path

import pytest
import torch

from alignment.cli import UserError, parse
from alignment.commands import generate as generation
from alignment.commands.soft_prompts import Options, main, make
from alignment.core.rows import read_rows
from alignment.decoding import soft_prompts
from alignment.decoding.training_free import generate_words
from alignment.decoding.tuning import UNWANTED, WANTED, Answered, prompt_loss
from alignment.llm.model import LocalModel
from tests.decoding.generating import generated, inputs
from tests.tiny import tiny_model


@pytest.fixture
def files(tmp_path: Path) -> Path:
    pairs = [
        {"prompt": f"question {i}", "chosen": "no", "rejected": "yes, the answer is"}
        for i in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "benign.jsonl").write_text('{"prompt": "is it", "response": "what it is"}\n')
    return tmp_path


def options(files: Path, model: Path, **settings: object) -> Options:
    given = {
        "model": model,
        "input": files / "pairs.jsonl",
        "benign": files / "benign.jsonl",
        "output": files / "soft",
        "tokens": 4,
        "steps": 12,
        "batch_size": 3,
        "learning_rate": 0.05,
        "device": "cpu",
        **settings,
    }
    return parse(Options, generate_words(given), "alignment soft_prompts")


def test_ids_beyond_the_vocabulary_are_read_as_vectors_and_words_as_before():
    model, given = tiny_model(), inputs()
    plain = generated(model, given)
    vectors = torch.randn(2, 3, 32)
    embedding, ids = soft_prompts.install(model, vectors)
    assert torch.equal(generated(model, given), plain)
    assert (ids.safe, ids.adversarial) == ([320, 321, 322], [323, 324, 325])
    read = embedding(torch.tensor([[7, *ids.adversarial]]))
    torch.testing.assert_close(read[0, 1:], vectors[1])
    torch.testing.assert_close(read[0, 0], model.get_input_embeddings().base.weight[7])


def test_the_loss_of_worked_probabilities(model_dir: Path):
    """The sum over kinds of means over answers, of means over tokens, from a plain forward pass."""
    local = LocalModel(str(model_dir), "cpu")
    _, ids = soft_prompts.install(local.model, torch.randn(2, 2, 32) * 0.1)
    answers = [
        Answered([5, 6], [7, 8, 2], WANTED),
        Answered([5, 6, 9], [10, 2], UNWANTED),
        Answered([11], [12], 0),
    ]
    expected = 0.0
    for answer in answers:
        row = torch.tensor([[*ids.safe, *answer.prompt, *answer.response]])
        logps = local.model(row).logits[0].detach().log_softmax(-1)
        start = len(ids.safe) + len(answer.prompt)
        chosen = [logps[start - 1 + i, token] for i, token in enumerate(answer.response)]
        costs = [-(1 - logp.exp()).log() if answer.kind == UNWANTED else -logp for logp in chosen]
        expected += float(sum(costs) / len(costs))
    found = prompt_loss(local, answers, ids.safe, WANTED)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert prompt_loss(local, answers, ids.adversarial, UNWANTED).item() != found.item()


def test_tuning_lowers_both_losses_and_leaves_the_model_alone(files: Path, model_dir: Path):
    tuned = make(options(files, model_dir))
    first, last = tuned.losses[0], tuned.losses[-1]
    assert last[0] < first[0]
    assert last[1] < first[1]
    again = make(options(files, model_dir, output=files / "again"))
    assert torch.equal(again.vectors, tuned.vectors)
    local = LocalModel(str(model_dir), "cpu")
    loaded = soft_prompts.load(files / "soft", local.fingerprint)
    assert torch.equal(loaded, tuned.vectors)
    record = json.loads((files / "soft" / "soft_prompts.json").read_text())
    assert (record["settings"]["pairs"], record["settings"]["benign"]) == (4, 1)
    assert not (files / "soft" / "rejects.jsonl").exists()


def test_a_tuned_pair_makes_what_it_wants_likelier_than_its_opposite_does(
    files: Path, model_dir: Path
):
    make(options(files, model_dir, steps=40))
    local = LocalModel(str(model_dir), "cpu")
    vectors = soft_prompts.load(files / "soft", local.fingerprint)
    _, ids = soft_prompts.install(local.model, vectors)
    tokens = local.tokenizer
    asked = tokens.apply_chat_template(
        [{"role": "user", "content": "question 9"}], add_generation_prompt=True, return_dict=False
    )
    wanted = Answered(asked, [*tokens("no").input_ids, 2], WANTED)
    safe, adversarial = (prompt_loss(local, [wanted], prompt, WANTED).item() for prompt in ids)
    assert safe < adversarial


def test_a_contrast_reads_a_tuned_pair_in_batches_as_in_single_rows(files: Path, model_dir: Path):
    make(options(files, model_dir))
    answers = {}
    for name, size in (("many", 4), ("one", 1)):
        given = {
            "model": model_dir,
            "prompts": files / "pairs.jsonl",
            "output": files / f"{name}.jsonl",
            "contrast": "adversarial",
            "soft_prompts": files / "soft",
            "batch_size": size,
            "temperature": 0,
            "max_tokens": 6,
            "device": "cpu",
        }
        words = generate_words(given)
        generation.generate(parse(generation.Options, words, "alignment generate"))
        answers[name] = [row["response"] for _, row in read_rows(files / f"{name}.jsonl")]
    assert answers["many"] == answers["one"]


def test_what_cannot_be_tuned_or_read_is_told(
    files: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    main(generate_words({**vars(options(files, model_dir)), "steps": 2}))
    told = capsys.readouterr().out
    assert "safe: loss" in told
    assert "4 vectors each" in told
    with pytest.raises(UserError, match="holds soft prompts; pass `--overwrite`"):
        make(options(files, model_dir))
    with pytest.raises(UserError, match="were tuned for another model"):
        soft_prompts.load(files / "soft", "0123456789abcdef")
    (files / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match=r"no row of .* can be used: the row has no chosen and no"):
        make(options(files, model_dir, output=files / "none"))
    (rejected,) = [row for _, row in read_rows(files / "none" / "rejects.jsonl")]
    assert (rejected["source"], rejected["reason"]) == ("pairs.jsonl:1", "no_pair")
    (files / "a_file").touch()
    with pytest.raises(FileExistsError):  # which a command tells in one line
        make(options(files, files / "not looked for", output=files / "a_file"))
    with pytest.raises(UserError, match="`learning_rate` is -1"):
        options(files, model_dir, learning_rate=-1)
