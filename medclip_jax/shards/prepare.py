"""Studies in, prepared folder out: in parallel, on any number of machines, the same bytes every time.

`shards.plan` cuts the work into shards, the same on every machine. A machine makes the shards of its part
under `.parts/` (`shards.work`, `shards.commit`), and skips those that are committed. When all are there,
`shards.merge` gives them their final names, and `prepare.json` makes the folder whole. So a kill at any
moment costs at most one shard of each machine.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.study import Study
from medclip_jax.shards.commit import Commit, Entry, committed, listed, sweep
from medclip_jax.shards.keys import read_key
from medclip_jax.shards.manifest import summarize
from medclip_jax.shards.merge import assemble, lock, merge
from medclip_jax.shards.parts import Part, PlanFile, describe_plan, join_plan, write_plan
from medclip_jax.shards.plan import ID_RULE, Examined, examine, make_plan
from medclip_jax.shards.read import PARTS_FOLDER, SETTINGS_FILE, PreparedInfo, open_shards
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.rejected import rejected_file, write_rejected
from medclip_jax.shards.scan import NOTED, REJECTED
from medclip_jax.shards.settings import PrepareSettings, resolve, unknown_masks
from medclip_jax.shards.work import Rejections, available_cores, make_shards

WHOLE = Part(1, 1)

ENGINES = ("processes", "ray")
"""What makes the shards: worker processes of this machine, or a Ray cluster."""


def prepare(
    studies: Iterable[Study],
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    workers: int | None = None,
    key: bytes | str | os.PathLike | None = None,
    max_rejected: float = 0.1,
    engine: str = "processes",
    progress: bool = True,
) -> PreparedInfo:
    """Prepare studies for training.

    Run it again with the same arguments after any interruption: finished shards are kept, also those that
    `prepare_part` made. The folder's content depends on the studies, the settings and the key alone, not
    on `workers`, `engine` or interruptions.

    Args:
        studies: of a corpus; must come in the same order when a run is continued.
        out: folder to write; created if needed.
        settings: default: the shape of ASAP.
        workers: processes; default: one for each core that this process may use.
        key: key of the hashed ids, or its file, which is made if needed. It must lie outside `out` and
            stays with the owner of the data. Default: ``<out>.key``. Beside it, ``<out>.rejected.csv``
            lists what was left out, with paths.
        max_rejected: share of the studies that may be rejected before the run stops.
        engine: one of `ENGINES`.
        progress: show a bar with rate and time left, and print the summary.

    Raises:
        ShardError: nothing to prepare, a setting makes no sense, too many rejections, the disk is full,
            or `out` holds a finished set made from something else.
    """
    return _prepare(None, studies, out, settings, workers, key, max_rejected, engine, progress, ())


def prepare_part(
    part: Part,
    studies: Iterable[Study],
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    workers: int | None = None,
    key: bytes | str | os.PathLike | None = None,
    max_rejected: float = 0.1,
    engine: str = "processes",
    progress: bool = True,
    command: Sequence[str] = (),
) -> PreparedInfo | None:
    """Make one machine's share of the shards; the part that finds all others finished merges.

    Parts need not know of each other. Every one must be given all studies, in the same order, and the same
    settings and key. A part run twice, or killed and run again, leaves the same shards.

    Args:
        part: which share.
        studies: all of the corpus, as for `prepare`.
        out: the same folder for all parts; or one for each, whose ``.parts`` are then copied together.
        settings: as for `prepare`.
        workers: as for `prepare`.
        key: as for `prepare`; the same for all parts.
        max_rejected: share of all studies. A part is a random sample: it stops when its own share is
            higher than chance allows.
        engine: one of `ENGINES`.
        progress: show a bar, and print the summary.
        command: how this part was started, without the part, for the message about missing parts.

    Returns:
        The finished set if this part merged it, else None.

    Raises:
        ShardError: as for `prepare`; or other parts in `out` were made from something else.
    """
    return _prepare(part, studies, out, settings, workers, key, max_rejected, engine, progress, command)


def _prepare(
    part: Part | None,
    studies: Iterable[Study],
    out: str | os.PathLike,
    settings: PrepareSettings | None,
    workers: int | None,
    key: bytes | str | os.PathLike | None,
    max_rejected: float,
    engine: str,
    progress: bool,
    command: Sequence[str],
) -> PreparedInfo | None:
    from medclip_jax.reports.tokenizer import load_tokenizer

    if engine not in ENGINES:
        raise ShardError(f"no engine '{engine}': it is one of {', '.join(ENGINES)}")
    say = functools.partial(print, file=sys.stderr, flush=True) if progress else lambda *_: None
    settings = settings or PrepareSettings()
    if isinstance(studies, StudyTable):
        for remark in studies.remarks:
            say(f"table: {remark}")
        settings = replace(settings, zero_label=studies.zero_label)
    studies = list(studies)
    if not studies:
        raise ShardError("the corpus has no studies: check the table, --root and --limit")
    out = Path(out)
    settings = resolve(settings, studies)
    people = len({study.patient_id for study in studies})
    if settings.tokenizer == "train" and people < settings.vocabulary_patients:
        say(
            f"the studies are of {people} patients: the tokenizer learns no word of their reports, because a "
            f"name could be among the words that fewer than {settings.vocabulary_patients} patients share; "
            "it spells them. --vocabulary-patients 1 learns them all, --tokenizer FOLDER takes a ready one"
        )
    if settings.unknown_masks:
        names = unknown_masks(studies)
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        say(
            f"{len(names)} masks are left out, because their names are not known as organs: {shown}. Take "
            "those that you want with --organs; what is named there is written into the set"
        )
    if settings.tokenizer not in ("train", None):
        load_tokenizer(settings.tokenizer)  # it is copied at the end, which is late to learn of a mistake
    start = time.monotonic()
    with _disk_errors(out):
        finished = (out / SETTINGS_FILE).exists()
        if not finished and out.is_dir() and not (out / PARTS_FOLDER).is_dir() and any(out.iterdir()):
            raise ShardError(f"'{out}' exists and holds other files: give --out a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        key_file = default_key(out) if key is None or isinstance(key, bytes) else Path(key)
        private = rejected_file(out, key_file, part)
        key = _key(key, out, say)
        shards = make_plan(studies, settings, key)
        own = [
            (place, examine(shard, settings, key))
            for place, shard in enumerate(shards)
            if (part or WHOLE).owns(place)
        ]
        if finished:
            return _already(out, len(shards), own, say)
        plan = describe_plan(
            shards,
            settings,
            key,
            parts=(part or WHOLE).count,
            max_rejected=max_rejected,
            command=command,
        )
        (out / PARTS_FOLDER).mkdir(exist_ok=True)
        with lock(out, shared=part is not None) as locks:
            if (out / SETTINGS_FILE).exists():  # the others have ended in the meantime
                return _already(out, len(shards), own, say)
            (join_plan if part else write_plan)(out, plan)
            rejections = Rejections(
                max_rejected, sum(len(e.shard.items) for _, e in own), sample=part is not None
            )
            examined = [found for _, found in own]
            try:
                done = _run(examined, out, plan, workers, rejections, engine, part, progress)
            finally:
                _list_rejected(private, studies, examined, rejections, say)
            if part is None:
                info, summary = assemble(out, plan, [done[name] for name in plan.shards])
                say(summary.text(time.monotonic() - start))
                return info
        summary = summarize(entry for commit in done.values() for entry in commit.entries)
        say(f"part {part}: {summary.text(time.monotonic() - start)}")
        return _merge_if_last(out, plan, locks, max_rejected, start, say)


def _list_rejected(
    file: Path, studies: Sequence[Study], examined: Sequence[Examined], rejections: Rejections, say
) -> None:
    """Also of a run that stops because there are too many: what to mend stands in it."""
    items = (item for found in examined for item in found.shard.items)
    known = {(*item.rejection, item.row) for item in items if item.rejection is not None}
    try:
        if write_rejected(file, studies, known | set(rejections.found)):
            say(f"what was rejected, with paths and what to do: {file} (private, as the key is)")
    except OSError as error:  # a key may lie where nothing can be written
        say(f"the private list of rejections '{file}' could not be written: {error.strerror}")


def _merge_if_last(
    out: Path, plan: PlanFile, locks: bool, max_rejected: float, start: float, say
) -> PreparedInfo | None:
    again = f"when all parts have ended, run: medclip prepare --merge {out}"
    if not locks:
        say(f"this file system knows no locks, so that no part merges by itself; {again}")
        return None
    if not (out / SETTINGS_FILE).exists() and not listed(out / PARTS_FOLDER, plan.shards):
        say("other parts are still missing; the last one to end puts the set together")
        return None
    try:
        info, summary = merge(out, max_rejected=max_rejected)
    except ShardError as error:
        if "another run" not in str(error):
            raise
        say(f"another part is putting the set together, or is at work; {again}")
        return None
    if summary is not None:
        say(f"all {plan.parts} parts: {summary.text(time.monotonic() - start)}")
    return info


def default_key(out: str | os.PathLike) -> Path:
    """The key file beside a prepared folder: ``<out>.key``."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".key")


def _key(key: bytes | str | os.PathLike | None, out: Path, say) -> bytes:
    if isinstance(key, bytes):
        return key
    file = Path(key) if key is not None else default_key(out)
    if file.resolve().is_relative_to(out.resolve()):
        raise ShardError(f"the key '{file}' must lie outside '{out}', or it travels with the shards")
    say(f"key of the hashed ids: {file} (keep it private, and do not share it with the shards)")
    return read_key(file)


def _already(out: Path, count: int, own: Sequence[tuple[int, Examined]], say) -> PreparedInfo:
    info = open_shards(out)
    if info.settings.get("id_rule", 1) != ID_RULE:
        raise ShardError(
            f"'{out}' was prepared by an earlier version of medclip, which told studies apart by the study's "
            "id alone: equal ones of different patients became one. It can still be read. To tell them apart "
            "by patient and study, give --out a new folder"
        )
    written = info.settings.get("fingerprints") or ()
    if len(written) != count or any(written[place] != found.fingerprint for place, found in own):
        raise ShardError(
            f"'{out}' holds a finished set made from other studies, settings or another key: "
            "give --out a new folder, or remove this one"
        )
    shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)
    say(f"'{out}' is already prepared from these studies and settings")
    return info


def _run(
    examined: Sequence[Examined],
    out: Path,
    plan: PlanFile,
    workers: int | None,
    rejections: Rejections,
    engine: str,
    part: Part | None,
    progress: bool,
) -> dict[str, Commit]:
    """Finish every shard that is not committed yet."""
    folder = out / PARTS_FOLDER
    # What needs no volume to be rejected, before any is opened: a wrong --root shows at once.
    known = Rejections(rejections.limit, rejections.total, sample=part is not None)
    items = (item for found in examined for item in found.shard.items)
    known.add(*((*item.rejection, item.row) for item in items if item.rejection is not None))
    fingerprints = {found.shard.name: found.fingerprint for found in examined}
    done = {
        name: commit
        for name, commit in committed(out, plan.shards, fingerprints).items()
        if commit.fingerprint == fingerprints[name]
    }
    todo = [found for found in examined if found.shard.name not in done]
    sweep(folder, (found.shard.name for found in todo))
    counts: Counter[str] = Counter()
    for commit in done.values():
        for entry in commit.entries:
            counts[str(entry["class"])] += 1
            rejections.add_entry(entry)
    bar = tqdm(
        total=rejections.total,
        initial=counts.total(),
        unit="volume",
        desc="prepare" if part is None else f"part {part}",
        disable=not progress,
        smoothing=0.05,
    )

    def observe(entry: Entry) -> None:
        counts[str(entry["class"])] += 1
        bar.set_postfix_str(f"{counts[NOTED]} with notes, {counts[REJECTED]} rejected", refresh=False)
        bar.update()
        rejections.add_entry(entry)

    with bar:
        made: Iterator[Commit]
        if engine == "ray" and todo:
            from medclip_jax.shards.ray_engine import make_shards_on_ray

            made = make_shards_on_ray(todo, plan.settings, folder, workers, observe)
        else:
            made = make_shards(todo, plan.settings, folder, workers or available_cores(), observe)
        with contextlib.closing(made):
            done |= {commit.name: commit for commit in made}
    return done


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ShardError(
            f"the disk that holds '{out}' is full: free some space and run the same command again. Finished "
            "shards are intact and kept"
        ) from error
