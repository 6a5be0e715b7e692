"""Studies in, prepared folder out: in parallel, going on where it was cut off, the same bytes every time.

The work is cut into parts (`shards.plan`). A part's shard is written under `.parts/` and committed by
writing its manifest lines beside it, both by atomic rename. When all parts stand, shards get their final
names, and `prepare.json` makes the folder whole. So a kill at any moment costs at most one part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from medclip_jax.corpora.study import Study
from medclip_jax.shards.keys import read_key
from medclip_jax.shards.manifest import Summary, summarize
from medclip_jax.shards.plan import Item, Part, make_plan, report_of
from medclip_jax.shards.pool import map_in_order
from medclip_jax.shards.read import (
    MANIFEST_FILE,
    PARTS_FOLDER,
    SETTINGS_FILE,
    TOKENIZER_FOLDER,
    PreparedInfo,
    open_shards,
)
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import NOTED, REJECTED, Outcome, prepare_study
from medclip_jax.shards.settings import SPLITS, PrepareSettings, resolve
from medclip_jax.shards.write import SHARD_PATTERN, finish, shard_name, write_shard, write_text


@dataclass(frozen=True)
class _Done:
    """A committed part: what stands in its manifest file."""

    part: Part
    size: int
    entries: list[dict[str, object]]

    @property
    def records(self) -> int:
        return sum(entry["class"] != REJECTED for entry in self.entries)


def prepare(
    studies: Iterable[Study],
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    workers: int | None = None,
    key: bytes | str | os.PathLike | None = None,
    max_rejected: float = 0.1,
    progress: bool = True,
) -> PreparedInfo:
    """Prepare studies for training.

    Run it again with the same arguments after any interruption: finished parts are kept. The folder's
    content depends on the studies, the settings and the key alone, not on `workers` or interruptions.

    Args:
        studies: of a corpus; must come in the same order when a run is continued.
        out: folder to write; created if needed.
        settings: default: the shape of ASAP.
        workers: processes; default: one for each core.
        key: key of the hashed ids, or its file, which is made if needed. It must lie outside `out` and
            stays with the owner of the data. Default: ``<out>.key``.
        max_rejected: share of the studies that may be rejected before the run stops.
        progress: show a bar with rate and time left, and print the summary.

    Raises:
        ShardError: nothing to prepare, a setting makes no sense, too many rejections, the disk is full,
            or `out` holds a finished set made from something else.
    """
    studies = list(studies)
    if not studies:
        raise ShardError("the corpus has no studies: check the table, --root and --limit")
    out = Path(out)
    settings = resolve(settings or PrepareSettings(), studies)
    say = functools.partial(print, file=sys.stderr, flush=True) if progress else lambda *_: None
    with _disk_errors(out):
        parts_folder = out / PARTS_FOLDER
        finished = (out / SETTINGS_FILE).exists()
        if not finished and out.is_dir() and not parts_folder.is_dir() and any(out.iterdir()):
            raise ShardError(f"'{out}' exists and holds other files: give --out a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        if not isinstance(key, bytes):
            key_file = Path(key) if key is not None else default_key(out)
            if key_file.resolve().is_relative_to(out.resolve()):
                raise ShardError(
                    f"the key '{key_file}' must lie outside '{out}', or it travels with the shards"
                )
            key = read_key(key_file)
            say(f"key of the hashed ids: {key_file} (keep it private, and do not share it with the shards)")
        parts = make_plan(studies, settings, key)
        fingerprints = [part.fingerprint for part in parts]
        if finished:
            info = open_shards(out)
            if info.settings.get("fingerprints") != fingerprints:
                raise ShardError(
                    f"'{out}' holds a finished set made from other studies, settings or another key: "
                    "give --out a new folder, or remove this one"
                )
            say(f"'{out}' is already prepared from these studies and settings")
            return info
        parts_folder.mkdir(exist_ok=True)
        with _lock(parts_folder):
            start = time.monotonic()
            done = _run(
                parts, parts_folder, out, settings, workers or os.cpu_count() or 1, max_rejected, progress
            )
            info, summary = _merge(done, out, settings, fingerprints)
    say(summary.text(time.monotonic() - start))
    return info


def default_key(out: str | os.PathLike) -> Path:
    """The key file beside a prepared folder: ``<out>.key``."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".key")


def _run(
    parts: Sequence[Part],
    folder: Path,
    out: Path,
    settings: PrepareSettings,
    workers: int,
    max_rejected: float,
    progress: bool,
) -> list[_Done]:
    """Finish every part that is not committed yet."""
    total = sum(len(part.items) for part in parts)
    # What needs no volume to be rejected, before any is opened: a wrong --root shows at once.
    known = [(*item.rejection, item.row) for part in parts for item in part.items if item.rejection]
    _check_rejections(known, max_rejected, total)
    done = _committed(parts, folder, out)
    todo = [part for part in parts if part.name not in done]
    counts = Counter(entry["class"] for found in done.values() for entry in found.entries)
    rejected = [_rejection(e) for found in done.values() for e in found.entries if e["class"] == REJECTED]
    _check_rejections(rejected, max_rejected, total)
    bar = tqdm(
        total=total,
        initial=counts.total(),
        unit="volume",
        desc="prepare",
        disable=not progress,
        smoothing=0.05,
    )
    outcomes = map_in_order(
        functools.partial(prepare_study, settings=settings),
        (item for part in todo for item in part.items),
        min(workers, sum(len(part.items) for part in todo)),
        _died,
    )

    def collect(part: Part, entries: list[dict[str, object]]) -> Iterator[bytes]:
        for _ in part.items:
            outcome = next(outcomes)
            entries.append(outcome.entry)
            counts[outcome.entry["class"]] += 1
            bar.set_postfix_str(f"{counts[NOTED]} with notes, {counts[REJECTED]} rejected", refresh=False)
            bar.update()
            if outcome.record is not None:
                yield outcome.record
            else:
                rejected.append(_rejection(outcome.entry))
                _check_rejections(rejected, max_rejected, total)

    with bar, contextlib.closing(outcomes):
        for part in todo:
            entries: list[dict[str, object]] = []
            size = write_shard(folder / f"{part.name}.array_record", collect(part, entries))
            text = json.dumps({"fingerprint": part.fingerprint, "size": size, "entries": entries})
            write_text(folder / f"{part.name}.json", text)
            done[part.name] = _Done(part, size, entries)
    return [done[part.name] for part in parts]


def _committed(parts: Sequence[Part], folder: Path, out: Path) -> dict[str, _Done]:
    """Parts whose shard is there, still among the parts or already under its final name."""
    known = []
    for part in parts:
        try:
            written = json.loads((folder / f"{part.name}.json").read_text())
        except (FileNotFoundError, ValueError):
            continue
        if written["fingerprint"] == part.fingerprint:
            known.append(_Done(part, written["size"], written["entries"]))
    # Shards only move when every part is known, and then these names are the ones they move to.
    final = _final_names(known)
    return {
        found.part.name: found
        for found in known
        for path in (
            folder / f"{found.part.name}.array_record",
            out / final.get(found.part.name, PARTS_FOLDER),
        )
        if path.is_file() and path.stat().st_size == found.size
    }


def _final_names(done: Sequence[_Done]) -> dict[str, str]:
    """Part to file name of its shard; parts without a record make no shard."""
    names = {}
    for split in SPLITS:
        filled = [found.part.name for found in done if found.part.split == split and found.records]
        names |= {name: shard_name(split, index, len(filled)) for index, name in enumerate(filled)}
    return names


def _merge(
    done: Sequence[_Done], out: Path, settings: PrepareSettings, fingerprints: list[str]
) -> tuple[PreparedInfo, Summary]:
    """Give shards their final names and write what makes the folder a data set."""
    names = _final_names(done)
    if not names:
        found = summarize(entry for part in done for entry in part.entries)
        raise ShardError(f"no study could be prepared\n{found.text()}")
    seen: set[object] = set()
    entries = []
    for found in done:
        position = 0
        for entry in found.entries:
            if entry["class"] != REJECTED:
                entry |= {"shard": names[found.part.name], "index": position}
                position += 1
                if entry["volume_checksum"] in seen:
                    entry |= {"notes": [*entry["notes"], "duplicate-volume"], "class": NOTED}
                seen.add(entry["volume_checksum"])
            entries.append(entry)
    _write_tokenizer(done, out, settings)
    write_text(out / MANIFEST_FILE, "".join(json.dumps(entry) + "\n" for entry in entries))
    for stale in set(out.glob(SHARD_PATTERN)) - {out / n for n in names.values()}:
        stale.unlink()  # of a run that was cut off here, and whose input then changed
    lengths: dict[str, list[int]] = {}
    for found in done:
        if found.part.name in names:
            source = out / PARTS_FOLDER / f"{found.part.name}.array_record"
            if source.exists():  # else a run that was cut off has moved it
                os.replace(source, out / names[found.part.name])
            lengths.setdefault(found.part.split, []).append(found.records)
    info = finish(out, settings.schema, lengths, settings.to_json() | {"fingerprints": fingerprints})
    return info, summarize(entries)


def _write_tokenizer(done: Sequence[_Done], out: Path, settings: PrepareSettings) -> None:
    if settings.tokenizer is None:
        return
    from medclip_jax.reports.statements import statements
    from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece

    folder = out / PARTS_FOLDER / TOKENIZER_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    if settings.tokenizer == "train":
        # What the model will read: reports of the train split, and every statement both ways.
        reports = [
            report_of(item.study)
            for found in done
            if found.part.split == "train"
            for item, entry in zip(found.part.items, found.entries, strict=True)
            if entry["class"] != REJECTED
        ]
        sentences = [" ".join(statements(dict.fromkeys(settings.findings, sign))) for sign in (1, -1)]
        train_wordpiece([*reports, *sentences * 2], folder, settings.vocabulary_size)
    else:
        load_tokenizer(settings.tokenizer)
        shutil.copytree(
            settings.tokenizer, folder, ignore=lambda _, names: [n for n in names if _is_weights(n)]
        )
    shutil.rmtree(out / TOKENIZER_FOLDER, ignore_errors=True)
    os.replace(folder, out / TOKENIZER_FOLDER)


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ot"))


def _died(item: Item) -> Outcome:
    return Outcome(
        {
            "row": item.row,
            "id": item.id,
            "study": item.study_hash,
            "patient": item.patient_hash,
            "split": item.split,
            "class": REJECTED,
            "reason": "reader-died",
            "message": "The process that read this file was killed, by a crash of the decoder or for want of "
            "memory: convert the file again, or prepare with fewer --workers.",
        }
    )


_Rejection = tuple[str, str, int]
"""Code, message and row."""


def _rejection(entry: Mapping[str, object]) -> _Rejection:
    return entry["reason"], entry["message"], entry["row"]


def _check_rejections(rejected: Sequence[_Rejection], max_rejected: float, total: int) -> None:
    if len(rejected) <= max_rejected * total:
        return
    # The manifest is written at the end only, so this must tell what to mend.
    reasons = []
    for code, count in Counter(code for code, _, _ in rejected).most_common(5):
        found = sorted((row, message) for other, message, row in rejected if other == code)
        rows = ", ".join(str(row) for row, _ in found[:8]) + (", ..." if count > 8 else "")
        message = found[0][1].rstrip(".")
        reasons.append(f"{code} ({count}, {'row' if count == 1 else 'rows'} {rows}): {message}")
    raise ShardError(
        f"stopped: {len(rejected)} of {total} studies rejected so far, more than --max-rejected "
        f"{max_rejected:g} allows. Reasons: {'; '.join(reasons)}. If that is right for these data, run again "
        "with a higher --max-rejected (1 allows all); finished parts are kept"
    )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of the same folder. The system lets go of the lock even after kill -9."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"another run is preparing '{folder.parent}': wait for it, or stop it") from None
        yield


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ShardError(
            f"the disk that holds '{out}' is full: free some space and run the same command again. Finished "
            "parts are intact and kept"
        ) from error
