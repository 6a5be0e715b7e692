"""What `prepare` can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medclip_jax.corpora.organ_names import is_organ_name
from medclip_jax.corpora.study import Study
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.quantities import Quantity
from medclip_jax.shards.arrays import ArraySpec, ShardError
from medclip_jax.shards.label_classes import check_label_maps
from medclip_jax.shards.record import GROUPS, LABEL_MAP, ORGAN_SENTENCES, VOLUME, Schema, common_arrays
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes import RULES

SPLITS = ("train", "validation", "test")

FITS = ("crop", "resize")
"""How a scan comes to the set's shape: cut or padded at one spacing, or all of it resized."""

SPACING = (3.0, 1.5, 1.5)
"""mm along depth, height, width where none are given."""


@dataclass(frozen=True)
class PrepareSettings:
    """Everything that decides what a prepared set holds; written to `prepare.json`.

    Attributes:
        shape: (D, H, W) voxels of a prepared volume; () where `series` are given and none is `volume`.
        spacing: mm per voxel along depth, height, width; likewise. None means `SPACING`, or with
            ``fit="resize"`` each scan's own, which `resolve` writes as (None, None, None).
        fit: "crop" brings scans to one spacing, and cuts or pads them to the shape; "resize" resamples each
            scan's full extent to the shape, so that its spacing is its own, in the array `volume_spacing`.
            Where `series` are given, each says that itself, by a spacing of None.
        crop: what the volume is centered on: "center" (the scan's middle), "box" (the study's
            ``box_x_min`` ... ``box_z_max`` measurements, RAS mm) or the name of an organ with a mask.
        findings: columns of `findings` and `labels`; None means Cardiac-CLIP's seven.
        definitions: the findings that are known: the library's, and your own where there are any.
        organs: channels of `organs` in this order; None means all that the studies name, sorted, as far as
            the names are those of organs (`medclip_jax.corpora.organ_names`).
        measurements: columns of `measurements`; None means all that the studies name, sorted.
        cell: voxels per organ cell along each axis; 0 prepares no organs.
        tokenizer: "train" learns a WordPiece on the train split's texts; a folder is copied; None
            leaves the tokenizer to the training config.
        vocabulary_size: entries of a learned tokenizer, at most.
        vocabulary_patients: a word of the reports is learned only if it stands in those of so many patients:
            the tokenizer goes with every model, and names must not.
        fractions: share of patients in train, validation, test, where the corpus fixes no split.
        seed: of the split.
        modality: "CT" or "MR"; volumes of the other one are rejected.
        empty_report: "reject" or "note": what becomes of a volume whose report says nothing.
        per_shard: volumes in one shard, as long as no study is cut; None picks about 256 MB before
            compression.
        organ_text: "own" takes, for each organ, the sentences about it and its parts; "containing" gives
            an organ without any those about the region that contains it.
        zero_label: "absent" or "unknown": what 0 meant in the table's label columns; None where there was
            none. Told by the table, and written down here.
        kernel: only DICOM series of this reconstruction kernel, see `volumes.read_volume`; None takes any.
        series_rule: how one of several DICOM series is chosen where a study names none.
        percentiles: see `SeriesSettings`.
        series: what studies of several series become, an array of the record each; () for one volume a
            record, of the shape, spacing, modality and percentiles above.
        redact: quantities that no text of the set may state (`medclip_jax.reports.quantities`). Findings and
            labels are read before they are taken out.
        scrub: what finds personal data in the texts, which is replaced: "patterns" or a spaCy model (see
            `medclip_jax.reports.scrubbing`); "" for nothing.
        one_per_report: of the volumes of a split whose reports are the same, keep one.
        label_maps: where the array `label_map` comes from: "corpus", the maps that the archive has; "organs",
            made of the organ masks; "" prepares none.
        label_classes: names of its classes 1, 2, ...; found by `resolve`.
        label_regions: name to names of classes that together make it, as the archive says; likewise.
        groups: names of the groups of `groups` (scanner, sex); None means all that the studies name, sorted.
        unknown_masks: how many other names the masks have, which were left out; found by `resolve`.
    """

    shape: tuple[int, int, int] = (112, 224, 224)
    spacing: tuple[float | None, float | None, float | None] | None = None
    fit: str = "crop"
    crop: str = "center"
    findings: tuple[str, ...] | None = None
    organs: tuple[str, ...] | None = None
    measurements: tuple[str, ...] | None = None
    cell: int = 0
    tokenizer: str | None = "train"
    vocabulary_size: int = 8192
    vocabulary_patients: int = 5
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    modality: str = "CT"
    empty_report: str = "reject"
    per_shard: int | None = None
    organ_text: str = "containing"
    zero_label: str | None = None
    kernel: str | None = None
    series_rule: str = "best"
    unknown_masks: int = 0
    percentiles: tuple[float, float] | None = None
    series: tuple[SeriesSettings, ...] = ()
    definitions: Findings = BUILT_IN
    redact: tuple[Quantity, ...] = ()
    scrub: str = ""
    one_per_report: bool = False
    label_maps: str = ""
    label_classes: tuple[str, ...] = ()
    label_regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[str, ...] | None = None

    @property
    def all_series(self) -> tuple[SeriesSettings, ...]:
        """What each series of a study becomes."""
        spacing = self.spacing or (SPACING if self.fit == "crop" else (None, None, None))
        one = SeriesSettings(VOLUME, self.shape, spacing, self.modality, self.percentiles)
        return self.series or (one,)

    @property
    def schema(self) -> Schema:
        """What is the same for every record; only after `resolve`."""
        organs = self.organs if self.cell else ()
        schema = Schema(self.shape, self.spacing, self.findings, organs, self.measurements, self.cell)
        scans = [spec for series in self.all_series for spec in series.specs]
        declared = common_arrays(schema, scans)
        if self.label_maps:
            doc = "class of each voxel: 0 background, 255 outside of the scan or not labeled"
            declared += (ArraySpec(LABEL_MAP, "blosc2", self.shape, "uint8", optional=True, doc=doc),)
        if self.groups:
            declared += (ArraySpec(GROUPS, "json", optional=True, doc="name to the study's group"),)
        return replace(schema, declared=declared)

    @property
    def uses_masks(self) -> bool:
        """Whether organ masks are read at all."""
        return bool(self.cell) or self.crop not in ("center", "box") or self.label_maps == "organs"

    def keeps_note(self, note: str) -> bool:
        """Whether what a corpus noted of a study matters to this set."""
        if note.startswith("organs-"):
            return self.uses_masks
        return bool(self.label_maps) or not note.startswith("label-map-")

    def to_json(self) -> dict[str, object]:
        """As written to `prepare.json`: without folders of this machine."""
        copied = self.tokenizer not in ("train", None)
        written = asdict(self) | {"tokenizer": "copied" if copied else self.tokenizer}
        written["series"] = tuple(series.to_json() for series in self.series)
        # Only where they say something, so that other sets keep their bytes and fingerprints.
        for name in ("definitions", "redact", "scrub", "one_per_report"):
            del written[name]
        if self.fit == "crop":
            del written["fit"]
        for name in ("label_maps", "label_classes", "label_regions", "groups"):
            if not written[name]:
                del written[name]
        if self.definitions.own:
            written["definitions"] = self.definitions.to_json()
        if self.redact:
            written["redact"] = [quantity.to_json() for quantity in self.redact]
        if self.scrub:
            written["scrub"] = Path(self.scrub).name  # of a model in a folder
        return written | ({"one_per_report": True} if self.one_per_report else {})

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> PrepareSettings:
        """Undo `dataclasses.asdict`, `Findings.to_json` and JSON.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        plain = {name: tuple(x) if isinstance(x, list) else x for name, x in written.items()}
        series = tuple(SeriesSettings(**one).checked() for one in written.get("series", ()))
        definitions = Findings.from_json(written.get("definitions", ()))
        redact = tuple(map(Quantity.from_json, written.get("redact", ())))
        regions = {name: tuple(parts) for name, parts in written.get("label_regions", {}).items()}
        made = {"series": series, "definitions": definitions, "redact": redact, "label_regions": regions}
        made["groups"] = tuple(written.get("groups", ()))
        return cls(**plain | made)


def resolve(settings: PrepareSettings, studies: Sequence[Study]) -> PrepareSettings:
    """Check the settings and fill in what is to be learned from the studies.

    Raises:
        ShardError: a setting makes no sense; the message says which and what would.
    """
    from medclip_jax.reports.findings import CARDIAC_FINDINGS
    from medclip_jax.reports.names import UnknownFinding, finding_name

    _check_fit(settings)
    if settings.scrub:
        from medclip_jax.reports.scrubbing import ScrubError, scrubber

        try:
            scrubber(settings.scrub)
        except ScrubError as error:
            raise ShardError(str(error)) from None
    all_series = tuple(series.checked() for series in settings.all_series)
    volume = next((series for series in all_series if series.name == VOLUME), None)
    shape, spacing = ((), ()) if volume is None else (volume.shape, volume.spacing)
    given = CARDIAC_FINDINGS if settings.findings is None else settings.findings
    try:
        named = (finding_name(name, definitions=settings.definitions) for name in given)
        findings = tuple(dict.fromkeys(named))
    except UnknownFinding as error:
        raise ShardError(str(error)) from None
    specs = common_arrays(Schema(shape, spacing), [spec for series in all_series for spec in series.specs])
    if len({spec.name for spec in specs} | {ORGAN_SENTENCES, LABEL_MAP, GROUPS}) < len(specs) + 3:
        names = ", ".join(series.name for series in all_series)
        raise ShardError(f"series {names}: each needs a name of its own, which no other array has")
    if settings.cell and volume is None:
        raise ShardError(f"organ cells lie on the grid of '{VOLUME}', and no series has that name")
    if settings.cell < 0 or (settings.cell and any(size % settings.cell for size in shape)):
        raise ShardError(
            f"organ cells of {settings.cell} voxels do not divide the shape {shape}: choose a cell that does "
            "(and that divides the patch size of the model), or 0 for no organs"
        )
    named = {name for study in studies for name in organ_names(study)}
    unknown = unknown_masks(studies)
    known = sorted(named - set(unknown))
    organs = tuple(known) if settings.organs is None else tuple(settings.organs)
    if settings.cell and not organs and unknown:
        raise ShardError(
            f"organ cells were requested, but none of the {len(unknown)} mask names is known as an organ: "
            "give those that you want with --organs, as the files or the class map name them"
        )
    if settings.cell and not organs:
        raise ShardError(
            "organ cells were requested, but no study has organ masks: give the table an 'organs' column, "
            "or prepare without --organ-cell"
        )
    there = f"{', '.join(known) or 'no known organ'}" + (f" and {len(unknown)} others" if unknown else "")
    if settings.cell and not set(organs) & named:
        raise ShardError(f"no study has a mask of {', '.join(organs)}; the masks name {there}")
    label_classes, label_regions = check_label_maps(
        settings.label_maps, studies, organs, named, has_volume=volume is not None
    )
    if settings.crop not in ("center", "box") and settings.crop not in named:
        raise ShardError(
            f"cannot crop around '{settings.crop}': no study has such an organ mask. Use 'center', 'box' or "
            f"one of: {there}"
        )
    if settings.crop == "box" and not any("box_x_min" in study.measurements for study in studies):
        raise ShardError("cannot crop around a box: the table has no 'box' column")
    if min(settings.fractions) < 0 or abs(sum(settings.fractions) - 1) > 1e-6:
        raise ShardError(
            f"the split fractions {settings.fractions} must not be negative and must add up to 1"
        )
    if settings.per_shard is not None and settings.per_shard < 1:
        raise ShardError(f"{settings.per_shard} volumes in a shard: it must be a positive number")
    if settings.vocabulary_patients < 1:
        raise ShardError(f"vocabulary_patients is {settings.vocabulary_patients}: it must be 1 or more")
    if settings.empty_report not in ("reject", "note"):
        raise ShardError(f"empty_report '{settings.empty_report}' is neither 'reject' nor 'note'")
    if settings.organ_text not in ("own", "containing"):
        raise ShardError(f"organ_text '{settings.organ_text}' is neither 'own' nor 'containing'")
    if settings.series_rule not in RULES:
        raise ShardError(f"series_rule '{settings.series_rule}' is none of {', '.join(RULES)}")
    measurements = settings.measurements
    if measurements is None:
        measurements = sorted(
            {n for study in studies for n in study.measurements if not n.startswith("box_")}
        )
    groups = settings.groups
    if groups is None:
        groups = sorted({name for study in studies for name in study.groups})
    voxels = sum(series.typical_voxels for series in all_series)
    per_shard = settings.per_shard or min(512, max(4, (1 << 27) // voxels))
    return replace(
        settings,
        shape=shape,
        spacing=spacing,
        percentiles=None if settings.series else all_series[0].percentiles,
        series=all_series if settings.series else (),
        findings=findings,
        organs=organs,
        measurements=tuple(measurements),
        groups=tuple(groups),
        fractions=tuple(settings.fractions),
        per_shard=per_shard,
        unknown_masks=len(unknown)
        if (settings.cell or settings.label_maps == "organs") and settings.organs is None
        else 0,
        label_classes=label_classes,
        label_regions=label_regions,
    )


def _check_fit(settings: PrepareSettings) -> None:
    """Check that what says how scans come to their shape does not contradict itself.

    Raises:
        ShardError: it does.
    """
    resize, own = settings.fit == "resize", (None, None, None)
    if settings.fit not in FITS:
        raise ShardError(f"fit '{settings.fit}' is none of {', '.join(FITS)}")
    if settings.series and resize:
        raise ShardError(
            "fit 'resize' is for sets of one volume a record: give each series that is to be resized its "
            "shape and a spacing of (None, None, None) instead"
        )
    if resize and settings.spacing not in (None, own):
        raise ShardError(
            f"fit 'resize' and a spacing of {settings.spacing}: resizing gives every scan the spacing that "
            "makes it fill the shape. Leave --spacing out, or take --fit crop"
        )
    if not resize and not settings.series and None in (settings.spacing or ()):
        raise ShardError(f"spacing {settings.spacing} leaves it to each scan: that is --fit resize")
    if settings.crop != "center" and all(series.frames for series in settings.all_series):
        raise ShardError(
            f"crop '{settings.crop}': pictures of frames are cut around their middle. Leave --crop out"
        )
    if settings.crop != "center" and any(series.is_resized for series in settings.all_series):
        raise ShardError(
            f"crop '{settings.crop}' and resizing: a resized scan is complete, nothing of it is cut off. "
            "Leave --crop out, or take --fit crop with a --spacing at which the shape holds what you want"
        )


def organ_names(study: Study) -> set[str]:
    """Names of the organs that a study's masks can show."""
    return set(study.organ_classes.values()) if "*" in study.organs else set(study.organs)


def unknown_masks(studies: Sequence[Study]) -> list[str]:
    """Names of masks that are no names of organs. They may be patients': for the user's screen alone."""
    named = {name for study in studies for name in organ_names(study)}
    return sorted(name for name in named if not is_organ_name(name))
