"""Where metrics go: a JSON line, TensorBoard, Weights & Biases, the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from medclip_jax.progress import track
from medclip_jax.training.log_writers import Background, Lines, TensorBoard, WeightsAndBiases
from medclip_jax.training.workdir import Workdir


class Logs:
    """Writes metrics by step. Nothing that goes wrong here holds the run up or ends it.

    Args:
        workdir: of the run.
        config: the full config.
        start: steps done before.
        steps: of the run in total.
        writing: False in all processes but the first: then nothing is written anywhere.

    Raises:
        ImportError: the config names a wandb project, and wandb is not installed.
    """

    def __init__(self, workdir: Workdir, config: Any, *, start: int, steps: int, writing: bool = True):
        self._writing = writing
        show = config.log.progress and writing
        self._bar = track(total=steps, initial=start, unit="step", label="train", show=show)
        self._writers: list[Lines | Background] = []
        if not writing:
            return
        self._writers.append(Lines(workdir.metrics_file, self.say))
        if config.log.tensorboard:
            create = partial(TensorBoard, workdir.path / "tensorboard", start=start)
            self._writers.append(Background("TensorBoard", create, self.say))
        if config.log.wandb:
            create = partial(
                WeightsAndBiases,
                _wandb(),
                project=config.log.wandb,
                name=workdir.path.name,
                id=workdir.path.name,
                resume="allow",
                dir=str(workdir.path),
                config=config.to_dict(),
            )
            self._writers.append(Background("Weights & Biases", create, self.say))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write numbers that belong to `step` (steps completed)."""
        numbers = {name: float(value) for name, value in metrics.items()}
        for writer in self._writers:
            writer.write(step, numbers)

    def advance(self, **shown: str) -> None:
        """One step further on the bar."""
        if shown:
            self._bar.note(", ".join(f"{name}={value}" for name, value in shown.items()))
        _print(self._bar.update)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._writing:
            _print(lambda: self._bar.say(message))

    def close(self) -> None:
        """Flush and close everything."""
        _print(self._bar.close)
        for writer in self._writers:
            writer.close()


def _print(action: Callable[[], object]) -> None:
    # The terminal may be gone, or the file that output goes to may lie on a full disk.
    with suppress(OSError, ValueError):
        action()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportError(
            "config.log.wandb is set but wandb is not installed: pip install 'medclip-jax[wandb]', "
            "or set it to ''"
        ) from None
    return wandb
