"""Several prepared sets as one source, of which each gives its share of the samples."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, SupportsIndex

from medclip_jax.shards.arrays import ShardError
from medclip_jax.shards.grid import differences, volume_kind
from medclip_jax.shards.read import PreparedInfo, ShardSource, open_configured, open_shards, open_split
from medclip_jax.shards.record import GROUPS
from medclip_jax.shards.subset import Subset

if TYPE_CHECKING:
    from medclip_jax.shards.chosen import ChosenRows

_MOST = 2**31
"""Samples of an epoch: their indices are 32-bit integers."""


class Mixture:
    """Random access to the records of several sets: ``len(source)``, ``source[i] -> dict``, as of one set.

    Each set fills a block of the indices, as long as its share wants; within a block, its records come in
    order, and again from the first. The source is as long as it must be for every record to be there at
    least once: the set with the most records for its share is there exactly once. So whatever shuffles and
    repeats the indices shows each set in its share, to one sample an epoch, and which sample that is stays a
    function of the index alone.

    Args:
        sources: of sets that are alike, see `check_alike`.
        weights: one for each, above 0; only their ratios count.

    Attributes:
        info: of the first set.
        counts: samples of each set in an epoch.
    """

    def __init__(self, sources: Sequence[ShardSource | ChosenRows], weights: Sequence[float]):
        check_alike([source.info for source in sources])
        self.sources, self.info = tuple(sources), sources[0].info
        total = math.fsum(weights)
        length = max(len(source) * total / weight for source, weight in zip(sources, weights, strict=True))
        if not length < _MOST:
            raise ShardError(
                f"with these weights an epoch would hold {length:.3g} samples: bring the weights of "
                "config.data.sets nearer to each other, or leave the smallest out"
            )
        self.counts = tuple(
            max(len(source), round(length * weight / total))
            for source, weight in zip(sources, weights, strict=True)
        )
        self._ends = tuple(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, object]:
        """The sample at `index`, decoded.

        Raises:
            IndexError: no such index.
            ShardError: the record is damaged.
        """
        source, place = self._find(index.__index__())
        return source[place]

    def raw(self, index: int) -> bytes:
        """The serialized record at `index`."""
        source, place = self._find(index)
        return source.raw(place)

    def _find(self, index: int) -> tuple[ShardSource | ChosenRows, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a mixture of {len(self)}")
        number = bisect_right(self._ends, index)
        source = self.sources[number]
        return source, (index - self._ends[number] + self.counts[number]) % len(source)

    @property
    def fingerprint(self) -> str:
        """A hash of what the sets hold and of their shares; the same wherever they lie."""
        content = [(source.fingerprint, source.split) for source in self.sources], self.counts
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Mixture({', '.join(map(repr, self.sources))}, counts={self.counts!r})"


def check_alike(infos: Sequence[PreparedInfo]) -> None:
    """Check that records of several sets can stand in one batch.

    Args:
        infos: from `open_shards`; the first is what the others must be like.

    Raises:
        ShardError: they differ in grid, crop, modality, arrays, or columns; the message says how to prepare.
    """
    first = infos[0]
    for info in infos[1:]:
        found = differences(volume_kind(first), volume_kind(info))
        for name, option in (("findings", "--findings"), ("organs", "--organs"), ("cell", "--organ-cell")):
            theirs, ours = getattr(info, name), getattr(first, name)
            if theirs != ours:
                found.append(f"{name} {theirs!r} instead of {ours!r} ({option})")
        if info.label_classes != first.label_classes:
            found.append(
                f"classes of label maps {info.label_classes!r} instead of {first.label_classes!r} "
                "(--label-maps)"
            )
        if info.definitions != first.definitions:
            found.append("findings of the same name are defined otherwise (--findings)")
        others = [spec for spec in info.arrays if spec not in first.arrays and spec.name != GROUPS]
        if not found and others:
            found.append("other arrays")
        if found:
            raise ShardError(
                f"'{info.folder}' cannot be mixed with '{first.folder}': {'; '.join(found)}. Prepare it as "
                "the other was"
            )


def open_training(config: Any, fields: Sequence[str] | None = None) -> ShardSource | ChosenRows | Mixture:
    """What a run trains on: the split of one set, or of several that are mixed; a subset of each, if any.

    Args:
        config: `config.data`.
        fields: of a record to decode; None for all.

    Raises:
        ShardError: no prepared folder, no such split, weights that are none, or sets that differ.
    """
    if not config.sets:
        return open_split(open_configured(config), config.train_split, fields=fields)
    entries = [tuple(entry) if isinstance(entry, list | tuple) else () for entry in config.sets]
    for entry in entries:
        named = len(entry) == 2 and isinstance(entry[0], str)
        if not named or not isinstance(entry[1], int | float) or not 0 < entry[1] < math.inf:
            raise ShardError(
                f"config.data.sets has the entry {entry!r}: each is a pair of a prepared folder and its "
                "weight above 0, such as (('shards/a', 0.7), ('shards/b', 0.3))"
            )
    folders = [folder for folder, _ in entries]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise ShardError(f"config.data.sets names {', '.join(sorted(twice))} twice: add up the weights")
    subset, tables = Subset.of(config), tuple(config.get("tables", ()))
    sources = [
        open_split(open_shards(folder, subset=subset, tables=tables), config.train_split, fields=fields)
        for folder in folders
    ]
    return Mixture(sources, [weight for _, weight in entries])
