"""The card says what was done, and foreign text in it stays text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import LoraConfig, PromptTuningConfig

from alignment.adapters import adapter_config
from alignment.objectives import describe, load_objective
from alignment.objectives.sft import SFT
from alignment.trainers.base import GroupTrainer
from alignment.trainers.card import CARD, KEY, card_text
from alignment.trainers.record import Provenance, adapter_settings, record, versions
from tests.tiny import save_tiny
from tests.trainers.runs import lora, pair_rows, settings

HOSTILE = "a|b` <script>alert(1)</script> ![x](http://x)\n---\nlicense: mit"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that a policy is loaded from."""
    return str(save_tiny(tmp_path_factory.mktemp("start")))


@pytest.fixture(scope="module")
def trainer(start: str, tmp_path_factory: pytest.TempPathFactory) -> GroupTrainer:
    """Of a run of two steps on all but a row that cannot be used, evaluated and saved."""
    folder = tmp_path_factory.mktemp("runs") / "aligned"
    args = settings(folder, max_steps=2, eval_strategy="steps", eval_steps=2, objective="dpo")
    rows = [*pair_rows(8), {**pair_rows(1)[0], "rejected": ""}]
    made = GroupTrainer(start, args, rows, pair_rows(4), peft_config=lora())
    made.provenance = Provenance("alignment train --seed 1", ("me/pairs",), ("me/held-out",))
    made.train()
    made.save_model()
    return made


def run_of(trainer: GroupTrainer) -> dict[str, Any]:
    return json.loads((Path(trainer.args.output_dir) / "run.json").read_text())


def test_the_record_says_what_ran(trainer: GroupTrainer, start: str):
    run = run_of(trainer)
    assert run["command"] == "alignment train --seed 1"
    assert (run["steps"], run["steps_planned"], run["data"]["kept"]) == (2, 2, 8)
    assert run["data"]["rejected"] == {"empty_response": 1}
    assert run["model"]["start"] == start
    assert run["model"]["adapter"]["target_modules"] == ["q_proj", "v_proj"]
    assert run["objective"]["name"] == "dpo"
    assert run["objective"]["arxiv"] == ["2305.18290"]
    assert run["versions"] == versions()
    assert run["seconds"] > 0
    assert run["tokens"] == trainer.state.log_history[1]["num_tokens"]
    assert run["settings"]["learning_rate"] == 0.01
    assert not {"output_dir", "hub_token"} & run["settings"].keys()


def test_the_card_replaces_the_form_of_peft_and_is_valid_for_the_hub(trainer: GroupTrainer):
    path = Path(trainer.args.output_dir) / CARD
    card = ModelCard.load(path, ignore_metadata_errors=False)
    text = path.read_text()
    assert "More Information Needed" not in text
    assert card.data.datasets == ["me/pairs"]
    assert card.data.library_name == "peft"
    assert {"contrastive-alignment", "dpo", "arxiv:2305.18290"} <= set(card.data.tags)
    assert card.data.base_model is None  # a folder is no model of the Hub
    assert card.data[KEY]["steps"] == 2
    measured = {each.metric_type: each for each in card.data.eval_results}
    evaluated = trainer.state.log_history[-2]
    assert measured["loss"].metric_value == evaluated["eval_loss"]
    assert measured["loss"].dataset_name == "me/held-out"
    for part in ("| rows rejected: empty\\_response | 1 |", "alignment train --seed 1", "torch 2"):
        assert part in text


@pytest.mark.parametrize("front", ["", f"---\n{KEY}:\n  data: pairs.jsonl\n---\n"])
def test_a_readme_of_the_users_own_or_of_data_stays(
    front: str, trainer: GroupTrainer, tmp_path: Path
):
    (tmp_path / CARD).write_text(f"{front}# Mine\n")
    trainer.save_model(str(tmp_path))
    assert "# Mine" in (tmp_path / CARD).read_text()
    assert "objective:" not in (tmp_path / CARD).read_text()


def test_a_card_of_an_earlier_save_is_written_anew(trainer: GroupTrainer, tmp_path: Path):
    stale = (Path(trainer.args.output_dir) / CARD).read_text().replace("## Method", "## Stale")
    (tmp_path / CARD).write_text(stale)
    trainer.save_model(str(tmp_path))
    assert "## Stale" not in (tmp_path / CARD).read_text()
    assert "## Method" in (tmp_path / CARD).read_text()


def test_a_card_for_the_hub_takes_name_and_tags(trainer: GroupTrainer):
    trainer.create_model_card(model_name="of-mine", tags=["mine"])
    card = ModelCard.load(Path(trainer.args.output_dir) / CARD)
    assert "# of-mine" in card.content
    assert "mine" in card.data.tags


def test_foreign_text_ends_no_cell_no_code_and_no_front_matter(trainer: GroupTrainer):
    run = record(trainer)
    run["model"]["start"] = run["objective"]["summary"] = HOSTILE
    run["data"]["train"], run["settings"] = [HOSTILE], {"learning_rate": HOSTILE}
    text = card_text(run, trainer.state.log_history, HOSTILE)
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.get("license") is None
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert page.count("&lt;script&gt;") == 5  # title, start, summary, data, setting
    assert not re.search("<(script|img|a) ?", page)
    assert "<td><code>a|b' &lt;script&gt;" in page


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (LoraConfig(r=4, target_modules=["a.q", "b.q"]), {"peft_type": "LORA", "r": 4}),
        (PromptTuningConfig(num_virtual_tokens=3), {"num_virtual_tokens": 3}),
        (adapter_config("aligner", {"tokens": 5}), {"tokens": 5, "import": "alignment.adapters"}),
    ],
    ids=["lora", "prompt_tuning", "aligner"],
)
def test_adapters_of_every_kind_are_told(config: Any, told: dict[str, Any]):
    found = adapter_settings(config)
    assert told.items() <= found.items()
    assert found == json.loads(json.dumps(found))
    assert found.get("target_modules") in (None, ["q"])


def test_an_adapter_of_this_project_is_loaded_after_its_import(trainer: GroupTrainer):
    run = record(trainer)
    assert "import alignment.adapters" not in card_text(run, [], "lora")
    run["model"]["adapter"]["import"] = "alignment.adapters"
    assert "PeftModel\nimport alignment.adapters\n\nbase" in card_text(run, [], "clm")


def test_without_logs_the_card_says_so(trainer: GroupTrainer):
    text = card_text(record(trainer), [], "empty")
    assert "Nothing was logged." in text
    assert "model-index" not in text


class Mine(SFT):
    """Does something.

    Formula: loss = 1.
    """


def test_an_objective_of_ones_own_is_described_by_its_docstring():
    told = describe(Mine())
    assert told == ("Does something.", None, "loss = 1.", ())
    assert describe(load_objective("sft")).paper is None
    assert describe(load_objective("cpo")).arxiv == ("2401.08417", "2405.14734", "2501.03884")
