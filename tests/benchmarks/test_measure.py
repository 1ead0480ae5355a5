"""Arithmetic that all benchmarks share."""

import mmap
from pathlib import Path

import pytest

from benchmarks._measure import Growth, Spread, file_backed, in_fresh_process, table


def test_a_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)


def test_a_table_aligns_its_columns():
    assert table([("", "a"), ("long", "1.5")]) == "        a\nlong  1.5"


def test_growth_is_that_since_it_was_made():
    """64 MB are taken and given back in between: more than malloc ever keeps."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    growth = Growth()
    block = bytearray(64_000_000)
    del block
    assert 60 < growth.megabytes() < 90
    assert Growth().megabytes() < 10


def test_a_mapped_file_is_no_growth_once_it_is_read(tmp_path: Path):
    """16 MB are mapped and touched."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    file = tmp_path / "zeros"
    file.write_bytes(bytes(16_000_000))
    before, growth = file_backed(), Growth()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert file_backed() - before > 14e6
        assert growth.megabytes() < 10


@pytest.mark.slow
def test_what_a_process_says_when_it_fails_is_shown():
    with pytest.raises(RuntimeError, match=r"benchmarks\.scaling --one failed"):
        in_fresh_process("benchmarks.scaling", 1)
