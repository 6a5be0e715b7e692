import pytest

from medclip_jax.objectives import clip, cmr_clip, segment
from medclip_jax.training.config import apply_override, base_config
from medclip_jax.training.ranges import check_values


@pytest.fixture
def config():
    config = base_config()
    config.objective = clip.default_config()
    return config


def test_defaults_are_in_range(config):
    check_values(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=-1", r"config\.batch_size=-1: it must be a whole number from 0"),
        ("steps=1e30", "whole number from 0 to 2147483647"),
        ("epochs=nan", "a number from 0"),
        ("optimizer.learning_rate=inf", "a number of 0 or more"),
        ("optimizer.betas=(0.9,1.0)", "two numbers from 0 to below 1"),
        ("optimizer.betas=(0.9,)", "two numbers"),
        ("optimizer.warmup_fraction=1.5", "from 0 to 1"),
        ("optimizer.frozen=(1,)", "regular expressions"),
        ("ema.decay=1", "below 1"),
        ("data.text.report=-1", "0 or more"),
        ("data.text_length=1", "from 2"),
        ("data.prefetch=0", "from 1"),
        ("checkpoint.every_steps=0", "from 1"),
        ("checkpoint.keep=1", "from 2"),
        ("log.every_steps=0", "from 1"),
        ("evaluation.batch_size=0", "from 1"),
        ("mesh.data=0", "or -1 for all"),
        ("mesh.rules=(1,)", "regex, axes"),
        ("seed=-1", "from 0 to 4294967295"),
        ("objective.vision.heads=0", r"config\.objective\.vision\.heads=0"),
        ("objective.text.width=0", "from 1"),
        ("objective.vision.patch=(8,8)", "three whole numbers"),
        ("objective.vision.patch=(8,8,0)", "three whole numbers"),
        ("objective.vision.windows=((100.0,-100.0),)", "low below high"),
        ("objective.vision.projections=('median',)", "'mean', 'max', 'min' or 'blob'"),
        ("objective.vision.dtype=float31", "'bfloat16'"),
        ("objective.logit_bias=nan", "a number"),
    ],
)
def test_a_number_out_of_range_says_what_it_must_be(config, override, message):
    apply_override(config, override)
    with pytest.raises(ValueError, match=message):
        check_values(config)


def test_patches_of_frames_have_two_sizes(config):
    config.objective = cmr_clip.default_config()
    check_values(config)
    apply_override(config, "objective.vision.patch=(8,8,8)")
    with pytest.raises(ValueError, match="two whole numbers"):
        check_values(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.frames=0", "from 1"),
        ("data.views=(1,)", "names of series"),
        ("data.prepare.frame_shape=(8,)", "two whole numbers"),
        ("objective.vision.channels=((0.5,0.0),)", "standard deviation above 0"),
        ("objective.vision.augment.crop_area=(0.0,1.0)", "shares of the frame"),
    ],
)
def test_fields_of_frames(config, override, message):
    config.objective = cmr_clip.default_config()
    apply_override(config, override)
    with pytest.raises(ValueError, match=message):
        check_values(config)


def test_what_excludes_each_other_and_what_was_set_to_nothing(config):
    config.optimizer.warmup_steps, config.optimizer.warmup_fraction = 5, 0.1
    config.batch_size = None
    with pytest.raises(ValueError, match=r"config\.batch_size=None[^\n]*\n.*not both"):
        check_values(config)


def test_a_batch_of_one(config):
    """Small and odd numbers that are in range."""
    for override in ("batch_size=1", "steps=1", "optimizer.learning_rate=0", "objective.vision.patch=()"):
        apply_override(config, override)
    check_values(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.crops.foreground=1.5", "from 0 to 1"),
        ("objective.crops.count=0", "from 1"),
        ("objective.crops.shape=(8,8)", "three whole numbers"),
        ("objective.feature_size=0", "from 1"),
        ("objective.weights.dice=-1.0", "0 or more"),
    ],
)
def test_fields_of_segmentation(config, override, message):
    config.objective = segment.default_config()
    check_values(config)
    apply_override(config, override)
    with pytest.raises(ValueError, match=message):
        check_values(config)
