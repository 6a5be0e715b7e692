"""Finished shards of any number of machines become one data set."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medclip_jax.shards.commit import Commit, Entry, committed, final_names
from medclip_jax.shards.keys import default_key
from medclip_jax.shards.manifest import Summary, read_manifest, summarize
from medclip_jax.shards.parts import Part, PlanFile, read_plan
from medclip_jax.shards.plan import REPEATED_REPORT
from medclip_jax.shards.read import (
    MANIFEST_FILE,
    PARTS_FOLDER,
    SETTINGS_FILE,
    TOKENIZER_FOLDER,
    PreparedInfo,
    open_shards,
)
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.rejected import join_rejected
from medclip_jax.shards.scan import NOTED, REJECTED
from medclip_jax.shards.settings import SPLITS, PrepareSettings
from medclip_jax.shards.work import Rejections
from medclip_jax.shards.write import SHARD_PATTERN, finish, write_text

LOCK_FILE = "lock"

TWIN_NOTE = "duplicate-volume"
"""The one note that only all shards together can tell."""


def merge(
    out: str | os.PathLike,
    *,
    max_rejected: float | None = None,
    key: str | os.PathLike | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreparedInfo, Summary | None]:
    """Make a data set of the shards that all parts wrote. Needs neither the table nor the scans.

    The result depends on the studies, the settings and the key alone: not on the number of parts, nor on
    the order in which they ended. Merging again, or after a kill, does no harm.

    Args:
        out: folder that the parts were told to write.
        max_rejected: share of all studies that may be rejected; default: what the first part was told.
        key: file of the key, which is not read: beside it lie the private lists of what each part rejected,
            which become one. Default: ``<out>.key``.
        say: is given a line about that list.

    Returns:
        What was made, and the summary over all parts; None where the set was complete already.

    Raises:
        ShardError: shards are missing (the message names the parts and the commands to run), too many
            studies were rejected, or another run is at work.
    """
    out = Path(out)
    if (out / SETTINGS_FILE).exists():
        tidy(out)
        return open_shards(out), None
    plan = read_plan(out)
    if plan is None:
        raise ShardError(
            f"'{out}' has no prepared parts to merge: run `medclip prepare ... --out {shlex.quote(str(out))} "
            "--part i/n` first"
        )
    commits = committed(out, plan.shards, plan.shards)
    _check_missing(out, plan, commits)
    with lock(out):
        if (out / SETTINGS_FILE).exists():  # another one was faster
            return open_shards(out), None
        made = assemble(out, plan, list(commits.values()), max_rejected)
        key_file = default_key(out) if key is None else Path(key)
        for line in _join_lists(out, key_file):
            if say is not None:
                say(line)
        return made


def _join_lists(out: Path, key: Path) -> Iterator[str]:
    """Join the private lists of the parts; yields what is to be said of it. The set is complete without."""
    try:
        rejected = [entry for entry in read_manifest(out) if entry["class"] == REJECTED]
        joined = join_rejected(out, key, rejected)
    except (OSError, ValueError, KeyError) as error:
        yield f"the private lists of rejections beside '{key}' could not be joined: {error}"
        return
    if joined is None and rejected:
        yield (
            f"no part's private list of what was rejected lies beside '{key}': give --key the key that the "
            "parts used, and they become one"
        )
    if joined is None or not rejected:
        return
    file, lost = joined
    yield f"what was rejected, with paths and what to do: {file} (private, as the key is)"
    if lost:
        yield (
            f"{lost} of its rows have no path: the lists of their parts are not beside '{key}' (they lie "
            "beside the key that each part used)"
        )


def _check_missing(out: Path, plan: PlanFile, commits: Mapping[str, Commit]) -> None:
    missing = Counter(place % plan.parts + 1 for place, name in enumerate(plan.shards) if name not in commits)
    if not missing:
        return
    command = shlex.join(plan.command) if plan.command else "medclip prepare ..."
    shown = sorted(missing)[:10]
    lines = [f"  {command} --part {Part(index, plan.parts)}" for index in shown]
    more = f"\n  ... and {len(missing) - len(shown)} more parts" if len(missing) > len(shown) else ""
    parts = ", ".join(f"part {Part(index, plan.parts)} lacks {missing[index]}" for index in shown)
    raise ShardError(
        f"{missing.total()} of {len(plan.shards)} shards of '{out}' are missing: {parts}. Run:\n"
        + "\n".join(lines)
        + more
    )


def assemble(
    out: Path, plan: PlanFile, commits: Sequence[Commit], max_rejected: float | None = None
) -> tuple[PreparedInfo, Summary]:
    """Give shards their final names and write what makes the folder a data set; the caller holds the lock.

    Args:
        out: folder.
        plan: of the set.
        commits: of all its shards, in the plan's order.
        max_rejected: default: the plan's.

    Raises:
        ShardError: nothing was accepted, or too much rejected.
    """
    rejections = Rejections(plan.max_rejected if max_rejected is None else max_rejected, plan.rows)
    for commit in commits:
        for entry in commit.entries:
            rejections.add_entry(entry)
    names = final_names(commits)
    if not names:
        found = summarize(entry for commit in commits for entry in commit.entries)
        raise ShardError(f"no study could be prepared\n{found.text()}")
    entries = _manifest(commits, names)
    _write_tokenizer(out, plan.settings, commits)
    write_text(out / MANIFEST_FILE, "".join(json.dumps(entry) + "\n" for entry in entries))
    for stale in {*out.glob(SHARD_PATTERN), *out.glob("*.partial")} - {out / n for n in names.values()}:
        stale.unlink(missing_ok=True)  # of a run that was cut off here, and whose input then changed
    lengths: dict[str, list[int]] = {}
    for commit in commits:
        if commit.name in names:
            source = out / PARTS_FOLDER / f"{commit.name}.array_record"
            if source.exists():  # else a run that was cut off has moved it
                os.replace(source, out / names[commit.name])
            lengths.setdefault(commit.split, []).append(commit.records)
    settings, summary = plan.settings, summarize(entries)
    redacted = {quantity.name: summary.redacted.get(quantity.name, (0, 0)) for quantity in settings.redact}
    written = settings.to_json() | {
        **({"redacted": _counts(redacted)} if redacted else {}),
        **({"scrubbed": _counts(summary.scrubbed)} if settings.scrub else {}),
        **({"repeated_reports": _repeated(entries)} if settings.one_per_report else {}),
        "fingerprints": [commit.fingerprint for commit in commits],
        "digests": [commit.digest for commit in commits],
        "id_rule": plan.id_rule,
    }
    return finish(out, settings.schema, lengths, written), summary


def _manifest(commits: Sequence[Commit], names: Mapping[str, str]) -> list[Entry]:
    entries = []
    for commit in commits:
        position = 0
        for entry in commit.entries:
            if entry["class"] != REJECTED:
                entry = entry | {"shard": names[commit.name], "index": position}
                position += 1
            entries.append(entry)
    return note_twins(entries)


def note_twins(entries: Iterable[Entry]) -> list[Entry]:
    """The lines of a manifest in order, with a note where a scan equals that of an earlier line."""
    seen: set[object] = set()
    noted = []
    for entry in entries:
        if entry["class"] != REJECTED:
            if entry["volume_checksum"] in seen:
                entry = entry | {"notes": [*entry["notes"], TWIN_NOTE], "class": NOTED}
            seen.add(entry["volume_checksum"])
        noted.append(entry)
    return noted


def _counts(found: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {name: {"records": records, "passages": passages} for name, (records, passages) in found.items()}


def _repeated(entries: Sequence[Entry]) -> dict[str, int]:
    """Split to the volumes that were left out because another has their report."""
    found = Counter(e["split"] for e in entries if e["class"] == REJECTED and e["reason"] == REPEATED_REPORT)
    return {split: found[split] for split in SPLITS if found[split]}


def _write_tokenizer(out: Path, settings: PrepareSettings, commits: Sequence[Commit]) -> None:
    if settings.tokenizer is None:
        return
    from medclip_jax.reports.statements import statements
    from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece

    folder = out / PARTS_FOLDER / TOKENIZER_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    if settings.tokenizer == "train":
        # What the model will read: reports of the train split, every statement both ways, and every prompt.
        known = settings.definitions
        sentences = [" ".join(statements(dict.fromkeys(settings.findings, sign), known)) for sign in (1, -1)]
        sentences += [
            text for name in settings.findings for text in (*known[name].positive, *known[name].negative)
        ]
        texts = [text for commit in commits for text in commit.texts]
        patients = [patient for commit in commits for patient in commit.text_patients]
        train_wordpiece(
            [*texts, *sentences * 2],
            folder,
            settings.vocabulary_size,
            patients=[*patients, *[None] * (2 * len(sentences))],
            minimum_patients=settings.vocabulary_patients,
        )
    else:
        # What else lies in the folder, and the path that its settings may hold, is not passed on.
        folder.mkdir(parents=True)
        load_tokenizer(settings.tokenizer).save(folder)
    shutil.rmtree(out / TOKENIZER_FOLDER, ignore_errors=True)
    os.replace(folder, out / TOKENIZER_FOLDER)


def tidy(out: Path) -> None:
    """Remove what a run left that was cut off after the set was whole, unless another is at work there."""
    if (out / PARTS_FOLDER).is_dir():
        with contextlib.suppress(ShardError, OSError), lock(out):
            shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)


@contextlib.contextmanager
def lock(out: Path, *, shared: bool = False) -> Iterator[bool]:
    """Keep runs out of each other's way: parts share the folder, a whole run and merging have it alone.

    The system lets go of the lock even after kill -9.

    Args:
        out: folder that is prepared; its folder of unfinished shards must exist.
        shared: with others that share it.

    Yields:
        Whether the file system knows locks. Without them, what is written is still complete: every file
        appears by an atomic rename.

    Raises:
        ShardError: another run is at work.
    """
    with open(out / PARTS_FOLDER / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"another run is preparing '{out}': wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            yield False
            return
        yield True
