"""Verify a prepared folder record by record, and count what is in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from medclip_jax.corpora.study import OUTSIDE_LABEL
from medclip_jax.progress import track
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import TOKENIZER_FOLDER, PreparedInfo, open_split
from medclip_jax.shards.record import GROUPS, LABEL_MAP, ShardError, checksum, decode
from medclip_jax.shards.scan import REJECTED

PERCENTILES = (0.1, 1, 5, 25, 50, 75, 95, 99, 99.9)

_LOWEST, _HIGHEST = -32768, 32767


@dataclass(frozen=True)
class Check:
    """What a full pass over a prepared folder found.

    Attributes:
        records: read and verified.
        problems: one line for each damaged or missing record or shard; () when all is well.
        percentiles: by the name of each array of scans, percent to HU or intensity, over every fourth voxel
            along each of the last three axes of all records.
        findings: (F, 3) how many reports deny, do not mention and state each finding.
        labels: (F, 3) how many volumes are labeled absent, unknown and present.
        bytes: of all shards.
        voxel_bytes: of all scans, not compressed.
        spacings: by the name of each array of scans that have a spacing of their own, the smallest and the
            largest mm along depth, height, width.
        frames: by the name of each array of frames, the fewest and the most slices and phases.
        classes: (C, 2) of each class of label maps, how many volumes show it, and its voxels in all of them.
        labeled: how many volumes have a label map, voxels of those that are labeled (background is), and
            others.
        groups: by name, how many volumes belong to each group, "" being those of which it is not known.
        organs: (O, 4) how many volumes show each organ, describe it, do both, and say it is normal.
    """

    records: int
    problems: tuple[str, ...]
    percentiles: Mapping[str, Mapping[float, float]]
    findings: Int[np.ndarray, "F 3"]
    labels: Int[np.ndarray, "F 3"]
    bytes: int
    voxel_bytes: int
    organs: Int[np.ndarray, "O 4"]
    spacings: Mapping[str, Float[np.ndarray, "2 3"]]
    frames: Mapping[str, Int[np.ndarray, "2 2"]]
    classes: Int[np.ndarray, "C 2"]
    labeled: tuple[int, int, int]
    groups: Mapping[str, Mapping[str, int]]


def check_files(info: PreparedInfo) -> list[str]:
    """What is wrong with the files that stand beside the shards, and with the shards' sizes.

    Args:
        info: from `open_shards`.

    Returns:
        One line for each problem; [] when the set can be opened.
    """
    from medclip_jax.reports.tokenizer import load_tokenizer

    problems = []
    try:
        for split in info.splits:
            open_split(info, split, fields=["id"])
    except ShardError as error:
        problems.append(str(error))
    try:
        if info.tokenizer is not None:
            load_tokenizer(info.tokenizer)
        elif info.settings.get("tokenizer") is not None:
            problems.append(
                f"{info.folder / TOKENIZER_FOLDER} is missing: copy it again, or prepare the set again"
            )
    except (OSError, ValueError) as error:
        problems.append(str(error))
    return problems


def check(info: PreparedInfo, *, progress: bool = True) -> Check:
    """Read every record, compare it with its checksum in the manifest, and decode it.

    Args:
        info: from `open_shards`.
        progress: show a bar.

    Raises:
        ShardError: there is no manifest to compare with.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    expected: dict[str, dict[int, Mapping[str, object]]] = defaultdict(dict)
    for entry in read_manifest(info.folder):
        if entry["class"] != REJECTED:
            expected[str(entry["shard"])][int(entry["index"])] = entry
    problems = check_files(info)
    problems += [f"{name} is not in the manifest" for name in sorted(set(info.files) - set(expected))]
    scans = [series.name for series in info.series]
    histograms = {name: np.zeros(_HIGHEST - _LOWEST + 1, np.int64) for name in scans}
    findings, labels = (np.zeros((len(info.findings), 3), np.int64) for _ in range(2))
    columns = np.arange(len(info.findings))
    organs = np.zeros((len(info.organs), 4), np.int64)
    values = np.zeros((2, OUTSIDE_LABEL + 1), np.int64)
    maps = 0
    own = {series.name: series.spacing_array for series in info.series if series.spacing_array}
    counted = {series.name: series.frames_array for series in info.series if series.frames}
    spacings: dict[str, list[Float[np.ndarray, " 3"]]] = defaultdict(list)
    frames: dict[str, list[Int[np.ndarray, " 2"]]] = defaultdict(list)
    groups: dict[str, Counter[str]] = {name: Counter() for name in info.groups}
    records = voxel_bytes = 0
    count = sum(map(len, expected.values()))
    with track(total=count, unit="volume", label="verify", show=progress, smoothing=0.05) as bar:
        for name, entries in sorted(expected.items()):
            path = info.folder / name
            problem = None
            if not path.exists():
                problem = f"{name} is missing"
            elif path.stat().st_size != info.files.get(name):
                problem = f"{name} has {path.stat().st_size} bytes instead of {info.files.get(name)}"
            else:
                try:
                    source = ArrayRecordDataSource([str(path)])
                    if len(source) != len(entries):
                        problem = f"{name} holds {len(source)} records, the manifest has {len(entries)}"
                except (RuntimeError, ValueError, IndexError) as error:
                    problem = f"{name} cannot be opened ({type(error).__name__})"
            if problem:
                problems.append(f"{problem}: copy it again from where it was prepared, or prepare again")
                bar.update(len(entries))
                continue
            for index, entry in sorted(entries.items()):
                bar.update()
                try:
                    data = source[index]
                    if checksum(data) != entry["checksum"]:
                        raise ShardError("its checksum is not the manifest's")
                    sample = decode(data, info.schema)
                except (RuntimeError, ValueError, IndexError) as error:
                    why = str(error) if isinstance(error, ShardError) else type(error).__name__
                    problems.append(f"{name}, record {index}: {why}")
                    continue
                records += 1
                for scan in (scan for scan in scans if scan in sample):
                    voxel_bytes += sample[scan].nbytes
                    thin = sample[scan][..., ::4, ::4, ::4].astype(np.int32).ravel() - _LOWEST
                    histograms[scan] += np.bincount(thin, minlength=len(histograms[scan]))
                for scan in own.keys() & sample.keys():
                    spacings[scan].append(sample[own[scan]])
                for scan in counted.keys() & sample.keys():
                    frames[scan].append(sample[counted[scan]])
                findings[columns, np.sign(sample["findings"]) + 1] += 1
                labels[columns, np.sign(sample["labels"]) + 1] += 1
                if LABEL_MAP in sample:
                    voxels = np.bincount(sample[LABEL_MAP].ravel(), minlength=values.shape[1])
                    values += (voxels > 0, voxels)
                    maps += 1
                for group, counts in groups.items():
                    counts[sample[GROUPS].get(group, "")] += 1
                for place, organ in enumerate(info.organs):
                    shown = "organs" in sample and sample["organs"][place].any()
                    said = sample["organ_sentences"].get(organ)
                    normal = said is not None and said["normal"]
                    organs[place] += (shown, said is not None, shown and said is not None, normal)
    percentiles = {name: _percentiles(counts) for name, counts in histograms.items() if counts.any()}
    size = sum(info.files.values())
    ranges = [
        {name: np.stack([np.min(each, 0), np.max(each, 0)]) for name, each in found.items()}
        for found in (spacings, frames)
    ]
    labeled = maps, int(values[1, :OUTSIDE_LABEL].sum()), int(values[1, OUTSIDE_LABEL])
    classes = values[:, 1 : len(info.label_classes) + 1].T
    return Check(
        records,
        tuple(problems),
        percentiles,
        findings,
        labels,
        size,
        voxel_bytes,
        organs,
        *ranges,
        classes,
        labeled,
        groups,
    )


def _percentiles(counts: Int[np.ndarray, " V"]) -> dict[float, float]:
    share = np.cumsum(counts) / counts.sum()
    return {p: float(np.searchsorted(share, p / 100) + _LOWEST) for p in PERCENTILES}
