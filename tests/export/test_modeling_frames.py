"""Series of frames prepared by an exported model, as the library does; a trained model's folder in use."""

import itertools

import nibabel
import numpy as np
import pytest
import torch

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.corpora.study import Series
from medclip_jax.export.parity import TOLERANCE, load_torch
from medclip_jax.export.torch.frames import hang, prepared_pictures
from medclip_jax.shards.frames import prepare_frames
from medclip_jax.shards.series import SeriesSettings
from tests.frame_run import make_run
from tests.made_frames import SHORT_AXIS, affine_of, beating, write_nifti

SIGNED = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, -1))
]


def settings_of(frames="all", shape=(18, 14), spacing=(2.5, 2.0), percentiles=(1.0, 99.0)):
    return SeriesSettings(
        "cine_sa", (None, *shape), (None, *spacing), "MR", percentiles, frames=frames
    ).checked()


def both(path, settings):
    """Pictures of a file, by the library and by the exported code."""
    image = nibabel.load(path)
    ours = prepare_frames(Series(path, "cine_sa", "MR"), settings).arrays["cine_sa"]
    theirs = prepared_pictures(image.get_fdata(dtype="float32"), image.affine, settings.to_json())
    return ours, theirs.numpy()


@pytest.mark.parametrize("axes", [SHORT_AXIS, *SIGNED])
def test_pictures_hang_as_in_the_library(tmp_path, axes):
    """Every plane and direction; nothing but exact halves may round otherwise."""
    path = write_nifti(tmp_path / "cine.nii.gz", beating(slices=3, phases=2, size=22), axes=axes)
    ours, theirs = both(path, settings_of())
    assert ours.shape == (6, 18, 14)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        settings_of("middle"),
        settings_of(shape=(31, 30), spacing=(None, None)),
        settings_of(shape=(40, 44), spacing=(1.0, 1.5), percentiles=None),
    ],
)
@pytest.mark.parametrize("phases", [0, 3])
def test_slices_sizes_and_percentiles(tmp_path, settings, phases):
    """The middle slice, full pictures resized, padding; moving series and stacks without phases."""
    pictures = beating(slices=4, phases=max(phases, 1), size=22)
    path = write_nifti(tmp_path / "cine.nii.gz", pictures if phases else pictures[:, 0])
    ours, theirs = both(path, settings)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


def test_what_cannot_hang_is_refused():
    voxels, affine = torch.zeros(4, 5, 3), affine_of(SHORT_AXIS, (8.0, 1.5, 1.5))
    skewed = affine.copy()
    skewed[:3, 1] += 0.5 * skewed[:3, 0]
    with pytest.raises(ValueError, match="not at right angles"):
        hang(voxels, skewed)
    flat = affine.copy()
    flat[:3, 2] = flat[:3, 0]
    with pytest.raises(ValueError, match="in each other's plane"):
        hang(voxels, flat)
    with pytest.raises(ValueError, match="axes i, j, slice, phase, not 5"):
        hang(torch.zeros(1, 2, 3, 4, 5), affine)
    assert hang(torch.zeros(4, 5), affine)[0].shape == (1, 1, 5, 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run, of its studies, and of its model for torch."""
    folder = tmp_path_factory.mktemp("frames")
    make_run(folder)
    assert main(["export", "--workdir", str(folder / "workdir"), "--out", str(folder / "out")]) == 0
    return folder


def test_studies_from_files_have_the_vectors_of_the_library(exported):
    model, twin = medclip_jax.load(exported / "workdir", progress=False), load_torch(exported / "out")
    places = [exported / "studies" / str(index) for index in (0, 1)]
    studies = [{file.name[:-7]: nibabel.load(file) for file in place.glob("*.nii.gz")} for place in places]
    assert [len(study) for study in studies] == [1, 2]
    found = twin.embed_volumes(studies).mean
    np.testing.assert_allclose(found, model.embed_volumes(places), atol=1e-3)
    same = [model.prepare_study(place) for place in places]
    for index, study in enumerate(studies):
        frames = twin.prepare(study)
        count = frames.valid.shape[1]
        assert frames.view[0].tolist() == same[index]["view"][:count].tolist()
        assert np.abs(frames.frames[0].numpy().astype(int) - same[index]["frames"][:count]).max() <= 1
    image = studies[0]["cine_sa"]
    one = twin.embed_volumes({"cine_sa": (image.get_fdata(), image.affine)}).mean
    torch.testing.assert_close(one, found[:1], atol=TOLERANCE, rtol=0)


def test_the_card_says_how_to_give_a_study(exported):
    card = (exported / "out" / "README.md").read_text()
    assert 'study = {"cine_sa": nibabel.load("cine_sa.nii.gz")' in card
    assert 'model.zero_shot("STUDY_FOLDER"' in card
    assert "Pictures of 16 × 16 pixels of the series cine_sa, lge_sa" in card


def test_a_model_that_does_not_say_how_series_are_prepared_takes_pictures(exported):
    twin = load_torch(exported / "out")
    twin.config.series = []
    image = nibabel.load(exported / "studies" / "0" / "cine_sa.nii.gz")
    with pytest.raises(ValueError, match=r"does not say how cine_sa is prepared: give prepared pictures"):
        twin.embed_volumes({"cine_sa": image})
