"""A real scan through the exported model in torch and through `medclip_jax.load`: the same vectors."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medclip_jax
from medclip_jax.export.folder import write_folder
from medclip_jax.export.parity import load_torch


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    """An exported run, opened by torch and by this library."""
    trained = medclip_jax.load(tiny_run / "workdir", dtype="float32", progress=False)
    folder = tmp_path_factory.mktemp("real") / "export"
    write_folder(trained, folder)
    return load_torch(folder), medclip_jax.load(folder, progress=False)


def assert_same_vector(models, path, voxels, affine) -> None:
    """1e-5, as between the towers: voxels that rounding puts 1 HU apart included."""
    torch_model, model = models
    found = torch_model.embed_volumes((voxels, affine)).mean.numpy()
    expected = model.embed_volumes(path)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    findings = list(model.spec.findings)
    probabilities = torch_model.zero_shot((voxels, affine), findings)
    assert probabilities == pytest.approx(model.zero_shot(path, findings), abs=1e-5)


@pytest.mark.parametrize("name", ["chest_contrast.nii.gz", "upper_abdomen.nii.gz"])
def test_nifti(models, real_data, name):
    image = nib.load(real_data / name)
    assert_same_vector(models, real_data / name, np.asarray(image.dataobj), image.affine)


def test_dicom_series(models, real_data):
    """Read for torch by the lines that docs/how-to/export.md gives."""
    sitk = pytest.importorskip("SimpleITK")
    docs = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text()
    scope = {"sitk": sitk, "np": np, "SERIES": str(real_data / "dicom_jpeg2000"), "model": models[0]}
    exec(re.search(r"```python\n(image = sitk.*?)```", docs, re.DOTALL).group(1), scope)
    assert_same_vector(models, real_data / "dicom_jpeg2000", scope["voxels"], scope["affine"])
