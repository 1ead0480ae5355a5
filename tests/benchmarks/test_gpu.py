"""Counting the operations of a step."""

import pytest
import torch

from alignment.core.packing import TokenGroup
from benchmarks._measure import Spread
from benchmarks._operations import operations, products_per_second, visible_pairs
from benchmarks._sides import Shape
from benchmarks.gpu import main, peak_operations, with_mfu
from benchmarks.step import OURS, OURS_STORED, Result

GROUP = TokenGroup.of([[1, 2, 3]] * 2, [[4, 5], [6, 7, 8]], role=[1, -1])
SHAPE = Shape(vocabulary=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, rank=1)


def test_positions_see_the_prompt_and_their_own_response():
    """Prompt 3: 1 + 2 + 3 = 6. One more position of the first response sees 3 + 1 = 4.

    The second response has two: 4 and 5. Together 19.
    """
    assert visible_pairs(GROUP) == 19


def test_operations_are_counted_as_the_docstring_says():
    """Six positions, five scored tokens, 19 visible pairs.

    A layer has 4x4 + 4x4 for queries and output, 2 x 4x2 for keys and values, 3 x 4x6 for the MLP:
    120 weights, and an adapter of 8 + 8 + 6 + 6 + 10 + 10 + 10 = 58. Weights that are used:
    6 x 2 x 120 + 5 x 4 x 10 = 1640, six operations each with a reference and four without. Adapter:
    6 x 6 x 2 x 58 = 4176. Attention: 4 x 2 x 4 x 19 = 608 forward, four times that with backward
    and reference, three times without.
    """
    assert operations(SHAPE, [GROUP], stored=False) == 6 * 1640 + 4176 + 4 * 608
    assert operations(SHAPE, [GROUP], stored=True) == 4 * 1640 + 4176 + 3 * 608


def test_a_machine_multiplies():
    assert 1e6 < products_per_second(SHAPE, 100) < 1e15


def test_mfu_is_operations_over_time_and_over_the_peak():
    """10 in 2 seconds of at most 20 per second are a quarter."""
    taken = Result(Spread(2.0, 2.0, 2.0), 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    results = {OURS: taken, OURS_STORED: taken}
    header, first, _ = with_mfu(results, {OURS: 10.0, OURS_STORED: 5.0}, 20.0)
    assert (header[-1], first[-1]) == ("MFU", "25.0%")
    assert with_mfu(results, {OURS: 10.0, OURS_STORED: 5.0}, None)[1][-1] == "?"


def test_a_gpu_is_known_by_a_part_of_its_name():
    assert peak_operations("NVIDIA H200 NVL") == 989e12
    assert peak_operations("A toaster") is None


def test_without_a_gpu_one_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main([])
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA GPU" in line


def test_without_trl_one_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    main([])
    (line,) = capsys.readouterr().out.splitlines()
    assert "trl is not installed" in line
