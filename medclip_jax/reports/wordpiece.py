"""Learning a WordPiece vocabulary, the same one on every run.

The trainer of the `tokenizers` package numbers its pieces in the order of a randomly seeded hash table, so
two runs over one corpus give two vocabularies. Here every tie is broken by spelling.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first entries of a trained vocabulary: ids 0 to 4."""


def _joined(left: str, right: str) -> str:
    return left + right.removeprefix("##")


def _letters(word: str) -> list[str]:
    return [word[0]] + ["##" + letter for letter in word[1:]]


def learn_pieces(
    words: Mapping[str, int], size: int, minimum_count: int = 2, spelled: Iterable[str] = ()
) -> list[str]:
    """Merge the most frequent pair of neighboring pieces until the vocabulary is full.

    Args:
        words: each distinct word with its count, already normalized and split at white space and punctuation.
        size: entries wanted, `SPECIAL_TOKENS` included.
        minimum_count: a pair seen less often is not merged.
        spelled: words from which nothing is learned but their characters, so that they can be spelled.

    Returns:
        At most `size` entries: special tokens, single characters (sorted), then merges in the order learned.
        All characters are kept, even if they alone exceed `size`.
    """
    spelling = sorted(words)
    pieces = [_letters(word) for word in spelling]
    counts = [words[word] for word in spelling]
    vocabulary = list(SPECIAL_TOKENS) + sorted(
        {piece for word in pieces for piece in word} | {piece for word in spelled for piece in _letters(word)}
    )
    known = set(vocabulary)

    pair_counts: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(pieces):
        for pair in itertools.pairwise(word):
            pair_counts[pair] += counts[index]
            where[pair].add(index)
    # Entries of the heap go stale when a count changes; they are recognized by comparing counts when popped.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    while heap and len(vocabulary) < size:
        negative, pair = heapq.heappop(heap)
        if -negative != pair_counts[pair]:
            continue
        if -negative < minimum_count:
            break
        merged = _joined(*pair)
        if merged not in known:
            known.add(merged)
            vocabulary.append(merged)
        changed: set[tuple[str, str]] = set()
        for index in where.pop(pair):
            old = pieces[index]
            new = _merge(old, pair, merged)
            for neighbors in itertools.pairwise(old):
                pair_counts[neighbors] -= counts[index]
                changed.add(neighbors)
            for neighbors in itertools.pairwise(new):
                pair_counts[neighbors] += counts[index]
                where[neighbors].add(index)
                changed.add(neighbors)
            pieces[index] = new
        for neighbors in changed:
            if pair_counts[neighbors] > 0:
                heapq.heappush(heap, (-pair_counts[neighbors], neighbors))
    return vocabulary


def _merge(word: Sequence[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(word):
        if index + 1 < len(word) and (word[index], word[index + 1]) == pair:
            result.append(merged)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result
