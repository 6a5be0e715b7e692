"""Which classes the label maps of a set have."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from medclip_jax.corpora.study import OUTSIDE_LABEL, Study
from medclip_jax.shards.arrays import ShardError

LABEL_MAPS = ("corpus", "organs")
"""Where label maps can come from: the archive's own, or its organ masks."""

MOST_CLASSES = OUTSIDE_LABEL - 1


def check_label_maps(
    source: str,
    studies: Sequence[Study],
    organs: Sequence[str],
    masks: Collection[str],
    *,
    has_volume: bool = True,
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The classes of a set's label maps, and the regions that are made of them.

    Classes of the archive's maps come in the order of their values; where studies have maps of their own,
    the classes of all, each once.

    Args:
        source: one of `LABEL_MAPS`, or "" for none.
        studies: of the set.
        organs: that masks are wanted of, in order.
        masks: names of all masks that the studies have.
        has_volume: whether records hold the array `volume`, on whose grid label maps lie.

    Raises:
        ShardError: there is nothing to prepare, too much, or regions differ between studies.
    """
    if source not in ("", *LABEL_MAPS):
        raise ShardError(f"label_maps '{source}' is none of {', '.join(LABEL_MAPS)}")
    if not source:
        return (), {}
    if not has_volume:
        raise ShardError("label maps lie on the grid of 'volume', and no series has that name")
    regions: dict[str, tuple[str, ...]] = {}
    if source == "organs":
        classes = tuple(organs)
        if not set(classes) & set(masks):
            raise ShardError(
                "label maps were to be made of organ masks, and no study has a mask of a known organ: give "
                "the table a column 'organs', --masks a folder, or name masks with --organs"
            )
    else:
        maps = [study.label_map for study in studies if study.label_map is not None]
        if not maps:
            raise ShardError(
                "label maps were requested, and no study has one: give the table a column 'label_map', make "
                "them of organ masks with --label-maps organs, or leave the option out"
            )
        first: dict[str, int] = {}
        for value, name in {item for each in maps for item in each.classes.items()}:
            first[name] = min(value, first.get(name, value))
        classes = tuple(sorted(first, key=lambda name: (first[name], name)))
        regions = dict(maps[0].regions)
        if any(dict(each.regions) != regions for each in maps):
            raise ShardError(
                "the label maps of the studies define their regions differently: prepare those of each "
                "definition into a folder of their own"
            )
    if len(classes) > MOST_CLASSES:
        raise ShardError(
            f"{len(classes)} classes, and a label map holds at most {MOST_CLASSES}: name those that you want "
            "with --organs, or in the class map"
        )
    return classes, regions
