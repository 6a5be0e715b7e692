"""A batch of random integers in the pipeline's layout, and configs small enough for a CPU."""

import jax.numpy as jnp
import numpy as np

from medclip_jax.objectives import base, cardiac_clip, clip
from medclip_jax.objectives.towers import vision_defaults
from tests import any_shape

SPEC = base.DataSpec(
    shape=(8, 16, 12),
    spacing=(4.0, 3.0, 3.0),
    findings=("pleural_effusion", *cardiac_clip.FINDINGS),
    organs=("heart", "left_lung", "right_lung"),
    organ_shape=(3, 4, 8, 6),
    vocabulary_size=50,
    mask_token=4,
    pad_token=0,
    views=("cine_sa", "lge_sa"),
    frame_shape=(8, 12),
    measurements=("age_years", "cac_grade", "months", "died"),
)


def small(config):
    """Shrink a default config to seconds on a CPU."""
    config = config.copy_and_resolve_references()
    if "views" in config.vision:
        config.vision.update(patch=(4, 4), width=24, depth=2, heads=2, dtype="float32")
    elif config.name == "t3d":
        # Not on batch norm, with which samples are not encoded each on its own.
        with config.unlocked():
            config.vision = vision_defaults(any_shape.KIND)
    else:
        config.vision.update(patch=(4, 4, 4), width=24, depth=2, heads=2)
    if "windows" in config.vision:
        config.vision.update(windows=((-1000.0, 0.0), (-150.0, 250.0)), dtype="float32")
    if "views" in config:
        config.views.update(count=2, shape=(4, 9, 12), heads=2)
    if "text" in config:
        config.text.update(width=16, depth=1, heads=2, max_positions=16, dtype="float32")
    if "embedding_width" in config:
        config.embedding_width = 8
    if "decoder" in config:
        config.decoder.update(width=16, depth=1, heads=2)
    if "text_decoder" in config:
        config.text_decoder.update(depth=1, heads=2)
        config.anatomy.block = 1
        config.selection.candidates = (1, 3, 5)
        config.most_sentences = 4
    return config


def make_batch(size=6, seed=0):
    """Random integers in the pipeline's layout."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 50, (size, 10)).astype(np.int32)
    tokens[:, 7:] = SPEC.pad_token
    batch = {
        "volume": random.integers(-1024, 1500, (size, *SPEC.shape)).astype(np.int16),
        "tokens": tokens,
        "findings": random.integers(-1, 2, (size, len(SPEC.findings))).astype(np.int8),
        "labels": np.random.default_rng(seed + 1).integers(-1, 2, (size, len(SPEC.findings))).astype(np.int8),
        "measurements": np.stack(
            [np.full(size, np.nan), np.arange(size) % 5, 2.0 * np.arange(size), np.arange(size) % 2], axis=1
        ).astype(np.float32),
        "study": random.integers(0, 2**31 - 1, (size, 2)).astype(np.int32),
        "sample": np.arange(100, 100 + size, dtype=np.int32),
        "organs": random.integers(0, 256, (size, len(SPEC.organs), 4, 8, 6)).astype(np.uint8),
        "organ": np.arange(-1, size - 1, dtype=np.int32) % 4 - 1,
        "organ_tokens": tokens[:, 2:],
        "organ_normal": random.integers(0, 2, size).astype(np.int8),
        "sentence": np.where(tokens == SPEC.pad_token, -1, np.arange(10) // 3).astype(np.int32),
        "sentences": np.full(size, 4, np.int32),  # the last one was cut off
        "report_tokens": np.roll(tokens, 1, axis=0),
        "frames": random.integers(0, 4096, (size, 5, *SPEC.frame_shape)).astype(np.int16),
        "view": np.tile(np.array([0, 0, 1, 1, -1], np.int32), (size, 1)),
        "frame_valid": np.tile(np.array([1, 1, 1, 1, 0], np.int8), (size, 1)),
        "prompts": np.resize(
            random.integers(5, 50, (len(SPEC.findings), 2, 6)), (size, len(SPEC.findings), 2, 6)
        ),
    }
    batch["organ_tokens"] = np.where(batch["organ"][:, None] < 0, SPEC.pad_token, batch["organ_tokens"])
    return {name: jnp.asarray(value) for name, value in batch.items()}


def prompted():
    """Sigmoid pairs, and findings by prompts."""
    config = clip.default_config()
    config.loss, config.prompts.weight = "sigmoid", 0.5
    return config
