"""The smallest run there is: shards of noise, and a contrastive model after two steps on them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

FINDINGS = ("cardiomegaly", "pericardial_effusion", "coronary_calcification")
SHAPE, SPACING = (8, 16, 16), (8.0, 6.0, 6.0)
PREPARE = (
    "--shape", "8", "16", "16", "--spacing", "4.5", "5", "3.4", "--vocabulary-size", "200",
    "--vocabulary-patients", "1", "--workers", "1",
)  # fmt: skip
"""What makes shards for `train_on` of scans of about 36 x 64 x 66 mm."""


def made_records(n: int, seed: int) -> Iterator:
    """Records of air and soft tissue in disorder, with reports."""
    generator = np.random.default_rng(seed)
    for i in range(n):
        labels = generator.choice([-1, 1], len(FINDINGS)).astype(np.int8)
        report = f"Report {seed} {i}. There is {'' if labels[0] > 0 else 'no '}cardiomegaly."
        yield dict(
            id=f"{seed}-{i}",
            study=1000 * seed + i,
            patient=1000 * seed + i,
            volume=made_volume(generator),
            report=report,
            findings_text=report,
            impression="",
            statements=report,
            findings=labels,
            labels=labels,
            measurements=np.array([i % 5], np.float32),
        )


def made_volume(generator: np.random.Generator) -> np.ndarray:
    """Voxels that pass for HU: half of them air, half of them soft tissue."""
    air, tissue = generator.normal(-950, 25, SHAPE), generator.normal(40, 60, SHAPE)
    return np.where(generator.random(SHAPE) < 0.5, air, tissue).astype(np.int16)


def make_shards(folder: Path) -> None:
    """Write 16 records to train on and 12 to test on, with a tokenizer.

    Args:
        folder: to write to.
    """
    from medclip_jax.reports.tokenizer import train_wordpiece
    from medclip_jax.shards.record import Schema
    from medclip_jax.shards.write import write_shards

    splits = {
        name: list(made_records(n, seed)) for seed, (name, n) in enumerate({"train": 16, "test": 12}.items())
    }
    write_shards(folder, Schema(SHAPE, SPACING, FINDINGS, (), ("cac_grade",)), splits)
    train_wordpiece([record["report"] for record in splits["train"]] * 3, folder / "tokenizer", 200)


def make_run(folder: Path) -> None:
    """Write `shards` and the `workdir` of a contrastive model after two steps.

    Args:
        folder: to write to.
    """
    make_shards(folder / "shards")
    train_on(folder / "shards", folder / "workdir")


def train_on(
    shards: Path, workdir: Path, evaluators: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """Train a contrastive model for two steps.

    Args:
        shards: of volumes of `SHAPE`, with at least 8 records to train on.
        workdir: to write to.
        evaluators: of the split "test"; default: zero-shot. Without any, and with 200 words, the compiled
            step is that of `make_run`.
    """
    from medclip_jax.objectives import clip
    from medclip_jax.training.config import base_config
    from medclip_jax.training.loop import train

    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=2, heads=2, pooling="mean", dtype="float32"
    )
    config.objective.text.update(width=24, depth=1, heads=2, max_positions=64, dtype="float32")
    config.objective.embedding_width = 16
    config.data.shards = str(shards)
    config.data.text_length = 24
    config.batch_size = 8
    config.steps = 2
    config.ema.decay = 0.5
    config.evaluation.split = "test"
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}} if evaluators is None else evaluators
    config.log.tensorboard = False
    config.log.progress = False
    train(config, workdir)
