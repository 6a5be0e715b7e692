"""Scripts that run a sweep's units elsewhere: a SLURM array, workloads for xpk."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from medclip_jax.sweeps.progress import progress
from medclip_jax.sweeps.units import COMMAND_FILE, EXIT_CODE_FILE, LOG_FILE, Unit

_SLURM = """\
#!/usr/bin/env bash
# {count} units of a sweep as a SLURM array, written by `medclip sweep --emit slurm`.
# Submit:  sbatch {script}
# Change:  partition, account, GPUs and time on the line of sbatch (it outranks the lines below) or here;
#          nodes and tasks too, `medclip train` finds them. %{parallel} is how many units run at once.
# A unit that is preempted or out of time saves, is queued again and resumes. One that fails stays failed
# until the sweep's command is given again.
#SBATCH --job-name=medclip-sweep
#SBATCH --array=0-{last}%{parallel}
#SBATCH --chdir="{here}"
#SBATCH --output="{plain}/slurm-%A-%a.txt"
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -uo pipefail

units=(
{names}
)
folder={workdir}/${{units[$SLURM_ARRAY_TASK_ID]}}
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
# Two minutes before the time is over SLURM signals this script; srun hands the signal on, and the run saves.
stopped="" interrupted=""
trap 'stopped=1 interrupted=1; kill -TERM "$step" 2>/dev/null' TERM
srun --kill-on-bad-exit=1 --output="$folder/{log}" --open-mode=append \\
  bash -c "exec $(<"$folder/{command}")" &
step=$!
# A signal ends `wait` before the run has ended.
while interrupted=""; wait "$step"; code=$?; [[ -n $interrupted ]]; do :; done
echo "$code" >"$folder/{exit_code}"
if [[ -n $stopped ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

_XPK = """\
#!/usr/bin/env bash
# {count} units of a sweep as workloads on GKE, written by `medclip sweep --emit xpk`.
# Submit:  bash {script} --cluster CLUSTER --tpu-type v5litepod-16 --docker-image IMAGE
# Change:  every argument is handed to `xpk workload create` (docs/how-to/launch.md). Folders below are as the
#          container sees them: shards and workdir lie on storage that is attached there.
# A unit that is preempted saves, is started again by its JobSet and resumes.
set -euo pipefail
if [[ $# -eq 0 ]]; then
  echo "give the options of xpk workload create: --cluster, --tpu-type, --docker-image, ..." >&2
  exit 2
fi

submit() {{
  local name=$1 command=$2
  shift 2
  xpk workload create --workload "$name" --command "exec bash launch/until_done.sh $command" \\
    --max-restarts 50 --restart-on-exit-codes 1 --termination-grace-period-seconds 120 "$@"
}}

{lines}
"""


def emit_slurm(units: Sequence[Unit], workdir: str | Path, *, parallel: int = 16) -> Path | None:
    """Write `sweep.slurm.sh` for the units that are not finished.

    Args:
        units: written by `units.write`.
        workdir: of the sweep.
        parallel: units that run at once.

    Returns:
        The script, None where all units are finished.
    """
    left = _unfinished(units)
    script = Path(workdir) / "sweep.slurm.sh"
    if not left:
        return None
    return _write(
        script,
        _SLURM.format(
            count=len(left),
            last=len(left) - 1,
            parallel=parallel,
            script=shlex.quote(str(script)),
            here=Path.cwd(),
            workdir=shlex.quote(str(workdir)),
            plain=workdir,
            names="\n".join(f"  {shlex.quote(unit.name)}" for unit in left),
            log=LOG_FILE,
            command=COMMAND_FILE,
            exit_code=EXIT_CODE_FILE,
        ),
    )


def emit_xpk(units: Sequence[Unit], workdir: str | Path) -> Path | None:
    """Write `sweep.xpk.sh` for the units that are not finished.

    Args:
        units: written by `units.write`.
        workdir: of the sweep.

    Returns:
        The script, None where all units are finished.
    """
    left = _unfinished(units)
    script = Path(workdir) / "sweep.xpk.sh"
    if not left:
        return None
    lines = [
        f'# {unit.name}\nsubmit {workload_name(unit, workdir)} {shlex.quote(shlex.join(unit.command))} "$@"'
        for unit in left
    ]
    return _write(
        script, _XPK.format(count=len(left), script=shlex.quote(str(script)), lines="\n".join(lines))
    )


def workload_name(unit: Unit, workdir: str | Path) -> str:
    """A unit's name for Kubernetes, which allows 40 small letters, digits and "-"; the same each time."""
    return "sweep-" + hashlib.sha256(f"{workdir}/{unit.name}".encode()).hexdigest()[:16]


def _unfinished(units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if progress(unit.folder, unit.config).state != "finished"]


def _write(script: Path, text: str) -> Path:
    script.write_text(text)
    script.chmod(0o755)
    return script
