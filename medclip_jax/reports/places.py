"""Where in the body a finding lies, and which organs of a prepared set show that place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medclip_jax.reports.anatomy import containers, nearest_containers, regions_of
from medclip_jax.reports.regions import REGIONS, SIDES, Key, key_of

PLACES: Mapping[str, tuple[str, ...]] = {
    "coronary_stenosis": ("coronary arteries",),
    "coronary_calcification": ("coronary arteries",),
    "aortic_calcification": ("aorta",),
    "cardiomegaly": ("heart",),
    "pericardial_effusion": ("pericardium", "heart"),
    "pulmonary_arterial_hypertension": ("pulmonary artery",),
    "pleural_effusion": ("pleura",),
    "lung_nodule": ("lung",),
    "emphysema": ("lung",),
    "consolidation": ("lung",),
    "hiatal_hernia": ("esophagus",),
    "lymphadenopathy": ("mediastinal lymph nodes",),
    "atelectasis": ("lung",),
    "lung_opacity": ("lung",),
    "pulmonary_fibrotic_sequela": ("lung",),
    "mosaic_attenuation": ("lung",),
    "peribronchial_thickening": ("bronchie", "lung"),
    "bronchiectasis": ("bronchie", "lung"),
    "interlobular_septal_thickening": ("lung",),
}
"""Finding to regions, by the names of `reports.regions.REGIONS`: the first that a set has organs of counts.

A finding that is not here (atherosclerosis; medical material; a user's own) lies in whatever regions its
sentence names.
"""

_NEXT = {key_of(first): tuple(map(key_of, others)) for first, *others in PLACES.values() if others}

_NAMES = {key_of(region.name): region.name for region in REGIONS}


def read_places(entries: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`PLACES` with entries of one's own, which take the place of those there.

    Args:
        entries: such as "lung_nodule=lung upper lobe, lung"; nothing after "=" for whatever is named.

    Raises:
        ValueError: an entry without "=", or a region that is unknown.
    """
    places = dict(PLACES)
    for entry in entries:
        name, equals, regions = entry.partition("=")
        if not equals:
            raise ValueError(f'{entry!r}: write FINDING=REGION, REGION, such as "lung_nodule=lung"')
        names = tuple(region.strip() for region in regions.split(",") if region.strip())
        for region in names:
            if _unsided(key_of(region)) not in _NAMES:
                raise ValueError(f"{entry!r}: no region {region!r}; there are {', '.join(_NAMES.values())}")
        places[name.strip()] = names
    return places


def channels_of(region: Key, organs: Sequence[str]) -> tuple[int, ...]:
    """Which organs show a region: the region itself, else its parts, else the nearest that contains it.

    Args:
        region: see `regions.key_of`.
        organs: names of the channels; one that is no known region shows none.

    Returns:
        Indices, () where no organ shows it.
    """
    keys = [key_of(organ) for organ in organs]

    def among(wanted: frozenset[Key]) -> tuple[int, ...]:
        return tuple(index for index, key in enumerate(keys) if key in wanted)

    own = among(frozenset((region,)))
    found = own or tuple(index for index, key in enumerate(keys) if region in containers(key, apart=False))
    level = frozenset((region,))
    while not found and level:
        level = frozenset().union(*map(nearest_containers, level))
        found = among(level)
    return found


def named_places(sentence: str, organs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The regions that a sentence is about, as `anatomy.regions_of` reads it, and the organs that show them.

    Args:
        sentence: of a report.
        organs: names of the channels.

    Returns:
        Name to indices; only regions that some organ shows.
    """
    return _shown(regions_of(sentence), organs)


def named_organs(sentence: str, organs: Sequence[str]) -> frozenset[int]:
    """The organs that show what a sentence is about.

    Where none shows any region that it names, those of the region that `PLACES` gives for the same finding
    next: of the pericardium, which is seldom outlined, the heart.

    Args:
        sentence: of a report.
        organs: names of the channels.

    Returns:
        Indices.
    """
    named = regions_of(sentence)

    def shown(regions: Iterable[Key]) -> frozenset[int]:
        return frozenset(index for region in regions for index in channels_of(region, organs))

    return shown(named) or shown(key for region in named for key in _NEXT.get(region, ()))


def finding_place(
    finding: str, sentence: str, organs: Sequence[str], places: Mapping[str, tuple[str, ...]] = PLACES
) -> tuple[int, ...]:
    """The organs in which a finding lies that a sentence states.

    Of its place (`PLACES`), the parts that the sentence names; where it names none of them, all of it.

    Args:
        finding: its name.
        sentence: that states it.
        organs: names of the channels.
        places: finding to regions.

    Returns:
        Indices, () where no organ shows its place.
    """
    named = regions_of(sentence)
    if not places.get(finding):
        return tuple(sorted({index for shown in _shown(named, organs).values() for index in shown}))
    for region in map(key_of, places[finding]):
        within = {key for key in named if key == region or region in containers(key)}
        shown = {index for key in within for index in channels_of(key, organs)}
        if shown := shown or set(channels_of(region, organs)):
            return tuple(sorted(shown))
    return ()


def region_name(region: Key) -> str:
    """What a region is called: "left lung lower lobe", "vertebrae t12"."""
    sides = [side for side in SIDES if side in region]
    name = _NAMES.get(_unsided(region))
    # Of a rib or a vertebra by number, which has no name of its own, the number stands last.
    return " ".join([*sides, name] if name else sorted(region, key=lambda word: (len(word) < 4, word)))


def _unsided(region: Key) -> Key:
    return region if region in _NAMES else region - frozenset(SIDES)


def _shown(regions: Iterable[Key], organs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found = {region_name(region): channels_of(region, organs) for region in sorted(regions, key=sorted)}
    return {name: channels for name, channels in found.items() if channels}
