"""What came out of a sweep: one table, one plot, the best setting."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medclip_jax.sweeps.progress import State, progress
from medclip_jax.sweeps.units import REPEATED, SEED, SWEEP_FILE
from medclip_jax.training.checkpoints import best_step

_LOSSES = ("loss", "terms/", "error", "rank", "seconds")


class Row(NamedTuple):
    """A unit: its name, swept key to value, state, and the metric with the step it was logged at."""

    name: str
    values: Mapping[str, Any]
    state: State
    step: int
    value: float


class Setting(NamedTuple):
    """One point of the grid over its seeds and folds; the sample standard deviation is NaN for one run."""

    values: Mapping[str, Any]
    mean: float
    deviation: float
    low: float
    high: float
    count: int


class Results(NamedTuple):
    """Of a sweep: a row for each unit, the settings best first, swept keys, keys that repeat a setting."""

    metric: str
    best: str
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: tuple[Setting, ...]
    repeated: tuple[str, ...] = (SEED,)

    @property
    def runs(self) -> str:
        """What a setting's numbers are of, in the plural."""
        return "seeds" if self.repeated == (SEED,) else "runs"


def collect(
    workdir: str | Path, metric: str, *, best: str | None = None, results: str | None = None
) -> Results:
    """Read a metric from each unit: the last value, or that of the best step where a run looks for it.

    Finished units make up the settings.

    Args:
        workdir: of the sweep.
        metric: a name from `metrics.jsonl`, or of the file that `results` names.
        best: "highest" or "lowest"; default by the metric's name.
        results: name of a file in each unit's folder that `medclip evaluate --json` wrote, instead of
            `metrics.jsonl`.

    Raises:
        FileNotFoundError: no sweep there.
        ValueError: no unit is finished, or none has this metric (the message names the nearest).
    """
    workdir = Path(workdir)
    file = workdir / SWEEP_FILE
    if not file.exists():
        raise FileNotFoundError(f"no sweep in {workdir}: it has no {SWEEP_FILE}")
    listed = json.loads(file.read_text())
    swept = {key for values in listed.values() for key in values}
    keys = sorted(swept - set(REPEATED))
    repeated = tuple(key for key in REPEATED if key == SEED or key in swept)
    rows, seen = [], set()
    for name in listed:
        folder = workdir / name
        config = json.loads((folder / "config.json").read_text())
        step, value = 0, math.nan
        used = best_step(folder) if results is None else None
        records = _records(folder / "metrics.jsonl") if results is None else _evaluated(folder / results)
        for record in records:
            seen.update(key for key, number in record.items() if isinstance(number, int | float))
            if metric in record and (used is None or record["step"] <= used):
                step = record["step"]
                value = math.nan if record[metric] is None else float(record[metric])
        # From the config, which also has the keys that were swept later than this unit.
        values = {key: _look_up(config, key) for key in (*keys, *repeated)}
        rows.append(Row(name, values, progress(folder, config).state, step, value))
    finished = [row for row in rows if row.state == "finished"]
    if not finished:
        counts = ", ".join(
            f"{sum(r.state == s for r in rows)} {s}" for s in dict.fromkeys(r.state for r in rows)
        )
        raise ValueError(f"no unit in {workdir} is finished ({counts}): run the sweep's command again")
    if all(math.isnan(row.value) for row in finished):
        near = difflib.get_close_matches(metric, sorted(seen), n=3, cutoff=0.4) or sorted(seen)[:8]
        raise ValueError(f"no unit has a number for the metric {metric!r}. Did you mean {', '.join(near)}?")
    best = best or ("lowest" if any(word in metric for word in _LOSSES) else "highest")
    groups: dict[str, list[Row]] = {}
    for row in finished:
        if not math.isnan(row.value):
            groups.setdefault(json.dumps([row.values[key] for key in keys]), []).append(row)
    settings = [_setting(group, keys) for group in groups.values()]
    settings.sort(key=lambda setting: setting.mean, reverse=best == "highest")
    return Results(metric, best, tuple(keys), tuple(rows), tuple(settings), repeated)


def _setting(group: Sequence[Row], keys: Sequence[str]) -> Setting:
    numbers = [row.value for row in group]
    return Setting(
        {key: group[0].values[key] for key in keys},
        statistics.fmean(numbers),
        statistics.stdev(numbers) if len(numbers) > 1 else math.nan,
        min(numbers),
        max(numbers),
        len(numbers),
    )


def to_csv(results: Results) -> str:
    """A row for each unit: name, swept values, seed and fold, state, step, metric or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["unit", *results.keys, *results.repeated, "state", "step", results.metric])
    for row in results.rows:
        values = [_cell(row.values[key]) for key in (*results.keys, *results.repeated)]
        number = "" if math.isnan(row.value) else repr(row.value)
        writer.writerow([row.name, *values, row.state, row.step, number])
    return text.getvalue()


def to_markdown(results: Results) -> str:
    """A row for each setting, best first, over the runs of its finished units; then what is missing."""
    runs = results.runs
    header = [*results.keys, f"{results.metric}, mean", f"± over {runs}", "lowest", "highest", runs]
    lines = [header, ["---"] * len(results.keys) + ["---:"] * 5]
    for setting in results.settings:
        spread = "" if math.isnan(setting.deviation) else f"{setting.deviation:.4g}"
        numbers = [f"{setting.mean:.4g}", spread, f"{setting.low:.4g}", f"{setting.high:.4g}"]
        lines.append([*(_cell(setting.values[key]) for key in results.keys), *numbers, str(setting.count)])
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    missing = [f"* {row.name}: {row.state}" for row in results.rows if row.state != "finished"]
    missing += [
        f"* {row.name}: no number"
        for row in results.rows
        if row.state == "finished" and math.isnan(row.value)
    ]
    return table + "\n" + ("\nNot counted:\n\n" + "\n".join(missing) + "\n" if missing else "")


def write_results(results: Results, workdir: str | Path) -> list[Path]:
    """Write `results.csv`, `results.md` and `results.svg`; returns their paths."""
    from medclip_jax.pages.figures import grid_effects

    workdir = Path(workdir)
    paths = [workdir / f"results.{ending}" for ending in ("csv", "md", "svg")]
    paths[0].write_text(to_csv(results))
    paths[1].write_text(to_markdown(results))
    counted = [r for r in results.rows if r.state == "finished" and not math.isnan(r.value)]
    figure = grid_effects(
        [row.values for row in counted],
        [row.value for row in counted],
        results.keys or (SEED,),
        metric=results.metric,
    )
    figure.savefig(paths[2])
    return paths


def _records(file: Path) -> list[dict[str, Any]]:
    from medclip_jax.pages.figures import read_metrics

    return read_metrics(file) if file.exists() else []


def _evaluated(file: Path) -> list[dict[str, Any]]:
    """What `medclip evaluate --json` wrote of a unit, as one record; [] where it has not yet."""
    try:
        return [{"step": 0, **json.loads(file.read_text())["metrics"]}]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is no result of `medclip evaluate --json` ({error}): evaluate again"
        ) from None


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        # An evaluator's setting may stand in some units' configs alone.
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
