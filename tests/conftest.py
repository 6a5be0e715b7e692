"""Shared by all tests: eight simulated devices, a compilation cache, and where real data lies."""

import os
import signal
from pathlib import Path

# Before JAX is imported anywhere: compiled programs of earlier runs are reused (start-up costs most here).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/medclip-jax/tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from jax._src import compilation_cache

from medclip_jax.training import compilation

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Programs of several CPU devices may hang when read from disk: here only those of one are kept.
compilation.loses_order_of_collectives = lambda: False
_keep = compilation_cache.put_executable_and_time


def _keep_those_of_one_device(key, name, executable, *rest):
    if len(executable.local_devices()) == 1:
        _keep(key, name, executable, *rest)


compilation_cache.put_executable_and_time = _keep_those_of_one_device


def pytest_configure(config: pytest.Config) -> None:
    """Leave programs as they are lowered: most tests compile for far longer than they compute.

    It takes two fifths of the time off. Slow tests train, and run programs as users do.
    """
    if config.option.markexpr != "slow":
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in the background of a script, and whatever a test starts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real CT scans and a real text encoder: $MEDCLIP_REAL_DATA or the default cache."""
    folder = Path(os.environ.get("MEDCLIP_REAL_DATA", Path.home() / ".cache/medclip-real-data"))
    if not (folder / ".complete").exists():
        pytest.skip(f"no real scans at {folder}: set MEDCLIP_REAL_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def report_data() -> Path:
    """Folder with real report tables: $MEDCLIP_REPORT_DATA or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("MEDCLIP_REPORT_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ct_rate_reports_labels_800.csv").exists():
        pytest.skip(f"no report tables at {folder}: set MEDCLIP_REPORT_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the `shards` and the `workdir` of a tiny contrastive run; leave it as it is."""
    from tests.tiny_run import make_run

    folder = tmp_path_factory.mktemp("tiny_run")
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NIfTI of 48 x 100 x 96 mm with air, soft tissue and noise."""
    import nibabel as nib
    import numpy as np

    voxels = np.full((24, 25, 12), -1000.0)
    voxels[4:20, 4:20] = 40
    voxels += np.random.default_rng(0).normal(0, 10, voxels.shape)
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([4.0, 4.0, 4.0, 1])), path)
    return path
