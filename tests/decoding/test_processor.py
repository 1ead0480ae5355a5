"""Two passes and two caches: the same tokens as plain decoding where nothing is contrasted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LogitsProcessorList

from alignment.contrasts.adacad import AdaCAD
from alignment.contrasts.args import ARGS
from alignment.contrasts.base import Contrast
from alignment.contrasts.contrastive import Contrastive
from alignment.contrasts.input import Input
from alignment.contrasts.linear_alignment import LinearAlignment
from alignment.contrasts.obrien_lewis import OBrienLewis
from alignment.decoding.passes import Pass, RewardPass
from alignment.decoding.processor import (
    ContrastProcessor,
    DivergenceMeter,
    kl,
    settle_ties,
)
from tests.decoding.generating import PROMPTS, contrasted, generated, inputs
from tests.tiny import EOS_ID, FAMILIES, PAD_ID, save_tiny_reward, tiny_model

EQUAL = [Contrastive(), OBrienLewis(), Input(), AdaCAD(), LinearAlignment()]


@pytest.fixture
def rewards(tmp_path: Path) -> Any:
    """A tiny classifier with one output, told which token pads."""
    folder = save_tiny_reward(tmp_path, seed=5)
    return AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=PAD_ID).eval()


@pytest.mark.parametrize("contrast", EQUAL, ids=lambda contrast: type(contrast).__name__)
def test_equal_models_give_plain_decoding_token_for_token(contrast: Contrast):
    model, given = tiny_model(), inputs()
    assert torch.equal(
        generated(model, given, contrasted(contrast, model, given)), generated(model, given)
    )


@pytest.mark.parametrize(
    "contrast", [OBrienLewis(beta=0.0), Contrastive(amateur_weight=0.0)], ids=repr
)
def test_strength_zero_gives_plain_decoding_token_for_token(contrast: Contrast):
    model, given = tiny_model(), inputs()
    second = contrasted(contrast, tiny_model(seed=1), given)
    assert torch.equal(generated(model, given, second), generated(model, given))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_padded_on_the_left_gives_what_its_rows_give_alone(family: str):
    model, amateur = tiny_model(family), tiny_model(family, seed=1)
    together = generated(model, inputs(), contrasted(OBrienLewis(), amateur, inputs())).tolist()
    assert together != generated(model, inputs()).tolist()
    for prompt, row in zip(PROMPTS, together, strict=True):
        given = inputs([prompt])
        alone = generated(model, given, contrasted(OBrienLewis(), amateur, given))[0].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {PAD_ID}


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_give_the_logits_of_reading_all_anew(family: str):
    """Each step's scores against a forward pass of both models over the whole text."""
    model, amateur, given = tiny_model(family), tiny_model(family, seed=1), inputs()
    steps: list[tuple[Tensor, Tensor]] = []
    processor = contrasted(OBrienLewis(alpha=0.0), amateur, given)

    def watched(input_ids: Tensor, scores: Tensor) -> Tensor:
        steps.append((input_ids, processor(input_ids, scores)))
        return steps[-1][1]

    generated(model, given, watched)
    for ids, scores in steps[:: len(steps) - 1]:
        ones = torch.ones(len(ids), ids.shape[1] - given["input_ids"].shape[1])
        mask = torch.cat([given["attention_mask"], ones.long()], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        first, second = (
            each(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
            for each in (model, amateur)
        )
        torch.testing.assert_close(scores, 1.5 * first - 0.5 * second, atol=2e-4, rtol=1e-4)


def test_a_token_is_read_once_and_a_generation_begins_anew():
    model, amateur, given = tiny_model(), tiny_model(seed=1), inputs()
    widths: list[int] = []
    amateur.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    processor = contrasted(OBrienLewis(), amateur, given)
    first = generated(model, given, processor, min_new_tokens=12)
    assert widths == [given["input_ids"].shape[1], *[1] * 11]
    assert torch.equal(first, generated(model, given, processor, min_new_tokens=12))


def test_prompts_of_the_second_pass_may_have_other_lengths():
    model = tiny_model()
    other = inputs(["the", "a question", "what the user asked and the assistant said in return"])
    rows = generated(model, inputs(), contrasted(AdaCAD(threshold=0.3), model, other)).tolist()
    short = inputs(PROMPTS[:1])
    alone = contrasted(AdaCAD(threshold=0.3), model, inputs(["the"]))
    assert generated(model, short, alone)[0].tolist() == rows[0][: len(rows[0])]


def test_an_answer_stops_where_the_contrast_says_so():
    """A second pass that never ends, moved away from, makes every row end at once."""
    model, given = tiny_model(), inputs()

    def second(input_ids: Tensor, scores: Tensor) -> Tensor:
        never = torch.zeros_like(scores)
        never[:, EOS_ID] = -1e4
        return never

    processor = ContrastProcessor(OBrienLewis(alpha=0.0), second)  # type: ignore[arg-type]
    assert generated(model, given, processor).tolist() == [[EOS_ID]] * 3


def test_beams_are_followed_where_they_go():
    model, amateur, given = tiny_model(), tiny_model(seed=1), inputs()
    plain = generated(model, given, num_beams=3)
    same = ContrastProcessor(OBrienLewis(alpha=0.0), Pass(model, **given), beams=True)
    assert torch.equal(generated(model, given, same, num_beams=3), plain)
    moved = ContrastProcessor(Contrastive(), Pass(amateur, **given), beams=True)
    together = generated(model, given, moved, num_beams=3)
    for index, prompt in enumerate(PROMPTS):
        one = inputs([prompt])
        alone = ContrastProcessor(Contrastive(), Pass(amateur, **one), beams=True)
        row = generated(model, one, alone, num_beams=3)[0]
        assert torch.equal(together[index, : len(row)], row)


def test_models_whose_heads_are_padded_differently_share_the_common_tokens():
    given = inputs()
    wide, narrow = tiny_model(vocab_size=330), tiny_model(seed=1)
    for model, other in ((wide, narrow), (narrow, wide)):
        tokens = generated(model, given, contrasted(OBrienLewis(), other, given))
        assert int(tokens.max()) < 320


def test_a_pass_refuses_what_it_has_not_followed():
    second = Pass(tiny_model(), **inputs())
    ids, scores = inputs()["input_ids"], torch.zeros(3, 320)
    second(ids, scores)
    with pytest.raises(ValueError, match="goes on by one token at a time"):
        second(torch.cat([ids, ids], 1), scores)
    second(ids, scores)
    strange = torch.cat([ids + 1, ids[:, :1]], 1)
    with pytest.raises(ValueError, match="shown tokens that it has not followed"):
        second(strange, scores)
    with pytest.raises(ValueError, match="2 rows are generated and 3 prompts given"):
        Pass(tiny_model(), **inputs())(ids[:2], scores[:2])


def test_rewards_are_those_of_reading_each_candidate_anew(rewards: Any):
    model, given = tiny_model(), inputs()
    contrast = ARGS(top_k=4, weight=2.0)
    reward_pass = RewardPass(rewards, contrast, **given)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watched(input_ids: Tensor, scores: Tensor) -> Tensor:
        found = reward_pass(input_ids, scores)
        seen.append((input_ids, scores, found))
        return contrast(scores, found)

    generated(model, given, watched, min_new_tokens=6, max_new_tokens=6)
    ids, scores, found = seen[-1]
    for row in range(3):
        real = given["attention_mask"][row].bool()
        text = torch.cat([ids[row, : len(real)][real], ids[row, len(real) :]])
        for token in contrast.candidates(scores)[row]:
            anew = rewards(input_ids=torch.cat([text, token[None]])[None]).logits[0, 0]
            torch.testing.assert_close(found[row, token], anew, atol=1e-4, rtol=1e-4)


def test_reward_guided_search_gives_rows_what_they_get_alone_and_none_at_weight_zero(rewards: Any):
    model = tiny_model()

    def search(weight: float, prompts: list[str]) -> Tensor:
        contrast, given = ARGS(top_k=5, weight=weight), inputs(prompts)
        guide = ContrastProcessor(contrast, RewardPass(rewards, contrast, **given))
        return generated(model, given, guide)

    assert torch.equal(search(0.0, PROMPTS), generated(model, inputs()))
    together = search(30.0, PROMPTS)
    assert not torch.equal(together, search(0.0, PROMPTS))
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = search(30.0, [prompt])[0]
        assert torch.equal(row[: len(alone)], alone)


def test_the_first_pass_decides_where_a_contrast_says_nothing():
    first = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    ruled_out = -torch.inf
    scores = torch.tensor([[0.0, 0.0, ruled_out], [3.0, 1.0, ruled_out]])
    assert settle_ties(scores, first).tolist() == [[1.0, 2.0, ruled_out], [3.0, 1.0, ruled_out]]


def test_the_divergence_of_worked_probabilities():
    """.5 ln(.5/.25) + .5 ln(.5/.75) = 0.143841; a token that cannot be chosen adds nothing."""
    start = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    found = kl(torch.tensor([[0.0, 0.0], [-torch.inf, 0.0]]), start)
    torch.testing.assert_close(found, torch.tensor([0.1438410, 0.2876821]))


def test_the_meter_adds_up_steps_until_a_row_has_ended_and_changes_nothing():
    model, given = tiny_model(), inputs()
    meter = DivergenceMeter(Pass(tiny_model(seed=1), **given), {EOS_ID})
    tokens = generated(model, given, meter)
    assert torch.equal(tokens, generated(model, given))
    for row, prompt in enumerate(PROMPTS):
        one = inputs([prompt])
        alone = DivergenceMeter(Pass(tiny_model(seed=1), **one), {EOS_ID})
        generated(model, one, alone)
        torch.testing.assert_close(meter.total[row], alone.total[0], atol=1e-4, rtol=1e-4)
    itself = DivergenceMeter(Pass(model, **given), {EOS_ID})
    generated(model, given, itself)
    assert itself.total.abs().max() < 1e-5


def test_a_step_after_the_end_of_a_row_is_not_counted():
    start = Pass(tiny_model(seed=1), **inputs(["a", "a"]))
    meter = DivergenceMeter(start, {EOS_ID})
    ids = inputs(["a", "a"])["input_ids"]
    meter(ids, torch.zeros(2, 320))
    once = meter.total.clone()
    meter(torch.cat([ids, torch.tensor([[EOS_ID], [7]])], 1), torch.zeros(2, 320))
    assert meter.total[0] == once[0]
    assert meter.total[1] > once[1]


def test_sampling_at_strength_zero_draws_what_plain_sampling_draws():
    model, given = tiny_model(), inputs()

    def drawn(processors: LogitsProcessorList) -> Tensor:
        torch.manual_seed(3)
        made: Tensor = model.generate(
            **given, max_new_tokens=12, do_sample=True, logits_processor=processors
        )
        return made

    second = contrasted(OBrienLewis(beta=0.0, alpha=0.0), tiny_model(seed=1), given)
    assert torch.equal(drawn(LogitsProcessorList([second])), drawn(LogitsProcessorList()))
