"""Read and check studies as `prepare` does, and write nothing: what is there, and in what state."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, Num

from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import Unmatched
from medclip_jax.corpora.study import Series, Study
from medclip_jax.pool import available_cores, map_in_order
from medclip_jax.progress import track
from medclip_jax.shards.commit import Entry
from medclip_jax.shards.manifest import Summary, summarize
from medclip_jax.shards.merge import note_twins
from medclip_jax.shards.plan import MISSING_FILE, Item, make_plan, reject_missing, report_of
from medclip_jax.shards.record import ShardError, decode
from medclip_jax.shards.scan import REJECTED, Outcome, prepare_study
from medclip_jax.shards.settings import SPLITS, PrepareSettings, resolve
from medclip_jax.shards.work import READER_DIED, reader_died
from medclip_jax.volumes import Volume
from medclip_jax.volumes.frames import Frames
from medclip_jax.volumes.geometry import canonical
from medclip_jax.volumes.read import read_scan

HU_EDGES = np.arange(-1100, 1501, 25)
"""Edges of the bins in which voxels of CT are counted; what lies beyond is counted in the outer ones."""

EXAMPLES = 3
"""Pictures of studies that were rejected for one reason."""

_LONGEST_SIDE = 256
"""Pixels of a picture."""

_LOOKERS = 8
"""Threads that look whether files are there."""


@dataclass(frozen=True)
class Picture:
    """A slice as it is hung: head or front up, the patient's right or front on the left.

    Attributes:
        pixels: (H, W), thinned out to 256 along the longer side.
        ratio: width over height, in mm.
    """

    pixels: Num[np.ndarray, "H W"]
    ratio: float


@dataclass(frozen=True)
class ScanFacts:
    """A scan as it was read, before it is cropped.

    Attributes:
        series: its name in the study.
        row: of the study.
        modality: "CT" or "MR".
        slices: how many.
        spacing: mm between slices, rows, columns.
        counts: (V,) voxels in each bin of `HU_EDGES`, of every fourth along each axis; None of MR.
        pictures: its middle slices, () unless they were asked for.
    """

    series: str
    row: int
    modality: str
    slices: int
    spacing: tuple[float, float, float]
    counts: Int[np.ndarray, " V"] | None
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What became of the studies, and what they are like.

    Attributes:
        studies: how many there are.
        unread: how many passed the table's checks and were not read, because a sample was asked for.
        entries: the lines that a manifest would have, of all others, in the order of the input.
        unmatched: name of a table to the ids without a partner in it and of it; raw ids.
        patients: split to the number of patients, of studies that are not rejected.
        split_studies: split to the number of these studies.
        labels: finding to the number of studies that the table labels present, absent, and not at all.
        stated: finding to the number of reports that state, deny, and do not mention it; of studies that
            were read and accepted.
        words: (N,) words of each report, 0 where it says nothing.
        texts: different reports, those that say nothing left out.
        repeated: studies whose report another study has as well.
        scans: those that were read and accepted.
        rejected: code to (row, middle slices as far as the file opens) of a few studies.
    """

    studies: int
    unread: int
    entries: tuple[Entry, ...]
    unmatched: Unmatched
    patients: Mapping[str, int]
    split_studies: Mapping[str, int]
    labels: Mapping[str, tuple[int, int, int]]
    stated: Mapping[str, tuple[int, int, int]]
    words: Int[np.ndarray, " N"]
    texts: int
    repeated: int
    scans: tuple[ScanFacts, ...]
    rejected: Mapping[str, tuple[tuple[int, tuple[Picture, ...]], ...]]

    @property
    def summary(self) -> Summary:
        """Counts of classes, notes and reasons."""
        return summarize(self.entries)


@dataclass(frozen=True)
class _Read:
    """What a worker process says of one study."""

    entry: Entry
    scans: tuple[ScanFacts, ...] = ()
    findings: Int[np.ndarray, " F"] | None = None


def verify(
    studies: Iterable[Study],
    settings: PrepareSettings | None = None,
    *,
    sample: int | None = None,
    workers: int | None = None,
    key: bytes,
    pictures: int = 12,
    progress: bool = True,
) -> Verification:
    """Read and check studies as `prepare` does, and write nothing.

    What the table tells (ids, splits, reports, missing files) is checked for all studies, whatever the
    sample.

    Args:
        studies: of a corpus.
        settings: what `prepare` would be told.
        sample: read the scans of this many studies, drawn by `settings.seed`; None reads all.
        workers: processes; default: one for each core that this process may use.
        key: of the hashed ids, and so of splits drawn at random.
        pictures: keep the middle slices of this many accepted studies, evenly spread.
        progress: show a bar.

    Raises:
        ShardError: a setting makes no sense, or a patient stands in two splits.
    """
    if sample is not None and sample < 1:
        raise ShardError(f"a sample of {sample} studies: give 1 or more, or leave --sample out to read all")
    settings, unmatched = settings or PrepareSettings(), {}
    if isinstance(studies, StudyTable):
        unmatched = studies.unmatched
        settings = replace(settings, zero_label=studies.zero_label)
    studies = list(studies)
    settings = resolve(settings, studies)
    items = [item for shard in make_plan(studies, settings, key) for item in shard.items]
    with ThreadPoolExecutor(_LOOKERS) as pool:  # on network storage, looking is mostly waiting
        items = list(pool.map(reject_missing, sorted(items, key=lambda item: item.row)))
    passed = [item for item in items if item.rejection is None]
    chosen = passed
    if sample is not None and sample < len(passed):
        places = np.random.default_rng(settings.seed).choice(len(passed), sample, replace=False)
        chosen = [passed[place] for place in np.sort(places)]
    shown = {chosen[place].row for place in _spread(len(chosen), pictures)}
    workers = workers or available_cores()
    read = _read_all(chosen, settings, shown, workers, progress)
    given_up = [prepare_study(item, settings).entry for item in items if item.rejection is not None]
    entries = note_twins(sorted([one.entry for one in read] + given_up, key=lambda entry: entry["row"]))
    rejected = {entry["row"] for entry in entries if entry["class"] == REJECTED}
    kept = [item for item in items if item.row not in rejected]
    return Verification(
        studies=len(items),
        unread=len(passed) - len(chosen),
        entries=tuple(entries),
        unmatched=unmatched,
        patients={
            split: len({item.patient_hash for item in kept if item.split == split}) for split in SPLITS
        },
        split_studies={split: sum(item.split == split for item in kept) for split in SPLITS},
        labels=_count({name: [s.labels.get(name, 0) for s in studies] for name in settings.findings}),
        stated=_count(
            _columns(settings.findings, [one.findings for one in read if one.findings is not None])
        ),
        words=np.array([len(report_of(study).split()) for study in studies], np.int64),
        texts=len({report_of(study) for study in studies} - {""}),
        repeated=sum("duplicate-report" in item.notes for item in items),
        scans=tuple(scan for one in read for scan in one.scans),
        rejected=_examples(entries, {item.row: item.study for item in items}, settings, workers),
    )


def _read_all(
    items: Sequence[Item], settings: PrepareSettings, shown: set[int], workers: int, progress: bool
) -> list[_Read]:
    read = []
    outcomes = map_in_order(
        functools.partial(_read, settings=settings, shown=frozenset(shown)),
        items,
        min(workers, max(1, len(items))),
        lambda item: _Read(reader_died(item).entry),
    )
    counts: Counter[str] = Counter()
    with track(total=len(items), unit="scan", label="verify", show=progress, smoothing=0.05) as bar:
        for one in outcomes:
            read.append(one)
            counts[str(one.entry["class"])] += 1
            bar.note(f"{counts[REJECTED]} rejected")
            bar.update()
    return read


def _read(item: Item, settings: PrepareSettings, shown: frozenset[int]) -> _Read:
    scans: list[ScanFacts] = []

    def observe(name: str, scan: Volume | Frames) -> None:
        scans.append(_facts(name, item.row, scan, item.row in shown))

    outcome: Outcome = prepare_study(item, settings, observe)
    if outcome.record is None:
        return _Read(outcome.entry)
    record = decode(outcome.record, settings.schema, ("findings",))
    return _Read(outcome.entry, tuple(scans), record["findings"])


def _facts(name: str, row: int, scan: Volume | Frames, shown: bool) -> ScanFacts:
    modality = str(scan.provenance.get("modality", "CT"))
    counts = None
    if modality == "CT":
        thin = np.clip(scan.voxels[..., ::4, ::4, ::4], HU_EDGES[0], HU_EDGES[-1] - 1)
        counts = np.histogram(thin, HU_EDGES)[0]
    pictures = _pictures(scan.voxels, scan.spacing) if shown else ()
    return ScanFacts(name, row, modality, len(scan.voxels), tuple(scan.spacing), counts, pictures)


def _pictures(voxels: np.ndarray, spacing: Sequence[float]) -> tuple[Picture, ...]:
    """The middle slices: of a volume along each axis, of frames the first phase of the middle slice."""
    if voxels.ndim == 4:  # laid down as it is hung already
        return (_thin(voxels[len(voxels) // 2, 0], spacing[1], spacing[2]),)
    planes = []
    for axis in range(3):
        # Indices grow towards Superior, Anterior and Right; pictures grow down and to the right.
        plane = np.take(voxels, voxels.shape[axis] // 2, axis)[::-1, ::-1]
        planes.append(_thin(plane, *(step for other, step in enumerate(spacing) if other != axis)))
    return tuple(planes)


def _thin(plane: Num[np.ndarray, "H W"], down: float, across: float) -> Picture:
    ratio = plane.shape[1] * across / (plane.shape[0] * down)
    steps = [-(-size // _LONGEST_SIDE) for size in plane.shape]
    return Picture(np.ascontiguousarray(plane[:: steps[0], :: steps[1]]), float(ratio))


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` places among `count`, evenly spread."""
    wanted = min(count, max(0, wanted))
    return [step * count // wanted for step in range(wanted)]


def _columns(names: Sequence[str], rows: Sequence[Int[np.ndarray, " F"]]) -> dict[str, Sequence[int]]:
    return {name: [int(row[place]) for row in rows] for place, name in enumerate(names)}


def _count(values: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int, int]]:
    """Of each name, how many values are above, below and equal to 0."""
    return {
        name: (sum(x > 0 for x in found), sum(x < 0 for x in found), sum(x == 0 for x in found))
        for name, found in values.items()
    }


def _examples(
    entries: Iterable[Entry], studies: Mapping[int, Study], settings: PrepareSettings, workers: int
) -> dict[str, tuple[tuple[int, tuple[Picture, ...]], ...]]:
    """Of each reason the first few studies, with pictures where the files open at all."""
    rows: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if entry["class"] == REJECTED and len(rows[str(entry["reason"])]) < EXAMPLES:
            rows[str(entry["reason"])].append(int(entry["row"]))
    wanted = [
        row
        for code, found in rows.items()
        if code not in (READER_DIED, MISSING_FILE)
        for row in found
        if studies[row].has_scan
    ]
    peeks = map_in_order(
        functools.partial(_peek, settings=settings),
        [studies[row].series[0] for row in wanted],
        min(workers, max(1, len(wanted))),
        lambda _: (),
    )
    pictures = dict(zip(wanted, peeks, strict=True))
    return {code: tuple((row, pictures.get(row, ())) for row in found) for code, found in rows.items()}


def _peek(series: Series, settings: PrepareSettings) -> tuple[Picture, ...]:
    """The middle slices of a scan that was rejected, as far as it can be opened without any check."""
    try:
        scan = read_scan(
            series.files or series.path,
            modality=series.modality,
            series=series.uid or None,
            kernel=settings.kernel,
            rule=settings.series_rule,
        )
        voxels = scan.voxels if scan.voxels.ndim == 3 else scan.voxels[..., 0]
        voxels, affine = canonical(voxels, scan.affine)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return _pictures(voxels, [float(step) for step in spacing])
    except Exception:  # whatever is wrong with the file has been said by its reason
        return ()
