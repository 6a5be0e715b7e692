"""Studies in, prepared folder out: in parallel, on any number of machines, the same bytes every time.

`shards.plan` cuts the work into shards, the same on every machine. A machine makes the shards of its part
under `.parts/` (`shards.work`, `shards.commit`), and skips those that are committed. When all are there,
`shards.merge` gives them their final names, and `prepare.json` makes the folder complete. So a kill at any
moment costs at most one shard of each machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.study import Study
from medclip_jax.shards.commit import listed
from medclip_jax.shards.job import Job, Options
from medclip_jax.shards.keys import default_key, read_key
from medclip_jax.shards.manifest import Summary, read_manifest
from medclip_jax.shards.merge import assemble, lock, merge
from medclip_jax.shards.parts import Part, PlanFile, describe_plan, join_plan, write_plan
from medclip_jax.shards.plan import count_repeated, examine, make_plan, report_of
from medclip_jax.shards.read import PARTS_FOLDER, SETTINGS_FILE, PreparedInfo
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.rejected import rejected_file
from medclip_jax.shards.settings import PrepareSettings, resolve, unknown_masks

WHOLE = Part(1, 1)

_LOOKERS = 8
"""Threads that look at files before the work begins."""

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
    retry_rejected: bool = False,
    observe: Callable[[Summary], None] | None = None,
) -> PreparedInfo:
    """Prepare studies for training.

    Run it again with the same arguments after any interruption: finished shards are kept, also those that
    `prepare_part` made. The folder's content depends on the studies, the settings and the key alone, not
    on `workers`, `engine` or interruptions. Studies that could not be read for a reason that may pass
    (`manifest.PASSING`) are tried again by the next call, also in a set that is finished.

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
        retry_rejected: also try studies again that were rejected for any other reason that lies in the
            files, and read again what lies in files that have changed.
        observe: is given the summary at the end.

    Raises:
        ShardError: nothing to prepare, a setting makes no sense, too many rejections, the disk is full,
            or `out` holds a finished set made from something else.
    """
    options = Options(None, Path(out), workers, max_rejected, engine, progress, retry_rejected, observe)
    return _prepare(studies, settings, key, options)


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
    retry_rejected: bool = False,
    observe: Callable[[Summary], None] | None = None,
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
        retry_rejected: as for `prepare`, as long as the set is not finished.
        observe: is given the summary of this part at the end.
        command: how this part was started, without the part, for the message about missing parts.

    Returns:
        The finished set if this part merged it, else None.

    Raises:
        ShardError: as for `prepare`; or other parts in `out` were made from something else.
    """
    options = Options(
        part, Path(out), workers, max_rejected, engine, progress, retry_rejected, observe, tuple(command)
    )
    return _prepare(studies, settings, key, options)


def _prepare(
    studies: Iterable[Study],
    settings: PrepareSettings | None,
    key: bytes | str | os.PathLike | None,
    options: Options,
) -> PreparedInfo | None:
    from medclip_jax.reports.tokenizer import load_tokenizer

    if options.engine not in ENGINES:
        raise ShardError(f"no engine '{options.engine}': it is one of {', '.join(ENGINES)}")
    say, out, part = options.say, options.out, options.part
    settings = settings or PrepareSettings()
    if isinstance(studies, StudyTable):
        for remark in studies.remarks:
            say(f"table: {remark}")
        settings = replace(settings, zero_label=studies.zero_label)
    studies = list(studies)
    if not studies:
        raise ShardError("the corpus has no studies: check the table, --root and --limit")
    settings = resolve(settings, studies)
    _say_what_is_left_out(settings, studies, say)
    _say_what_repeats(settings, studies, say)
    if part is None:
        _say_what_is_redacted(settings, studies, say)
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
        places = [place for place in range(len(shards)) if (part or WHOLE).owns(place)]
        with ThreadPoolExecutor(_LOOKERS) as pool:  # on network storage, looking is mostly waiting
            found = pool.map(lambda place: examine(shards[place], settings, key), places)
            own = dict(zip(places, found, strict=True))
        plan = describe_plan(
            shards,
            settings,
            key,
            parts=(part or WHOLE).count,
            max_rejected=options.max_rejected,
            command=options.command,
        )
        job = Job(options, plan, shards, own, studies, private)
        if finished:
            return job.again(start)
        (out / PARTS_FOLDER).mkdir(exist_ok=True)
        with lock(out, shared=part is not None) as locks:
            if not (out / SETTINGS_FILE).exists():
                (join_plan if part else write_plan)(out, plan)
                done = job.run(job.committed())
                if part is None:
                    info, _ = assemble(out, plan, [done[name] for name in plan.shards])
                    options.summarize(read_manifest(out), start)
                    return info
        if (out / SETTINGS_FILE).exists():  # the others have ended in the meantime
            return job.again(start)
        options.summarize((entry for commit in done.values() for entry in commit.entries), start)
        return _merge_if_last(out, plan, locks, options.max_rejected, key_file, start, say)


def _say_what_repeats(settings: PrepareSettings, studies: Sequence[Study], say) -> None:
    same, other = count_repeated(studies)
    if same or other:
        what = (
            "of each split, one volume of every report is kept"
            if settings.one_per_report
            else "--one-per-report keeps one of every report in each split"
        )
        say(
            f"reports: {same + other} of {len(studies)} volumes repeat the report of another, {same} of the "
            f"same study and {other} of another; {what}"
        )


_SEARCHED = 500
"""Reports in which an example of what is redacted is looked for."""


def _say_what_is_redacted(settings: PrepareSettings, studies: Sequence[Study], say) -> None:
    """An example of each quantity, for the user's own screen alone: not where parts write logs."""
    from medclip_jax.reports.redaction import redact

    for quantity in settings.redact:
        passages = (
            passage
            for study in studies[:_SEARCHED]
            for passage in redact(report_of(study), [quantity]).passages
        )
        found = next(passages, None)
        say(
            f"--redact {quantity.name} ({quantity.about}): "
            + (
                f"for example, {found.marked()}"
                if found
                else f"nothing in the first {min(_SEARCHED, len(studies))} reports"
            )
        )


def _say_what_is_left_out(settings: PrepareSettings, studies: Sequence[Study], say) -> None:
    people = len({study.patient_id for study in studies})
    least = settings.vocabulary_patients
    if settings.tokenizer == "train" and people < least:
        say(
            f"the studies are of fewer than {least} patients: the tokenizer learns no word of their reports, "
            "because it could be a name, and spells them. --vocabulary-patients 1 learns them all, "
            "--tokenizer FOLDER takes a ready one"
        )
    if settings.unknown_masks:
        names = unknown_masks(studies)
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        say(
            f"masks that are left out, because their names are not known as organs ({len(names)}): "
            f"{shown}. Take those that you want with --organs; what is named there is written into the set"
        )


def _merge_if_last(
    out: Path, plan: PlanFile, locks: bool, max_rejected: float, key_file: Path, start: float, say
) -> PreparedInfo | None:
    again = f"when all parts have ended, run: medclip prepare --merge {out}"
    if not locks:
        say(f"this file system knows no locks, so that no part merges by itself; {again}")
        return None
    if not (out / SETTINGS_FILE).exists() and not listed(out / PARTS_FOLDER, plan.shards):
        say("other parts are still missing; the last one to end puts the set together")
        return None
    try:
        info, summary = merge(out, max_rejected=max_rejected, key=key_file, say=say)
    except ShardError as error:
        if "another run" not in str(error):
            raise
        say(f"another part is putting the set together, or is at work; {again}")
        return None
    if summary is not None:
        say(f"all {plan.parts} parts: {summary.text(time.monotonic() - start)}")
    return info


def _key(key: bytes | str | os.PathLike | None, out: Path, say) -> bytes:
    if isinstance(key, bytes):
        return key
    file = Path(key) if key is not None else default_key(out)
    if file.resolve().is_relative_to(out.resolve()):
        raise ShardError(f"the key '{file}' must lie outside '{out}', or it travels with the shards")
    say(f"key of the hashed ids: {file} (keep it private, and do not share it with the shards)")
    return read_key(file)


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
