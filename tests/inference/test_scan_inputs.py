"""What stands for a scan or a text: files, images and arrays that a model takes, and what it refuses."""

import re

import numpy as np
import pytest

import medclip_jax
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.volumes import Volume


@pytest.fixture(scope="module")
def model(tiny_run):
    return medclip_jax.load(tiny_run / "workdir", progress=False)


@pytest.fixture(scope="module")
def chest(scan):
    """The small scan as (array, affine)."""
    import nibabel as nib

    image = nib.load(scan)
    return np.asanyarray(image.dataobj), image.affine


class TestWhatStandsForAScan:
    def test_images_and_arrays_give_what_the_file_gives(self, model, scan, chest):
        import jax.numpy as jnp
        import nibabel as nib
        import SimpleITK as sitk
        import torch

        voxels, affine = chest
        expected = model.prepare(scan)
        made = nib.Nifti1Image(voxels.astype(np.float32), affine)
        for given in (
            nib.load(scan),
            made,
            nib.Nifti1Image(voxels[..., None], affine),
            nib.MGHImage(voxels.astype(np.float32), affine),
            sitk.ReadImage(str(scan)),
            (voxels, affine),
            (voxels.astype(np.float64), affine.tolist()),
            (torch.tensor(voxels), torch.tensor(affine)),
            (jnp.asarray(voxels), affine),
            # Another orientation of the same voxels: axes swapped, and one flipped.
            (voxels.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]),
            (voxels[::-1], affine @ np.array([[-1, 0, 0, 23], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
        ):
            np.testing.assert_array_equal(model.prepare(given), expected)
        vectors = model.embed_volumes([scan, made, (voxels, affine)])
        np.testing.assert_array_equal(vectors, vectors[:1].repeat(3, axis=0))
        assert model.zero_shot(made, ["cardiomegaly"]) == model.zero_shot(scan, ["cardiomegaly"])
        assert [hit.index for hit in model.retrieve("cardiomegaly", [(voxels, affine), made])] == [0, 1]
        assert model.explain(made, "cardiomegaly").score == model.explain(scan, "cardiomegaly").score
        for given in (jnp.asarray(expected), torch.tensor(expected), expected.astype(np.float32)):
            np.testing.assert_array_equal(model.prepare(given), expected)
        np.testing.assert_array_equal(model.embed_volumes(expected[None]), model.embed_volumes(scan))

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda hu: hu + 1024, "missing-rescale"),
            (lambda hu: np.clip((hu + 1000) / 1400, 0, 1), "constant|not-hounsfield|mostly-empty"),
            (lambda hu: ((np.clip(hu, -160, 240) + 160) / 400 * 255).round(), "not-hounsfield|windowed.*"),
            (lambda hu: hu * np.nan, "not-finite"),
            (lambda hu: hu * 0, "constant|mostly-empty"),
        ],
    )
    def test_values_that_are_no_hu(self, model, scan, chest, change, code):
        """In every form, with the reasons that files have."""
        import nibabel as nib

        from medclip_jax.volumes import VolumeRejected

        voxels, affine = chest
        bad = change(voxels.astype(np.float64))
        prepared = change(model.prepare(scan).astype(np.float64))
        given = [(bad, affine), nib.Nifti1Image(bad.astype(np.float32), affine), prepared]
        if np.isfinite(bad).all():
            grid = np.eye(4)
            grid[:3, :3] = affine[:3, [2, 1, 0]]
            given += [Volume(bad.T.astype(np.int16), (4.0, 4.0, 4.0), grid), prepared.astype(np.int16)]
        for scan_given in given:
            with pytest.raises(VolumeRejected) as caught:
                model.embed_volumes(scan_given)
            assert re.fullmatch(code, caught.value.code), caught.value

    def test_padding_of_a_crop_is_no_fault(self, model, scan):
        padded = model.prepare(scan, center=(0.0, 0.0, 0.0))
        padded[:6] = -1024
        np.testing.assert_array_equal(model.prepare(padded), padded)

    def test_a_volume_that_contradicts_itself(self, model, chest):
        voxels, affine = chest
        for spacing in ((4.0, 4.0, 2.0), (1.0, 1.0, 1.0)):
            with pytest.raises(ValueError, match=r"spacing .* contradicts its affine.*4\.0, 4\.0, 4\.0"):
                model.prepare(Volume(voxels.astype(np.int16), spacing, affine))

    def test_wrong_kinds_are_named(self, model, scan, chest):
        from medclip_jax.volumes import VolumeRejected

        voxels, affine = chest
        cases = [
            (None, TypeError, "not NoneType"),
            (3, TypeError, "not int"),
            ({"a": scan}, TypeError, "not dict"),
            ({scan}, TypeError, "not set"),
            (b"scan", TypeError, "not bytes"),
            ([], ValueError, "no volumes were given"),
            ([scan, None], TypeError, "a scan is a path.*NoneType None"),
            ([[1, 2], [3, 4]], TypeError, "a scan is a path.*not list"),
            ("https://host/scan.nii.gz", ValueError, "is a web address: download"),
            (voxels[0], ValueError, "an array of 2 axes"),
            (np.zeros((1, 2, 8, 16, 16)), ValueError, "an array of 5 axes"),
            (voxels, ValueError, r"must be a prepared volume.*\(array, affine\)"),
            ((voxels, affine[:3]), ValueError, r"the affine is \(4, 4\).*\(3, 4\)"),
            ((voxels, affine.T + 1), ValueError, "with the last row"),
            ((voxels, np.eye(4)), VolumeRejected, "the identity"),
            ((voxels, affine * np.nan), ValueError, "last row|no number"),
            ((voxels[..., None], affine), VolumeRejected, "a scan has three axes"),
            ((voxels.astype(str), affine), TypeError, "holds real numbers"),
            ((voxels > 0, affine), TypeError, "real numbers, not bool"),
        ]
        for given, kind, message in cases:
            with pytest.raises(kind, match=message):
                model.embed_volumes(given)

    def test_texts_and_findings(self, model, scan):
        vectors = model.embed_volumes([scan, scan])
        for texts, kind, message in [
            ([], ValueError, "no text"), ("", ValueError, "is empty"), ([" "], ValueError, "is empty"),
            (None, TypeError, "not NoneType"), ([3], TypeError, "a text is a string, not int"),
        ]:  # fmt: skip
            with pytest.raises(kind, match=message):
                model.embed_texts(texts)
        with pytest.raises(TypeError, match="one text, not list"):
            model.retrieve(["There is a.", "There is b."], vectors)
        with pytest.raises(TypeError, match="one text, not list"):
            model.explain(scan, ["a", "b"])
        with pytest.raises(TypeError, match="one scan"):
            model.explain([scan, scan], "a")
        with pytest.raises(TypeError, match="ground takes one scan"):
            model.ground([scan, scan], "The heart is large.")
        with pytest.raises(ValueError, match="no text"):
            model.ground(scan, "")
        with pytest.raises(NotEvaluable, match="selects no patches"):
            model.ground(scan, ["The heart is large."])
        with pytest.raises(ValueError, match="count=0"):
            model.retrieve("a", vectors, count=0)
        with pytest.raises(ValueError, match="vectors of 3 numbers, the model's have 16"):
            model.retrieve("a", np.zeros((2, 3)))
        assert len(model.retrieve("a", vectors, count=5)) == 2
        with pytest.raises(ValueError, match="no finding"):
            model.zero_shot(scan, [])
        with pytest.raises(ValueError, match="two different pairs"):
            model.zero_shot(scan, [("Yes.", "No."), ("Yes.", "Never.")])
        with pytest.raises(ValueError, match="two sentences"):
            model.zero_shot(scan, [("Yes.", "No.", "Perhaps.")])
        plain = model.zero_shot(scan, ["pericardial_effusion"])["pericardial_effusion"]
        for name in ("Pericardial effusion", "pericardial effusion"):
            assert model.zero_shot(scan, [name, name]) == {name: plain}
        assert model.explain(scan, "Pericardial effusion").score == (
            model.explain(scan, "pericardial_effusion").score
        )

    def test_volume_of_another_grid(self, model, chest):
        voxels, affine = chest
        grid = np.eye(4)
        grid[:3, :3] = affine[:3, [2, 1, 0]]
        volume = Volume(voxels.T.astype(np.int16), (4.0, 4.0, 4.0), grid)
        np.testing.assert_array_equal(model.prepare(volume), model.prepare(chest))
