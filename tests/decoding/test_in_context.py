"""Examples in the prompt: constant ones, retrieved ones, and where an answer ends."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

from alignment.cli import UserError, parse
from alignment.commands.generate import Options, generate
from alignment.core.rows import read_rows
from alignment.decoding.in_context import STOP, Example, Examples, read_demonstrations, stylistic
from alignment.decoding.prompting import prompting
from alignment.decoding.retrieval import BM25, SentenceEncoder
from alignment.decoding.training_free import generate_words
from tests.llm.server import Answer, Body, serve
from tests.tiny import tiny_config, tiny_tokenizer

TEXTS = ["how do I bake bread", "the capital of France", "bake a cake", "Bread and France"]


def options(**settings: Any) -> Options:
    given = {"model": "m", "prompts": "p", "output": "o", **settings}
    return parse(Options, generate_words(given), "alignment generate")


def test_constant_examples_stand_before_the_prompt_and_its_answer_is_open():
    text = stylistic().before("What is rain?")
    assert text.count("## Question\n") == text.count("## Answer\n") == 4
    assert text.endswith("## Question\nWhat is rain?\n\n## Answer\n")
    assert text.startswith("Below, a person puts questions")
    assert text == stylistic().before("What is rain?")


def test_a_system_prompt_takes_the_place_of_the_preamble():
    asked = prompting(options(in_context="stylistic", system="Answer in rhyme."), chat=True)
    verb, text = asked.first({"prompt": "What is rain?"})
    assert verb == "complete"
    assert isinstance(text, str)
    assert text.startswith("Answer in rhyme.\n\n## Question")


def test_each_pass_of_a_contrast_reads_the_examples_under_its_own_system_prompt():
    given = {"in_context": "stylistic", "contrast": "adversarial", "system": "Be kind."}
    asked = prompting(options(**given, second_system="Be rude."), chat=True)
    row = {"prompt": "What is rain?"}
    first, second = asked.first(row).prompt, asked.second(row).prompt
    assert str(first).startswith("Be kind.\n\n## Question")
    assert str(second).startswith("Be rude.\n\n## Question")
    assert str(first).removeprefix("Be kind.") == str(second).removeprefix("Be rude.")
    principle = {**given, "contrast": "linear_alignment"}
    asked = prompting(options(**principle), chat=True)
    assert asked.second(row).prompt == stylistic().before("What is rain?")


def test_answers_by_another_retriever_are_told_apart(tmp_path: Path):
    examples = [Example(text, "answer") for text in TEXTS]
    made = Examples("", examples, 2, BM25(TEXTS)).settings()
    assert (made["retriever"], made["shots"]) == ("bm25", 2)
    assert set(stylistic().settings()) == {"examples"}


@pytest.mark.parametrize(("name", "value"), [("shots", 3), ("retriever", "encoder")])
def test_options_of_a_retriever_without_one_are_refused(name: str, value: object):
    with pytest.raises(UserError, match=f"`{name}` is read with `in_context: retrieved` alone"):
        options(in_context="stylistic", **{name: value})


def test_a_conversation_becomes_questions_and_answers():
    prompt = [
        {"role": "system", "content": "In French."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Bonjour."},
        {"role": "user", "content": "And now?"},
    ]
    text = Examples("", []).before(prompt)
    assert text == (
        "In French.\n\n## Question\nHello?\n\n## Answer\nBonjour.\n\n## Question\nAnd now?"
        "\n\n## Answer\n"
    )


def test_bm25_orders_by_shared_words_and_leaves_ties_in_their_order():
    index = BM25(TEXTS)
    assert index.ranked("bake bread")[0] == 0
    assert index.ranked("FRANCE?") == [3, 1, 0, 2]  # the shorter text first
    assert index.ranked("quantum physics") == [0, 1, 2, 3]
    assert index.ranked("?!") == [0, 1, 2, 3]
    assert BM25(["?", "!"]).ranked("a") == [0, 1]


def test_bm25_is_that_of_its_formula():
    """Lucene's: idf = ln(1 + (N - n + .5) / (n + .5)); tf / (tf + k1 (1 - b + b len / avg))."""
    index = BM25(["a b b", "a c"])
    scores = index._index.get_scores(["b"])
    idf = math.log(1 + (2 - 1 + 0.5) / 1.5)
    tf = 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2.5))
    assert scores.tolist() == pytest.approx([idf * tf, 0.0], rel=1e-5)


def test_retrieved_examples_are_the_nearest_the_most_alike_last_and_never_the_prompt_itself():
    examples = [Example(text, f"answer {i}") for i, text in enumerate(TEXTS)]
    chosen = Examples("", examples, 2, BM25(TEXTS)).before("how do I bake bread")
    assert "answer 0" not in chosen
    places = [chosen.find(f"answer {i}") for i in (2, 3, 1)]
    assert places[2] == -1
    assert min(places[:2]) > 0
    nearest = BM25(TEXTS).ranked("how do I bake bread")[1]
    assert chosen.find(f"answer {nearest}") == max(places[:2])


@pytest.mark.slow
def test_any_sentence_encoder_can_retrieve(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    AutoModel.from_config(tiny_config()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoder = SentenceEncoder(str(tmp_path), TEXTS, "cpu")
    for index, text in enumerate(TEXTS):
        assert encoder.ranked(text)[0] == index
    with pytest.raises(UserError, match="cannot load the sentence encoder"):
        SentenceEncoder(str(tmp_path / "none"), TEXTS, "cpu")


def test_demonstrations_are_rows_with_prompt_and_response(tmp_path: Path):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(UserError, match=r"demonstrations.jsonl:2: .*has `prompt` and `response`"):
        read_demonstrations(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no rows"):
        read_demonstrations(path)


def test_a_base_model_answers_after_examples_and_stops_before_the_next_question(
    tmp_path: Path, model_dir: Path
):
    (tmp_path / "p.jsonl").write_text('{"prompt": "how do I bake bread"}\n{"prompt": "a"}\n')
    demonstrations = tmp_path / "d.jsonl"
    rows = [{"prompt": text, "response": f"answer {i}"} for i, text in enumerate(TEXTS)]
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[Body] = []

    def script(index: int, body: Body) -> Answer:
        seen.append(body)
        return Answer("fine")

    with serve(script) as server:
        given = options(
            model="base",
            prompts=tmp_path / "p.jsonl",
            output=tmp_path / "o.jsonl",
            base_url=server.url,
            in_context="retrieved",
            demonstrations=demonstrations,
            shots=2,
        )
        generate(given)
    assert {body["stop"][0] for body in seen} == {STOP}
    assert all(body["prompt"].count("## Answer") == 3 for body in seen)
    first = next(row for _, row in read_rows(tmp_path / "o.jsonl"))
    assert first["prompt"] == "how do I bake bread"
    assert first["meta"]["decoding"]["shots"] == 2
    here = options(
        model=model_dir,
        prompts=tmp_path / "p.jsonl",
        output=tmp_path / "h.jsonl",
        in_context="stylistic",
        max_tokens=3,
        device="cpu",
    )
    generate(here)
    made = [row for _, row in read_rows(tmp_path / "h.jsonl")]
    assert {row["meta"]["verb"] for row in made} == {"complete"}
