"""A model whose scans are resized: what it prepares, explains and exports, and what it refuses."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import medclip_jax
from medclip_jax.inference.model import Model
from medclip_jax.volumes import crop_and_resample, read_volume

OWN = (None, None, None)


@pytest.fixture(scope="module")
def model(tiny_run):
    """The tiny run's, as if its volumes had been resized scans."""
    trained = medclip_jax.load(tiny_run / "workdir", progress=False)
    spec = replace(trained.spec, spacing=OWN)
    return Model(trained.objective, spec, trained.tokenizer, trained.config, progress=False)


@pytest.fixture(scope="module")
def oblique(tmp_path_factory):
    """A box of tissue off the middle of an oblique scan, axes (posterior, left, superior) or so."""
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", [12, -9, 20], degrees=True).as_matrix()
    affine[:3, :3] = turned @ np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1.0]]) * [4.0, 3.2, 6.0]
    voxels = np.full((20, 26, 15), -1000.0)
    voxels[4:16, 5:21] = 40
    voxels = (voxels + np.random.default_rng(0).normal(0, 10, voxels.shape)).astype(np.int16)
    path = tmp_path_factory.mktemp("oblique") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_prepares_the_complete_scan(model, oblique):
    expected = crop_and_resample(read_volume(oblique), model.spec.shape, OWN)[0].voxels
    np.testing.assert_array_equal(model.prepare(oblique), expected)
    assert np.isfinite(model.embed_volumes(oblique)).all()
    assert "8 x 16 x 16 voxels (depth, height, width), to which the complete scan is resized" in repr(model)
    with pytest.raises(ValueError, match="give none"):
        model.embed_volumes(oblique, center=(0.0, 0.0, 0.0))


def test_heat_maps_cover_the_scan(model, oblique, tmp_path):
    found = model.explain(oblique, "cardiomegaly")
    found.save(tmp_path / "heat.nii.gz")
    scan, heat = nib.load(oblique), nib.load(tmp_path / "heat.nii.gz")
    assert heat.shape == scan.shape
    np.testing.assert_allclose(heat.affine, scan.affine, atol=1e-4)
    # The map's grid spans the scan: its voxels measure the scan's extent over the shape.
    extent = np.array([15 * 6.0, 20 * 4.0, 26 * 3.2])
    np.testing.assert_allclose(np.linalg.norm(found.grid.affine[:3, :3], axis=0), extent / model.spec.shape)
    # Where the map is largest, the file is, at the same place of the world.
    values = heat.get_fdata()
    top = heat.affine @ [*np.unravel_index(values.argmax(), values.shape), 1]
    index = np.rint(np.linalg.solve(found.grid.affine, top)[:3]).astype(int)
    assert found.voxels[tuple(np.clip(index, 0, np.array(found.voxels.shape) - 1))] >= 0.8 * values.max()


def test_an_exported_model_resizes_too(model, oblique, tmp_path):
    torch = pytest.importorskip("torch")
    from medclip_jax.export.folder import write_folder
    from medclip_jax.export.model_card import model_card
    from medclip_jax.weights.exported_config import read_json
    from tests.export.twins import twin_of

    folder = write_folder(model, tmp_path / "exported")
    again = medclip_jax.load(folder, progress=False)
    assert again.spec == model.spec
    np.testing.assert_array_equal(again.prepare(oblique), model.prepare(oblique))
    assert read_json(folder / "preprocessor_config.json")["spacing_mm"] == [None] * 3
    assert "to which the complete scan is resized, whatever its extent" in model_card(model, name="resized")
    twin = twin_of(again)
    image = nib.load(oblique)
    found = twin.prepare(image)
    assert (found.dtype, tuple(found.shape)) == (torch.int16, model.spec.shape)
    difference = np.abs(found.numpy().astype(int) - model.prepare(oblique))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    with pytest.raises(ValueError, match="leave center out"):
        twin.prepare(image, center=(0.0, 0.0, 0.0))
