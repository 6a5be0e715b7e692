"""One machine's share of a set: what is finished, what is to be made, and what is to be tried again."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import name_rows
from medclip_jax.pool import available_cores
from medclip_jax.progress import track
from medclip_jax.shards.check import check_files
from medclip_jax.shards.commit import Commit, Entry, committed, sweep
from medclip_jax.shards.manifest import Summary, may_pass, read_manifest, summarize
from medclip_jax.shards.merge import LOCK_FILE, assemble, lock, tidy
from medclip_jax.shards.parts import Part, PlanFile, write_plan
from medclip_jax.shards.plan import ID_RULE, MISSING_FILE, Examined, ShardPlan
from medclip_jax.shards.read import PARTS_FOLDER, PreparedInfo, open_shards
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.rejected import write_rejected
from medclip_jax.shards.retry import read_commits, reopen, with_texts
from medclip_jax.shards.scan import NOTED, REJECTED
from medclip_jax.shards.work import ATTEMPT, READER_DIED, Rejections, cut_off, make_shards


@dataclass(frozen=True)
class Options:
    """How the work is done, which does not change what comes out; see `prepare`."""

    part: Part | None
    out: Path
    workers: int | None
    max_rejected: float
    engine: str
    progress: bool
    retry_rejected: bool
    observe: Callable[[Summary], None] | None
    command: tuple[str, ...] = ()

    def say(self, text: str) -> None:
        """Print a line for the user."""
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    def summarize(self, entries: Iterable[Entry], start: float | None = None) -> None:
        """Print what became of the studies, and tell it the caller."""
        summary = summarize(entries)
        seconds = None if start is None else time.monotonic() - start
        self.say((f"part {self.part}: " if self.part else "") + summary.text(seconds))
        if self.observe is not None:
            self.observe(summary)


@dataclass(frozen=True)
class Job:
    """One machine's share of a set.

    Attributes:
        options: how the work is done.
        plan: what all machines agree on.
        shards: of the whole plan.
        own: place in the plan to what was found of this machine's shards.
        studies: of the whole input.
        private: where the list of rejections goes.
    """

    options: Options
    plan: PlanFile
    shards: Sequence[ShardPlan]
    own: Mapping[int, Examined]
    studies: Sequence[Study]
    private: Path

    def committed(self) -> dict[str, Commit]:
        """Own shards that are finished, and hold nothing that is to be tried again."""
        found = {examined.shard.name: examined for examined in self.own.values()}
        return {
            name: commit
            for name, commit in committed(self.options.out, self.plan.shards, found).items()
            if found[name].matches(commit.fingerprint) and not self._to_try(found[name], commit)
        }

    def _to_try(self, found: Examined, commit: Commit) -> bool:
        pairs = list(zip(found.shard.items, commit.entries, strict=True))
        # What is rejected by the table, or because there is no file, needs no other try.
        rejected = [entry for item, entry in pairs if entry["class"] == REJECTED and item.rejection is None]
        if self.options.retry_rejected:
            return bool(rejected) or not found.matches(commit.fingerprint)
        return any(may_pass(entry) or entry["reason"] == MISSING_FILE for entry in rejected)

    def again(self, start: float) -> PreparedInfo:
        """Run on a finished set: try again what could not be read."""
        options, out = self.options, self.options.out
        info = open_shards(out)
        self._check_same(info)
        if problems := check_files(info):
            raise ShardError(
                f"'{out}' is finished, but damaged (remove it to prepare it again): {'; '.join(problems)}"
            )
        commits = read_commits(info, self.shards)
        todo = {
            found.shard.name: found
            for found in self.own.values()
            if self._to_try(found, commits[found.shard.name])
        }
        changed = [
            name
            for name in (found.shard.name for found in self.own.values())
            if name not in todo and not self._found(name).matches(commits[name].fingerprint)
        ]
        if changed:
            raise ShardError(
                f"scans or masks of '{out}' have changed since it was prepared (in {len(changed)} of "
                f"{len(self.shards)} shards): --retry-rejected reads them again, together with what was "
                "rejected; or give --out a new folder"
            )
        if todo and options.part is None:
            info = self._remake(info, commits, todo)
        elif todo:
            options.say(f"'{out}' is finished: to try again what could not be read, leave --part out")
        else:
            tidy(out)
            options.say(f"'{out}' is already prepared from these studies and settings")
        names = {found.shard.name for found in self.own.values()}
        entries = read_manifest(out)
        mine = {item.id for shard in self.shards if shard.name in names for item in shard.items}
        if todo or any(map(may_pass, entries)):
            options.summarize((entry for entry in entries if entry["id"] in mine), start)
        return info

    def _found(self, name: str) -> Examined:
        return next(found for found in self.own.values() if found.shard.name == name)

    def _check_same(self, info: PreparedInfo) -> None:
        if info.settings.get("id_rule", 1) != ID_RULE:
            raise ShardError(
                f"'{info.folder}' was prepared by an earlier version of medclip, which told studies apart "
                "by the "
                "study's id alone: equal ones of different patients became one. It can still be read. To "
                "tell them apart by patient and study, give --out a new folder"
            )
        if info.settings.get("digests") != [shard.digest for shard in self.shards]:
            raise ShardError(
                f"'{info.folder}' holds a finished set made from other studies, settings or another key: "
                "give --out a new folder, or remove this one"
            )

    def _remake(
        self, info: PreparedInfo, commits: Mapping[str, Commit], todo: Mapping[str, Examined]
    ) -> PreparedInfo:
        """Make some shards of a finished set anew; where nothing changes, it is left as it is."""
        out = self.options.out
        (out / PARTS_FOLDER).mkdir(exist_ok=True)
        with lock(out):
            for path in (out / PARTS_FOLDER).iterdir():  # of a retry that was cut off
                if path.name != LOCK_FILE and not path.name.startswith(ATTEMPT):
                    path.unlink() if path.is_file() else shutil.rmtree(path)
            write_plan(out, self.plan)
            kept = {
                shard.name: with_texts(commits[shard.name], shard, self.plan.settings)
                for shard in self.shards
                if shard.name not in todo
            }
            self.options.say(f"{len(todo)} of {len(commits)} shards of '{out}' are made again")
            died = {
                entry["row"]
                for name in todo
                for entry in commits[name].entries
                if entry["class"] == REJECTED and entry["reason"] == READER_DIED
            }
            made = self.run(kept, died)
            if all(
                (made[name].entries, made[name].fingerprint)
                == (commits[name].entries, commits[name].fingerprint)
                for name in todo
            ):
                shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)
                return info
            reopen(info, {**commits, **kept}, list(kept))
            return assemble(out, self.plan, [made[name] for name in self.plan.shards])[0]

    def run(self, done: Mapping[str, Commit], died: Set[int] = frozenset()) -> dict[str, Commit]:
        """Finish every own shard that is not among `done`, and list privately what was rejected.

        Rows in `died` have killed their reader before.
        """
        options, part = self.options, self.options.part
        examined = list(self.own.values())
        rejections = Rejections(
            options.max_rejected, sum(len(found.shard.items) for found in examined), sample=part is not None
        )
        try:
            return self._run(examined, done, rejections, died)
        finally:
            items = (item for found in examined for item in found.shard.items)
            known = {(*item.rejection, item.row) for item in items if item.rejection is not None}
            try:
                if write_rejected(self.private, self.studies, known | set(rejections.found)):
                    options.say(
                        f"what was rejected, with paths and what to do: {self.private} (private, as the "
                        "key is)"
                    )
            except OSError as error:  # a key may lie where nothing can be written
                options.say(
                    f"the private list of rejections '{self.private}' could not be written: {error.strerror}"
                )

    def _run(
        self,
        examined: Sequence[Examined],
        done: Mapping[str, Commit],
        rejections: Rejections,
        died: Set[int],
    ) -> dict[str, Commit]:
        options, part = self.options, self.options.part
        folder = options.out / PARTS_FOLDER
        # What needs no volume to be rejected, before any is opened: a wrong --root shows at once.
        known = Rejections(rejections.limit, rejections.total, sample=part is not None)
        items = (item for found in examined for item in found.shard.items)
        known.add(*((*item.rejection, item.row) for item in items if item.rejection is not None))
        todo = [found for found in examined if found.shard.name not in done]
        sweep(folder, (found.shard.name for found in todo))
        suspects = died | cut_off(folder, (item for found in todo for item in found.shard.items))
        if suspects:
            options.say(
                f"{name_rows(suspects)} of the input: an earlier run was killed while it read them. Each "
                "is read in a process of its own, in case the file did it"
            )
        counts: Counter[str] = Counter()
        for commit in done.values():
            for entry in commit.entries:
                counts[str(entry["class"])] += 1
                rejections.add_entry(entry)
        bar = track(
            total=rejections.total,
            initial=counts.total(),
            unit="volume",
            label="prepare" if part is None else f"part {part}",
            show=options.progress,
            smoothing=0.05,
        )

        def observe(entry: Entry) -> None:
            counts[str(entry["class"])] += 1
            bar.note(f"{counts[NOTED]} with notes, {counts[REJECTED]} rejected")
            bar.update()
            rejections.add_entry(entry)

        made: Iterator[Commit]
        with bar:
            if options.engine == "ray" and todo:
                from medclip_jax.shards.ray_engine import make_shards_on_ray

                made = make_shards_on_ray(todo, self.plan.settings, folder, options.workers, observe)
            else:
                workers = options.workers or available_cores()
                made = make_shards(todo, self.plan.settings, folder, workers, observe, suspects)
            with contextlib.closing(made):
                return {**done, **{commit.name: commit for commit in made}}
