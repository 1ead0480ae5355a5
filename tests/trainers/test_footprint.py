"""A step on tensors without data: what is followed, what is counted, and the measured peak."""

from pathlib import Path

import pytest
import torch
from trl import ModelConfig

from alignment.cli import UserError
from alignment.core.packing import TokenGroup, pack
from alignment.objectives import load_objective
from alignment.trainers.config import GroupConfig
from alignment.trainers.footprint import Footprint, Trace, build_models, trace_step
from alignment.trainers.teacher import Frozen
from tests.tiny import save_tiny

GROUP = TokenGroup.of([[1, 2, 3, 4]] * 2, [[5, 6, 7], [8, 9]], role=[1, -1], weight=[1.0, 1.0])


def footprint(  # noqa: PLR0913
    folder: Path,
    groups: list[TokenGroup],
    *,
    objective: str = "apo",
    layout: str = "ragged",
    checkpointing: bool = False,
    accumulating: bool = False,
    teacher: str | None = None,
    **settings: object,
) -> Footprint:
    wanted = ModelConfig(
        model_name_or_path=str(folder), lora_target_modules=["all-linear"], **settings
    )
    args = GroupConfig(output_dir=str(folder / "out"), use_cpu=True, bf16=False)
    formula = load_objective(objective, {})
    models = build_models(wanted, args, formula, others=Frozen(teacher))
    return trace_step(
        models,
        formula,
        pack(groups, layout, 0),  # type: ignore[arg-type]
        args,
        checkpointing=checkpointing,
        accumulating=accumulating,
    )


def test_bytes_count_from_making_to_freeing():
    """250 float32 are 1000 bytes; a view is none; at most two such tensors live together."""
    trace = Trace([])
    with trace:
        first = torch.zeros(250)
        view = first[10:]
        second = first + 1
        assert trace.live == trace.peak == 2000
        del first, view
        assert trace.live == 1000
        del second
    assert (trace.live, trace.peak) == (0, 2000)


def test_weights_that_are_there_already_do_not_count():
    weight = torch.zeros(250)
    trace = Trace([weight])
    with trace:
        turned = weight.view(25, 10).T
    assert turned.shape == (10, 25)
    assert trace.peak == 0


def test_an_adapter_trains_and_the_model_does_not(model_dir: Path):
    """Rank 4 on two layers of width 32, inner width 64, kv width 16.

    (32+32) + 2 (32+16) + (32+32) + 3 (32+64) = 512 rows and columns, times 4 and 2 layers: 4096.
    """
    found = footprint(model_dir, [GROUP], use_peft=True, lora_r=4)
    assert found.trained_count == 4096
    assert found.trained == found.gradients == 4 * 4096
    layers = 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    assert found.weights == 4 * (layers + 32 + 2 * 320 * 32)
    assert found.copies == 0


def test_a_whole_model_trains_against_a_copy_of_itself(model_dir: Path):
    found = footprint(model_dir, [GROUP])
    assert found.weights == 0
    assert found.trained == found.copies == found.gradients


def test_gradients_of_an_earlier_pass_are_there_from_the_start(model_dir: Path):
    first = footprint(model_dir, [GROUP])
    later = footprint(model_dir, [GROUP], accumulating=True)
    assert later.gradients_at_peak == later.gradients
    assert later.kept == first.kept
    assert later.peak >= first.peak


def test_operations_are_those_of_the_matrix_products(model_dir: Path):
    """7 positions, 5 of them score; two layers of 9,216 weights, a head of 320 x 32.

    Reference, policy and input gradient are three times 2 x 7 x 18,432 = 258,048, less what ends
    at the first layer; the head is 2 x 5 x 10,240 = 102,400, once for the reference and twice for
    the policy. Adapter and attention add less than a third.
    """
    found = footprint(model_dir, [GROUP], use_peft=True, lora_r=1)
    assert GROUP.lengths()[0] == 7
    products = 3 * 258_048 + 3 * 102_400
    assert 0.9 * products < found.operations < 1.33 * products
    assert found.head_operations == 3 * 102_400


def test_checkpointing_keeps_less_and_computes_more(model_dir: Path):
    whole = footprint(model_dir, [GROUP] * 40, use_peft=True)
    thin = footprint(model_dir, [GROUP] * 40, use_peft=True, checkpointing=True)
    assert thin.kept < 0.5 * whole.kept
    assert thin.operations > 1.1 * whole.operations


def test_what_a_token_keeps_does_not_grow_with_the_group(model_dir: Path):
    """Groups of 2 and of 8 with as many unique positions: no branch keeps a copy of its prefix."""

    def kept(responses: int, groups: int) -> float:
        group = TokenGroup.of(
            [list(range(1, 31))] * responses,
            [list(range(1, 31))] * responses,
            role=[1, -1] + [0] * (responses - 2),
            reward=[0.0] * responses,
            weight=[1.0] * responses,
        )
        found = footprint(model_dir, [group] * groups, objective="sft", use_peft=True)
        return found.kept / (groups * group.lengths()[0])

    assert kept(8, 3) == pytest.approx(kept(2, 9), rel=0.03)


@pytest.mark.parametrize("layout", ["plain", "shared", "ragged"])
def test_every_layout_can_be_traced(model_dir: Path, layout: str):
    assert footprint(model_dir, [GROUP], layout=layout, use_peft=True).peak > 0


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2"])
def test_other_families_can_be_traced(tmp_path: Path, family: str):
    folder = save_tiny(tmp_path, family)
    layout = "ragged" if family != "gpt2" else "plain"
    assert footprint(folder, [GROUP], layout=layout, use_peft=True).operations > 0


def test_a_teacher_is_a_copy_and_is_computed(model_dir: Path, tmp_path: Path):
    teacher = save_tiny(tmp_path, hidden_size=64, seed=1)
    found = footprint(model_dir, [GROUP], objective="kd", teacher=str(teacher), use_peft=True)
    assert found.copies > found.weights
    assert found.peak > 0


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such model folder"):
        footprint(tmp_path / "absent", [GROUP])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vocabulary", "responses", "checkpointing"),
    [(32_000, 2, False), (151_936, 2, False), (32_000, 4, False), (32_000, 2, True)],
)
def test_memory_is_within_a_fifth_of_the_measured_peak(
    tmp_path: Path, vocabulary: int, responses: int, checkpointing: bool
):
    """The benchmark's shapes; both sides leave out the weights and hold two states of AdamW."""
    from benchmarks._data import PRESETS, drawn_groups
    from benchmarks._sides import Shape, Side
    from benchmarks.step import peak_megabytes
    from tests.tiny import tiny_tokenizer

    shape = Shape(vocabulary=vocabulary, checkpointing=checkpointing)
    shape.config().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    groups = drawn_groups(PRESETS["512x128"], responses, 3, seed=0)
    found = footprint(
        tmp_path,
        groups,
        objective="apo" if responses == 2 else "nca",
        checkpointing=checkpointing,
        use_peft=True,
        lora_r=shape.rank,
    )
    estimated = (found.peak + 2 * found.trained) / 1e6
    measured = peak_megabytes(shape, groups, Side(trl=False))
    assert estimated == pytest.approx(measured, rel=0.2)
