import pytest

from medclip_jax.objectives import cardiac_clip, mae
from medclip_jax.objectives.base import DataSpec
from medclip_jax.training.config import base_config, total_steps
from medclip_jax.training.settle import settle, settle_batch_size

SPEC = DataSpec((64, 160, 160), (3.0, 1.5, 1.5), findings=("cardiomegaly", "nodule"))


@pytest.mark.parametrize(
    ("samples", "batch"), [(0, 32), (1, 8), (8, 8), (15, 8), (16, 16), (31, 16), (32, 32), (10**6, 32)]
)
def test_a_batch_follows_from_the_number_of_volumes(samples, batch):
    assert settle_batch_size(0, samples) == batch
    assert settle_batch_size(5, samples) == 5


def test_only_what_is_left_open_is_settled():
    config = base_config()
    config.objective = cardiac_clip.default_config()
    assert settle(config, SPEC, 100) is config
    config.objective.vision.update(patch=(), cell=(2, 2, 2))
    config.objective.findings = ()
    config.batch_size = 0
    settled = settle(config, SPEC, 100)
    assert settled.objective.vision.patch == (4, 8, 8)  # cells
    assert settled.objective.findings == SPEC.findings
    assert settled.batch_size == 32
    # What was said stays as it was said.
    assert (config.batch_size, config.objective.findings, config.objective.vision.patch) == (0, (), ())


def test_epochs_count_batches_of_the_settled_size():
    config = base_config()
    config.objective = mae.default_config()
    config.batch_size, config.epochs = 0, 2.0
    assert total_steps(config, 20) == 3  # 40 samples in batches of 16
