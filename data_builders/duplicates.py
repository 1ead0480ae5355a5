"""Texts that nearly repeat another, in time and memory that grow with their length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHINGLE = 8
"""Characters of the pieces that are compared: of any language, and across line breaks."""
THRESHOLD = 0.8
"""Share of pieces in common from which on texts count as near-duplicates."""

_BANDS, _ROWS = 16, 4
"""Two texts meet if all rows of a band agree: at `THRESHOLD` they do in 999 cases of 1,000."""
_BINS = np.arange(_BANDS * _ROWS, dtype=np.uint64) << np.uint64(58)
_RNG = np.random.default_rng(0)
_POWERS = _RNG.integers(1, 2**63, SHINGLE, dtype=np.uint64) | np.uint64(1)

Signature = npt.NDArray[np.uint32]


def signature(text: str) -> Signature:
    """A MinHash of the pieces of a text, case and white space aside.

    Two signatures agree in a share of their values that estimates the Jaccard overlap of the sets
    of pieces: |A and B| / |A or B|. The hashes are dealt into bins, each of which keeps its least;
    an empty bin borrows from the next that is not, and remembers from how far away (Shrivastava
    and Li, "Densifying One Permutation Hashing via Rotation", ICML 2014).

    Returns:
        (64,) values.
    """
    words = " ".join(text.lower().split()).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(words, dtype=np.uint32).astype(np.uint64)
    size = max(1, min(SHINGLE, len(letters)))
    pieces = np.zeros(max(1, len(letters) - size + 1), dtype=np.uint64)
    for offset in range(min(size, len(letters))):
        pieces += letters[offset : offset + len(pieces)] * _POWERS[offset]
    hashes = np.sort(_mixed(pieces))
    first = np.append(np.searchsorted(hashes, _BINS), len(hashes))
    filled = np.flatnonzero(first[:-1] < first[1:])
    lender = np.searchsorted(filled, np.arange(len(_BINS))) % len(filled)
    distance = (filled[lender] - np.arange(len(_BINS))) % len(_BINS)
    values = _mixed(hashes[first[filled[lender]]] + distance.astype(np.uint64))
    return values.astype(np.uint32)


def near_duplicates(signatures: list[Signature]) -> int:
    """How many texts share at least `THRESHOLD` of their pieces with an earlier text.

    Each is compared with the first of those that agree with it in a band, so the work grows with
    the number of texts and not with its square.

    Args:
        signatures: Of the texts, in order.
    """
    if not signatures:
        return 0
    table = np.stack(signatures)  # (texts, 64)
    here = np.arange(len(table))
    repeated = np.zeros(len(table), dtype=bool)
    for band in range(_BANDS):
        rows = table[:, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64)
        keys = _mixed((rows * _POWERS[:_ROWS]).sum(axis=1, dtype=np.uint64))
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        earlier = first[group]
        later = np.flatnonzero(earlier < here)
        alike = (table[later] == table[earlier[later]]).mean(axis=1)
        repeated[later] |= alike >= THRESHOLD
    return int(repeated.sum())


class NearIndex:
    """Texts to look others up among that share at least `THRESHOLD` of their pieces with one.

    Candidates meet by a band of their signatures; whether they are alike is then counted exactly.
    """

    def __init__(self) -> None:
        self._texts: list[frozenset[str]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str) -> None:
        """Adds a text."""
        for band in _bands_of(text):
            self._bands.setdefault(band, []).append(len(self._texts))
        self._texts.append(_pieces(text))

    def find(self, text: str) -> int | None:
        """The number of the first text added that is like this one, None where there is none."""
        met = {number for band in _bands_of(text) for number in self._bands.get(band, ())}
        mine = _pieces(text)
        for number in sorted(met):
            theirs = self._texts[number]
            if len(mine & theirs) >= THRESHOLD * len(mine | theirs):
                return number
        return None


def _bands_of(text: str) -> list[tuple[int, bytes]]:
    rows = signature(text).reshape(_BANDS, _ROWS)
    return [(number, band.tobytes()) for number, band in enumerate(rows)]


def _pieces(text: str) -> frozenset[str]:
    """What `signature` hashes."""
    words = " ".join(text.lower().split())
    return frozenset(
        words[start : start + SHINGLE] for start in range(max(1, len(words) - SHINGLE + 1))
    )


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spreads every bit over the whole word, as SplitMix64 ends."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
