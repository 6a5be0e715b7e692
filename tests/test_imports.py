"""What training and reading shards do not import: readers of medical files take seconds."""

import subprocess
import sys

import pytest

from medclip_jax import volumes

READERS = ("SimpleITK", "pydicom", "nibabel", "scipy.signal", "PIL")
SHARDS = ("blosc2", "tensorflow_datasets")


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("import medclip_jax.training.loop", READERS + SHARDS),
        ("import medclip_jax.pipeline", READERS + SHARDS),
        ("import medclip_jax.shards.read", ("SimpleITK", "pydicom", "nibabel", "scipy.signal")),
    ],
    ids=lambda value: value.split()[-1] if isinstance(value, str) else "",
)
def test_what_is_not_needed_is_not_imported(statement, without):
    program = f"import sys\n{statement}\nprint(*(name for name in {without!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_volumes_shows_all_that_it_names():
    assert sorted(volumes.__all__) == sorted(volumes._MODULES)
    for name in volumes.__all__:
        assert getattr(volumes, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'spleen'"):
        volumes.spleen  # noqa: B018
