"""Random damage: every file ends as a Volume or as VolumeRejected, nothing else."""

import numpy as np
import pytest
from made_scans import chest, compress, lps_stack, write_enhanced, write_nifti, write_slices

from medclip_jax.volumes import Volume, VolumeRejected, read_volume

SHAPE = (5, 20, 22)


def damage(content: bytes, generator: np.random.Generator, header: int) -> bytes:
    """Cut the end off, or overwrite a few bytes: anywhere, or in the header only."""
    kind = generator.integers(4)
    if kind == 0:
        return content[: generator.integers(0, len(content))]
    result = bytearray(content)
    reach = len(content) if kind == 1 else min(header, len(content))
    for place in generator.integers(0, reach, generator.integers(1, 6)):
        result[place] = generator.integers(256)
    return bytes(result)


def outcome(path) -> str:
    try:
        volume = read_volume(path)
    except VolumeRejected as error:
        return error.code if str(error) else "rejected without a message"
    assert isinstance(volume, Volume)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.ndim == 3
    assert np.isfinite(volume.affine).all()
    assert min(volume.spacing) > 0
    return "accepted"


def outcomes(file, source, rounds, header) -> set[str]:
    """Damage one file again and again, reading `source` (the file or its folder) each time."""
    whole = file.read_bytes()
    assert outcome(source) == "accepted"
    generator = np.random.default_rng(rounds)
    seen = set()
    for _ in range(rounds):
        file.write_bytes(damage(whole, generator, header))
        seen.add(outcome(source))
    assert "rejected without a message" not in seen
    return seen


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_nifti(tmp_path, kind):
    path = write_nifti(tmp_path / "a.nii", chest(SHAPE).astype(kind))
    assert {"accepted", "truncated-file", "not-nifti"} <= outcomes(path, path, 300, 352)


def test_gzipped_nifti(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest(SHAPE))
    assert {"truncated-file", "damaged-gzip"} <= outcomes(path, path, 150, 200)


@pytest.mark.parametrize(("compressor", "rounds"), [(None, 150), ("JPEG2000", 40), ("JPEG", 60)])
def test_dicom_series(tmp_path, compressor, rounds):
    files = write_slices(tmp_path, lps_stack(chest(SHAPE)))
    if compressor:
        compress(files[2], compressor, (1.0, -1024.0))
    assert {"accepted", "damaged-dicom"} <= outcomes(files[2], tmp_path, rounds, 1400)


def test_enhanced_dicom(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", lps_stack(chest(SHAPE)), [(1.0, -1024.0)] * 5, range(5))
    assert {"accepted", "damaged-dicom"} <= outcomes(path, path, 200, 2600)
