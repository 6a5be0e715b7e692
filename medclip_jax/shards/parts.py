"""Which share of the shards a machine makes, and the file by which machines know that they make one set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from medclip_jax.shards.keys import hashed_text
from medclip_jax.shards.plan import ID_RULE, ShardPlan
from medclip_jax.shards.read import PARTS_FOLDER
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.shards.write import create_text, write_text

PLAN_FILE = "plan.json"
"""In the folder of unfinished shards: what all machines must agree on."""

COUNT_VARIABLE = "MEDCLIP_PART_COUNT"
"""Says how many parts there are where the scheduler tells only the index (Kubernetes)."""


@dataclass(frozen=True)
class Part:
    """Share `index` of `count`, from 1.

    A shard belongs to the part by its place in the plan, which follows the keyed hash of its studies.
    """

    index: int
    count: int

    def __post_init__(self):
        if not 1 <= self.index <= self.count:
            raise ShardError(
                f"there is no part {self.index}/{self.count}: parts count from 1, so the {self.count} parts "
                f"are 1/{self.count} to {self.count}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, place: int) -> bool:
        """Whether the shard at `place` (from 0) of the plan is this part's."""
        return place % self.count == self.index - 1


def parse_part(text: str, environment: Mapping[str, str]) -> Part:
    """Read ``--part``.

    Args:
        text: ``"3/8"``; ``"auto"`` takes index and count from a SLURM array, or from a Kubernetes indexed
            job with MEDCLIP_PART_COUNT; ``"auto/8"`` takes only the index from them.
        environment: of the process.

    Raises:
        ShardError: it is none of these, or the scheduler does not say enough.
    """
    match = re.fullmatch(r"(\d+|auto)(?:/(\d+))?", text.strip())
    if match is None or (match[1] != "auto" and match[2] is None):
        raise ShardError(f"--part '{text}': write i/n such as 3/8 (parts count from 1), auto, or auto/n")
    if match[1] != "auto":
        return Part(int(match[1]), int(match[2]))
    count = int(match[2]) if match[2] else None
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _slurm_part(count, environment)
    if "JOB_COMPLETION_INDEX" in environment:
        index = int(environment["JOB_COMPLETION_INDEX"]) + 1
        if count is None and COUNT_VARIABLE not in environment:
            raise ShardError(
                f"--part auto: Kubernetes gives the index of a job but not the number of completions. Write "
                f"--part auto/n, or set {COUNT_VARIABLE} in the job's environment"
            )
        return Part(index, count or int(environment[COUNT_VARIABLE]))
    raise ShardError(
        "--part auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set, so this is no array job: "
        "write --part i/n"
    )


def _slurm_part(count: int | None, environment: Mapping[str, str]) -> Part:
    task = int(environment["SLURM_ARRAY_TASK_ID"])
    low, high, size, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", task), ("MAX", task), ("COUNT", 1), ("STEP", 1))
    )
    regular = (high - low) // max(step, 1) + 1 == size
    if not regular or (count is not None and count != size):
        # Some tasks of an array, handed in again: their numbers say nothing about the whole.
        raise ShardError(
            f"--part auto: this array has {size} tasks from {low} to {high}, which is not a full array of "
            f"{count or 'regular steps'}. Submit all tasks again (finished shards are kept), or write the "
            f"part of each: --part $SLURM_ARRAY_TASK_ID/n for an array that counts from 1"
        )
    return Part((task - low) // max(step, 1) + 1, size)


@dataclass(frozen=True)
class PlanFile:
    """What every machine must agree on, and what merging needs without the table.

    It lies among the unfinished shards and goes when the set is complete.

    Attributes:
        version: of this library.
        key: a hash that shows whether two keys are the same, and nothing else.
        rows: studies in the table.
        settings: resolved.
        shards: name to digest, in the order of the set.
        items: name of a shard to number of studies.
        parts: into how many parts the first machine was told to divide.
        max_rejected: what the first machine was told.
        command: with which the first machine was started, without its part; () if not from a command.
        id_rule: how ids are hashed, see `medclip_jax.shards.plan.ID_RULE`.
    """

    version: str
    key: str
    rows: int
    settings: PrepareSettings
    shards: Mapping[str, str]
    items: Mapping[str, int]
    parts: int
    max_rejected: float
    command: tuple[str, ...] = ()
    id_rule: int = 1


def describe_plan(
    shards: Sequence[ShardPlan],
    settings: PrepareSettings,
    key: bytes,
    *,
    parts: int,
    max_rejected: float,
    command: Sequence[str] = (),
) -> PlanFile:
    """The plan file of a plan.

    Args:
        shards: of `make_plan`.
        settings: resolved.
        key: of the hashes.
        parts: into how many the work is divided.
        max_rejected: share of the studies.
        command: for messages; without the part.
    """
    import medclip_jax

    if settings.tokenizer not in ("train", None):
        settings = replace(settings, tokenizer=str(Path(settings.tokenizer).absolute()))
    return PlanFile(
        version=medclip_jax.__version__,
        key=hashed_text(key, "key", ""),
        rows=sum(len(shard.items) for shard in shards),
        settings=settings,
        shards={shard.name: shard.digest for shard in shards},
        items={shard.name: len(shard.items) for shard in shards},
        parts=parts,
        max_rejected=max_rejected,
        command=tuple(command),
        id_rule=ID_RULE,
    )


def read_plan(out: Path) -> PlanFile | None:
    """The plan file of an unfinished set; None where there is none.

    Raises:
        ShardError: it is damaged.
    """
    path = out / PARTS_FOLDER / PLAN_FILE
    try:
        written = json.loads(path.read_text())
        settings = PrepareSettings.from_json(written.pop("settings"))
        return PlanFile(**{**written, "command": tuple(written["command"])}, settings=settings)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{path} is damaged, or of another version of medclip ({type(error).__name__}): remove "
            f"'{path.parent}' and prepare again"
        ) from None


def write_plan(out: Path, plan: PlanFile) -> None:
    """Write the plan file, over one of another plan."""
    write_text(out / PARTS_FOLDER / PLAN_FILE, _text(plan))


def join_plan(out: Path, plan: PlanFile) -> None:
    """Write the plan file, or see that the one that is there says the same.

    Raises:
        ShardError: the others make another set; the message says in what it differs.
    """
    create_text(out / PARTS_FOLDER / PLAN_FILE, _text(plan))
    if differences := plan_differences(read_plan(out), plan):
        raise ShardError(
            f"the parts that are already in '{out}' were made from something else: {'; '.join(differences)}. "
            f"Start this part as the others were started, give --out a new folder, or remove "
            f"'{out / PARTS_FOLDER}' to begin anew"
        )


def plan_differences(theirs: PlanFile, ours: PlanFile) -> list[str]:
    """Why two plans make different sets; [] where they make the same."""
    if theirs.version != ours.version:
        return [f"medclip {theirs.version} there, {ours.version} here"]
    if theirs.id_rule != ours.id_rule:
        return [
            f"ids are hashed by rule {theirs.id_rule} there and {ours.id_rule} here (an earlier version "
            "of medclip began; since then studies are told apart by patient and study)"
        ]
    if theirs.key != ours.key:
        return ["another key of the hashed ids (give all parts the same --key)"]
    found = [
        "the findings files define other findings"
        if field.name == "definitions"
        else "--redact takes out other quantities"
        if field.name == "redact"
        else f"{field.name} is {old} there, {new} here"
        for field in fields(PrepareSettings)
        if (old := getattr(theirs.settings, field.name)) != (new := getattr(ours.settings, field.name))
    ]
    if theirs.rows != ours.rows:
        found.append(f"a table of {theirs.rows} studies there, of {ours.rows} here")
    elif not found and theirs.shards != ours.shards:
        changed = sum(theirs.shards.get(name) != digest for name, digest in ours.shards.items())
        found.append(
            f"another table or --root: {changed} of {len(ours.shards)} shards hold other ids, reports or "
            "paths"
        )
    return found


def _text(plan: PlanFile) -> str:
    written = asdict(plan)
    written["settings"]["definitions"] = plan.settings.definitions.to_json()
    written["settings"]["redact"] = [quantity.to_json() for quantity in plan.settings.redact]
    return json.dumps(written) + "\n"
