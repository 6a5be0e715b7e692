"""One study: the crop, and what happens when a reader fails."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards import scan
from medclip_jax.shards.plan import Item
from medclip_jax.shards.record import decode
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.volumes import Volume, VolumeRejected, crop_or_pad, resample


def ramp(shape=(20, 30, 40), spacing=(4.0, 2.0, 1.5)) -> Volume:
    """Voxels that tell their own world position along depth, times ten."""
    # (d, h, w) to RAS: w goes to x, h to y, d to z.
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:, 3] = (7.0, -3.0, 11.0, 1.0)
    depth = 10 * (affine[2, 0] * np.arange(shape[0]) + 11.0)
    voxels = np.broadcast_to(depth[:, None, None], shape).astype(np.int16)
    return Volume(np.ascontiguousarray(voxels), spacing, affine, {"modality": "CT"})


@pytest.mark.parametrize("spacing", [(4.0, 2.0, 1.5), (8.0, 4.0, 4.0), (2.0, 1.0, 1.0), (5.3, 2.9, 2.2)])
def test_the_crop_shows_the_world_as_it_is(spacing):
    volume = ramp()
    center = np.array([35.0, 25.0, 50.0])
    prepared, notes = scan.crop_and_resample(volume, (6, 8, 8), spacing, center)
    assert prepared.voxels.shape == (6, 8, 8)
    np.testing.assert_allclose(prepared.spacing, spacing)
    middle = prepared.affine[:3, :3] @ ((np.array((6, 8, 8)) - 1) / 2) + prepared.affine[:3, 3]
    # Within half a new voxel, and half an old one, of what was requested.
    assert (np.abs(middle - center) <= (np.array(spacing) + volume.spacing)[::-1] / 2 + 1e-6).all()
    world = prepared.affine[2, 0] * np.arange(6) + prepared.affine[2, 3]
    inside = (world > 11 + 8) & (world < 11 + 4 * 19 - 8)
    assert inside.sum() >= 3
    np.testing.assert_allclose(prepared.voxels[inside, 4, 4], 10 * world[inside], atol=1)
    assert notes == []


@pytest.mark.parametrize("shape", [(10, 10, 10), (11, 9, 8), (5, 8, 7)])
def test_a_crop_around_the_middle_is_centered_exactly(shape):
    volume = ramp((40, 41, 42))
    prepared, _ = scan.crop_and_resample(volume, shape, (8.0, 4.0, 4.0))
    middles = [v.affine @ np.append((np.array(v.voxels.shape) - 1) / 2, 1) for v in (volume, prepared)]
    np.testing.assert_allclose(*middles, atol=1e-9)


@pytest.mark.parametrize("shape", [(20, 20, 16), (60, 60, 60)])
def test_a_crop_with_all_voxels_equals_the_plain_way(shape):
    volume = ramp((40, 40, 42))
    prepared, _ = scan.crop_and_resample(volume, shape, (8.0, 4.0, 4.0))
    plain = crop_or_pad(resample(volume, (8.0, 4.0, 4.0)), shape)
    np.testing.assert_array_equal(prepared.voxels, plain.voxels)
    np.testing.assert_allclose(prepared.affine, plain.affine, atol=1e-9)


def test_little_data_is_noted_and_none_is_rejected():
    _, notes = scan.crop_and_resample(ramp(), (80, 80, 80), (4.0, 2.0, 2.0))
    assert notes == ["mostly-padding:96%"]
    with pytest.raises(VolumeRejected, match="outside the volume") as error:
        scan.crop_and_resample(ramp(), (4, 4, 4), (4.0, 2.0, 1.5), np.array([500.0, 0, 0]))
    assert error.value.code == "crop-outside"


@pytest.mark.parametrize("shape", [(41, 100, 91), (40, 99, 90)])
def test_the_recipe_of_the_docs_gives_what_prepare_gives(tmp_path, monkeypatch, shape):
    """Whole scans of odd and even size, where two steps one after the other give another grid."""
    random = np.random.default_rng(0)
    height, width = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = np.where(height**2 + width**2 < 0.5, 40, -1000)
    voxels = (body + random.normal(0, 20, shape)).astype(np.int16)
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([3.1, 3.1, 7.0, 1.0]))
    nib.save(image, tmp_path / "scan.nii.gz")
    text = (Path(__file__).parents[2] / "docs/reference/volumes.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], names)
    study = Study((Series(tmp_path / "scan.nii.gz"),), "v", "s", "p", report="Cardiomegaly.")
    settings = PrepareSettings(findings=("cardiomegaly",), organs=(), measurements=())
    outcome = scan.prepare_study(Item(1, study, "id", 1, 2, "train"), settings)
    record = decode(outcome.record, settings.schema)
    np.testing.assert_array_equal(names["prepared"].voxels, record["volume"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("cannot read /data/DOE^JANE.nii"), "unreadable"), (MemoryError(), "out-of-memory")],
)
def test_what_readers_say_is_not_repeated(archive, monkeypatch, error, reason):
    from medclip_jax.corpora.folder import folder

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(scan, "read_volume", fail)
    study = next(iter(folder(archive)))
    settings = PrepareSettings(findings=("cardiomegaly",), organs=(), measurements=())
    outcome = scan.prepare_study(Item(4, study, "id", 1, 2, "train"), settings)
    assert outcome.record is None
    assert outcome.entry["class"] == "rejected-with-reason"
    assert (outcome.entry["reason"], outcome.entry["row"]) == (reason, 4)
    assert "DOE" not in str(outcome.entry)
    assert reason == "out-of-memory" or "RuntimeError in medclip_jax.shards.scan:" in outcome.entry["message"]


@pytest.mark.parametrize(("crop", "center"), [("heart", (42, 46, 39)), ("box", (42, 46, 39))])
def test_crops_follow_organ_and_box(archive, crop, center):
    from medclip_jax.corpora.folder import folder
    from medclip_jax.shards.record import decode

    study = next(iter(folder(archive)))
    # The mask spans voxels 8..13, 10..13, 5..8 of 4x4x6 mm, the box of the first row is the same region.
    settings = PrepareSettings(
        shape=(4, 4, 4),
        spacing=(6.0, 4.0, 4.0),
        crop=crop,
        findings=("cardiomegaly",),
        organs=(),
        measurements=(),
    )
    item = Item(1, study, "id", 1, 2, "train")
    outcome = scan.prepare_study(item, settings)
    sample = decode(outcome.record, settings.schema)
    volume = scan.read_volume(study.path)
    expected = crop_or_pad(resample(volume, settings.spacing), (4, 4, 4), center=center)
    np.testing.assert_array_equal(sample["volume"], expected.voxels)
    assert "organs" not in sample
