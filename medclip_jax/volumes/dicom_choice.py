"""Which of the series that lie together is the scan: told by the caller, or chosen by a rule."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from medclip_jax.volumes.dicom_files import how_to_convert, name_syntax
from medclip_jax.volumes.dicom_headers import MODALITIES, DicomFile, Slice, digest
from medclip_jax.volumes.dicom_stacks import Stack, check_positions, check_space, cut_into_stacks
from medclip_jax.volumes.volume import VolumeRejected

RULES = ("best", "largest", "thinnest", "original")
"""How a series is chosen among several, see `docs/reference/volumes.md`."""

GAPS_MM = (0.6, 3.0)
"""Distances between slices that "best" takes as thin enough and not too noisy; the thinnest of them wins."""

_COVERAGE = 0.5
"""Share of the longest stack's extent that another one must have to be a scan of the same region."""

_NOT_SLICES = ("MIP", "MINIP", "PROJECTION", "VOLUME RENDERING", "VRT", "RENDERED", "3D", "PROJECTION IMAGE")
_REFORMATTED = ("MPR", "REFORMATTED", "CSA MPR", "AVERAGE", "THICK")

_SOFT, _MIDDLE, _SHARP = "soft", "medium", "sharp"
_NAMED_KERNELS = {
    _SOFT: ("SOFT", "STANDARD", "STND", "SMOOTH", "A", "B", "YA", "YB", "SA", "SB", "B_SOFT*", "BODY*"),
    _MIDDLE: ("DETAIL", "CHEST", "C", "YC", "B_MEDIUM*"),
    _SHARP: (
        "LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "D", "E", "L", "F", "YD", "YE", "B_SHARP*", "B_VSHARP*",
        "Y-SHARP", "HR*", "LUNG*", "BONE*",
    ),
}  # fmt: skip
"""Reconstruction kernels by name: GE, Philips, United Imaging."""

_REFUSALS = {
    "color": "The DICOM images are in color, not HU: export the scan itself.",
    "inverted": "The gray values are stored inverted or through a palette: export the series as MONOCHROME2.",
    "no-positions": "Slices without position and orientation: export the series again.",
    "zero-spacing": "Slices without pixel spacing: export the original series.",
    "unsupported-rescale": "A table (Modality LUT) maps the values, not slope and intercept: export the "
    "original series.",
    "not-hounsfield": "The header says that the values are a map of another quantity, not HU: export the CT "
    "itself.",
}


@dataclass(frozen=True, eq=False)
class Series:
    """The files of one series of one patient.

    Attributes:
        files: those that have slices.
        refused: those of the same series that look like slices and cannot be used.
        others: those of the series that never were slices of a scan, such as a scout or a screenshot.
        study: digest of the StudyInstanceUID, where the series UID alone does not tell the series.
    """

    files: tuple[DicomFile, ...]
    refused: tuple[DicomFile, ...] = ()
    others: tuple[DicomFile, ...] = ()
    study: str = ""

    @property
    def members(self) -> tuple[DicomFile, ...]:
        """All its files."""
        return (*self.files, *self.refused, *self.others)

    @property
    def first(self) -> DicomFile:
        """What stands for the whole series."""
        return self.members[0]

    @property
    def key(self) -> str:
        """A short name of its own that says nothing about the patient."""
        return digest(f"{self.first.patient} {self.first.uid} {self.study}".strip())

    @property
    def slices(self) -> list[Slice]:
        """Of all its files."""
        return [item for file in self.files for item in file.slices]


@dataclass(frozen=True)
class Wanted:
    """What a caller says about the series it means.

    Attributes:
        series: SeriesInstanceUID, SeriesNumber, or the key that `medclip embed` shows; None for any.
        kernel: "soft", "medium", "sharp", or a ConvolutionKernel by name or pattern; None for any.
        rule: one of `RULES`, where several are left.
        modality: preferred.
    """

    series: str | None = None
    kernel: str | None = None
    rule: str = "best"
    modality: str = "CT"

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")


def group_series(files: Iterable[DicomFile]) -> list[Series]:
    """Files by patient and SeriesInstanceUID. An empty patient id goes with the only other one.

    Where de-identification gave several examinations one series UID, they are told apart by StudyInstanceUID.
    """
    by_uid = defaultdict(list)
    for file in files:
        by_uid[file.uid].append(file)
    found = []
    for same_uid in by_uid.values():
        patients = {file.patient for file in same_uid} - {""}
        by_patient = defaultdict(list)
        for file in same_uid:
            by_patient[file.patient if len(patients) > 1 else ""].append(file)
        found += [series for members in by_patient.values() for series in _by_study(members)]
    return found


def _by_study(members: Sequence[DicomFile]) -> list[Series]:
    by_study = defaultdict(list)
    for file in members:
        by_study[file.study].append(file)
    if len(by_study) == 1 or 2 * len(by_study) > len(members):  # a study UID for each file tells nothing
        return [_series(members)]
    return [replace(_series(some), study=study) for study, some in by_study.items()]


def _series(members: Sequence[DicomFile]) -> Series:
    files = tuple(file for file in members if not file.refusal)
    looks = {file.look for file in files}
    failed = [file for file in members if file.refusal and not file.is_part_of_no_volume]
    refused = tuple(
        file for file in failed if not files or file.look in looks or file.refusal == "damaged-dicom"
    )
    others = tuple(file for file in members if file.refusal and file not in refused)
    return Series(files, refused, others)


def choose(files: Sequence[DicomFile], wanted: Wanted) -> tuple[Stack, list[str]]:
    """The stack of slices that is the scan, and notes.

    Raises:
        VolumeRejected: there is none, or more than one may be meant.
    """
    series = group_series(files)
    named = name_series(series, wanted)
    notes = _unknown_damage(files, wanted)
    usable = [item for item in named if item.files]
    if not usable:
        raise explain_nothing([file for item in named for file in (*item.refused, *item.others)])
    stacks = [(stack, item) for item in usable for stack in cut_into_stacks(item.slices)]
    _check_uids(usable, stacks, wanted)
    lone = [(stack, item) for stack, item in stacks if len(stack.slices) == 1]
    stacks = [(stack, item) for stack, item in stacks if len(stack.slices) > 1]
    if not stacks:
        raise VolumeRejected(
            "single-slice",
            "There is only one slice: give the folder that holds the whole series, not one file.",
        )
    same = [pair for pair in stacks if pair[0].slices[0].modality == wanted.modality]
    unread = [file for item in named for file in item.refused if file.modality == wanted.modality]
    if unread and not same:  # the scan is there, and what can be read is another
        raise refusal_of(unread, len(files))
    candidates = same or stacks
    check_owners([owner for _, owner in candidates], files)
    if wanted.kernel is not None:
        candidates = _with_kernel(candidates, wanted.kernel)
    # Time series and bolus tracking stand behind what is one volume.
    candidates = [pair for pair in candidates if pair[0].extent > 0 and not pair[0].phase] or candidates
    stack, owner = candidates[prefer([state_facts(s, o.first) for s, o in candidates], wanted.rule)]
    if len(stacks) > 1:
        notes.append(f"several-series:{len(stacks)}")
    if not stack.is_axial:
        notes.append("not-axial")
    skipped = sum(file.refusal != "localizer" for item in series for file in item.others)
    skipped += sum(bool(file.uid) for item in series if item is not owner for file in item.refused)
    if skipped:
        notes.append(f"other-objects:{skipped}")
    if owner.refused:
        raise refusal_of(owner.refused, len(owner.files) + len(owner.refused))
    check_positions(stack)
    check_space(stack)
    if stack.phase:
        raise VolumeRejected(
            "several-phases",
            f"The series shows the same region more than once ({stack.phase} differs: phases, passes or time "
            "points): split them into one folder each.",
        )
    if len({item.marks["ConvolutionKernel"] for item in stack.slices} - {""}) > 1:
        notes.append("mixed-kernels")
    return stack, notes + _left_out(stack, [other.slices[0] for other, item in lone if item is owner])


def kernel_class(name: str) -> str | None:
    """Whether a reconstruction kernel is "soft", "medium" or "sharp"; None where that is not known.

    Siemens counts sharpness in the number after a letter or two (B30f, Br40d, I70f), Canon after FC.
    """
    text = _kernel_name(name)
    if match := re.fullmatch(r"FC0*(\d+)\w*", text):
        number = int(match[1])
        return _SOFT if number < 30 else _SHARP
    if match := re.fullmatch(r"[A-Z]{1,2}(\d\d)\d?[A-Z]{0,2}(_.*)?", text):
        number = int(match[1])
        return _SOFT if number <= 45 else _MIDDLE if number < 55 else _SHARP
    for kind, patterns in _NAMED_KERNELS.items():
        if any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns):
            return kind
    return None


def name_series(series: list[Series], wanted: Wanted) -> list[Series]:
    """Those that the caller means: by UID, by the key of `medclip embed`, or by SeriesNumber.

    Raises:
        VolumeRejected: "no-such-series".
    """
    if wanted.series is None:
        return series
    text = wanted.series.strip()
    number = re.sub(r"\.0+$", "", text)  # as spreadsheets write whole numbers
    found = [item for item in series if text in (item.first.uid, item.key)]
    if not found and number.lstrip("-").isdecimal():
        found = [item for item in series if item.first.series_number == int(number)]
        # De-identification that gives every file a UID of its own leaves the number that joins them.
        if len(found) > 2 and all(len(item.files) < 2 for item in found):
            found = _joined(found)
    if not found:
        raise VolumeRejected(
            "no-such-series",
            f"None of the {len(series)} series here has the UID or number that was requested: look it up "
            "with `medclip index`.",
        )
    return found


def _joined(series: Sequence[Series]) -> list[Series]:
    by_patient = defaultdict(list)
    for item in series:
        by_patient[item.first.patient].append(item)
    return [_series([file for item in items for file in item.members]) for items in by_patient.values()]


def _unknown_damage(files: Sequence[DicomFile], wanted: Wanted) -> list[str]:
    """A file whose series is unknown may be a slice of any: refused, or noted where the series was named."""
    lost = [file for file in files if file.refusal == "damaged-dicom" and not file.uid]
    if lost and wanted.series is None:
        raise refusal_of(lost, len(files))
    return [f"damaged-files:{len(lost)}"] if lost else []


def explain_nothing(files: Sequence[DicomFile]) -> VolumeRejected:
    """Why there are no slices at all."""
    failed = [file for file in files if file.refusal and not file.is_part_of_no_volume]
    if failed:
        return refusal_of(failed, len(files))
    if any(file.refusal == "localizer" for file in files):
        return VolumeRejected(
            "only-localizers", "The folder holds localizers only: point to the scan itself."
        )
    kinds = Counter(
        file.modality if file.modality in MODALITIES else "another kind" for file in files if file.refusal
    )
    if not kinds:
        return VolumeRejected(
            "no-dicom-images", "The folder holds no DICOM file: point to the folder with the series."
        )
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return VolumeRejected(
        "no-dicom-images",
        f"The DICOM files are no slices of a scan ({told}): point to the folder with the CT or MR series.",
    )


def refusal_of(failed: Sequence[DicomFile], total: int) -> VolumeRejected:
    """The most frequent reason why files have no slices."""
    code, count = Counter(file.refusal for file in failed).most_common(1)[0]
    of = f"In {count} of {total} files: " if count < total else ""
    if code == "unsupported-compression":
        syntax = next(file.transfer_syntax for file in failed if file.refusal == code)
        return VolumeRejected(
            code,
            f"{of}The pixels are stored as {name_syntax(syntax)}, which is not read; the files are not "
            f"damaged: {how_to_convert(syntax)}.",
        )
    if code == "damaged-dicom":
        text = f"{count} of {total} DICOM files are damaged or cut short: copy the series again."
        return VolumeRejected(code, text)
    return VolumeRejected(code, of + _REFUSALS[code])


def _check_uids(usable: Sequence[Series], stacks: Sequence[tuple[Stack, Series]], wanted: Wanted) -> None:
    """Refuse slices that all carry a series UID of their own, for one stack cannot be told from another."""
    lone = [item.slices[0] for item in usable if len(item.slices) == 1]
    largest = max((len(stack.slices) for stack, _ in stacks), default=0)
    if len(lone) < 3 or len(lone) <= largest:
        return
    joined = cut_into_stacks(lone)[0]
    if len(joined.slices) < 3:
        return
    raise VolumeRejected(
        "series-uid-per-slice",
        f"{len(joined.slices)} slices carry a SeriesInstanceUID each of their own, as some de-identification "
        "writes it: de-identify again with one UID for a series, or, if their SeriesNumber is the same, give "
        "that number as the series.",
    )


def check_owners(candidates: Sequence[Series], files: Sequence[DicomFile]) -> None:
    """Refuse series of several patients or examinations.

    Args:
        candidates: that may be meant.
        files: all that were found.

    Raises:
        VolumeRejected: "several-patients" or "several-studies".
    """
    chosen = {item.first.uid for item in candidates}
    mixed = defaultdict(set)
    for file in files:
        if not file.refusal and file.uid in chosen and file.patient:
            mixed[file.uid].add(file.patient)
    if any(len(patients) > 1 for patients in mixed.values()):
        raise VolumeRejected(
            "several-patients",
            "One SeriesInstanceUID holds slices of several patients (PatientID differs): sort the files by "
            "patient, one folder each.",
        )
    patients = {item.first.patient for item in candidates} - {""}
    if len(patients) > 1:
        raise VolumeRejected(
            "several-patients",
            f"The folder holds scans of {len(patients)} patients: name the series in the table's column "
            "`series` (`medclip index` writes such a table), or give each scan its own folder.",
        )
    studies = {item.first.study for item in candidates} - {""}
    if len(studies) > 1:
        raise VolumeRejected(
            "several-studies",
            f"The folder holds {len(studies)} examinations (StudyInstanceUID): name the series in the "
            "table's column `series` (`medclip index` writes such a table), or give each its own folder.",
        )


def _with_kernel(candidates: list[tuple[Stack, Series]], kernel: str) -> list[tuple[Stack, Series]]:
    found = [pair for pair in candidates if kernel_fits(pair[0].mark("ConvolutionKernel"), kernel)]
    if not found:
        kinds = Counter(kernel_class(stack.mark("ConvolutionKernel")) or "unknown" for stack, _ in candidates)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise VolumeRejected(
            "no-such-kernel",
            f"No series was reconstructed with the kernel that was requested (there are: {told}): look the "
            "kernels up with `medclip index`, or leave --kernel out.",
        )
    return found


def kernel_fits(name: str, wanted: str) -> bool:
    """Whether a ConvolutionKernel is of a wanted class ("soft", ...), or has a wanted name or pattern."""
    wanted = wanted.strip().upper()
    if wanted.lower() in (_SOFT, _MIDDLE, _SHARP):
        return kernel_class(name) == wanted.lower()
    return fnmatch.fnmatchcase(_kernel_name(name), wanted)


def _kernel_name(text: str) -> str:
    """The kernel alone: Siemens adds the strength of iterative reconstruction as a second value."""
    return re.split(r"[\\,]", text.strip(" []").upper())[0].strip("' ")


class Facts(NamedTuple):
    """What decides between stacks.

    Attributes:
        is_axial: whether slices lie across the body.
        is_projection: whether slices are projections (MIP) or renderings.
        is_derived: whether they were reformatted or computed from others.
        extent: from the first to the last slice, mm.
        gap: between slices, mm.
        slices: their number.
        kernel: its class, None where that is unknown.
        series_number: 0 where there is none.
        uid: SeriesInstanceUID.
    """

    is_axial: bool
    is_projection: bool
    is_derived: bool
    extent: float
    gap: float
    slices: int
    kernel: str | None
    series_number: int
    uid: str


def state_facts(stack: Stack, first: DicomFile) -> Facts:
    """Facts of a stack.

    Args:
        stack: with slices.
        first: a file of its series.
    """
    parts = stack.mark("ImageType").split("\\")
    return Facts(
        is_axial=bool(stack.is_axial),
        is_projection=any(part in _NOT_SLICES for part in parts),
        is_derived="DERIVED" in parts[:1]
        or "SECONDARY" in parts[1:2]
        or any(part in _REFORMATTED for part in parts),
        extent=stack.extent,
        gap=stack.gap,
        slices=len(stack.slices),
        kernel=kernel_class(stack.mark("ConvolutionKernel")),
        series_number=first.series_number or 0,
        uid=first.uid,
    )


def prefer(candidates: Sequence[Facts], rule: str) -> int:
    """Place of the stack that a rule takes.

    Args:
        candidates: at least one.
        rule: one of `RULES`.
    """
    longest = max([facts.extent for facts in candidates if facts.is_axial] or [f.extent for f in candidates])

    def rank(place: int) -> tuple:
        """Smaller is better."""
        facts = candidates[place]
        flat = (not facts.is_axial, facts.is_projection)
        is_part = facts.extent < _COVERAGE * longest
        last = (-facts.slices, facts.series_number, facts.uid)
        if rule == "largest":
            return (*flat, *last)
        if rule == "thinnest":
            return (*flat, is_part, facts.gap, *last)
        if rule == "original":
            return (*flat, is_part, facts.is_derived, *last)
        sharpness = (_SOFT, None, _MIDDLE, _SHARP).index(facts.kernel)
        low, high = GAPS_MM
        outside = round(max(low - facts.gap, facts.gap - high, 0.0), 2)
        return (*flat, is_part, facts.is_derived, sharpness, outside, round(facts.gap, 2), *last)

    return min(range(len(candidates)), key=rank)


def _left_out(stack: Stack, lone: Sequence[Slice]) -> list[str]:
    """Note slices of the series that stand in no stack; refuse where they leave a hole, or many deviate.

    Args:
        stack: that was chosen.
        lone: slices of its series that stand alone.
    """
    along, normal = stack.along, stack.slices[0].normal
    inside = sum(along[0] < item.position @ normal < along[-1] for item in stack.deviating)
    count = len(stack.deviating)
    if inside or count > max(2, 0.05 * len(stack.slices)):
        raise VolumeRejected(
            "deviating-slices",
            f"{count} of {len(stack.slices) + count} slices of the series differ from the others in size, "
            "orientation or pixel spacing: export the series again on one grid.",
        )
    total = len({id(item) for item in (*stack.deviating, *lone)})
    return [f"slices-left-out:{total}"] if total else []
