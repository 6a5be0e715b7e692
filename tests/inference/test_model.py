"""The public face: load, and what a model does with scans and texts."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import medclip_jax
from medclip_jax.inference.model import Hit
from tests.tiny_run import SHAPE, SPACING, made_records


@pytest.fixture(scope="module")
def model(tiny_run):
    return medclip_jax.load(tiny_run / "workdir", progress=False)


def test_import_is_light():
    code = "import sys, medclip_jax; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_face():
    assert medclip_jax.__version__
    assert {"load", "Model", "__version__"} <= set(dir(medclip_jax))
    with pytest.raises(AttributeError, match="it has Model"):
        medclip_jax.laod  # noqa: B018


def test_tokens_as_colors(model):
    from medclip_jax.evaluation.pca import token_colors
    from medclip_jax.pages.spectrum_figures import token_maps

    volumes = [record["volume"] for record in made_records(2, 5)]
    maps = model.pca_map(volumes, layer="block_1")
    assert maps.layer == "block_1"
    assert maps.spacings == [SPACING] * 2
    tower = model.objective.volume_tower()
    tokens = np.asarray(tower.layer_states(tower.to_voxels(np.stack(volumes)))["block_1"])
    expected = token_colors(tokens)(tokens).reshape(2, *tower.grid, 3)
    np.testing.assert_allclose(maps.colors, expected, atol=2e-3)
    assert len(token_maps(maps).axes) == 12
    assert model.pca_map(volumes[0]).layer == "final"
    with pytest.raises(ValueError, match="no layer 'block_9'; it has patches, block_1, block_2, final"):
        model.pca_map(volumes, layer="block_9")


class TestLoad:
    def test_takes_the_averaged_weights_of_the_newest_checkpoint(self, tiny_run, model):
        from medclip_jax.parameters import flatten, split
        from medclip_jax.training.checkpoints import restore_weights

        expected = flatten(restore_weights(tiny_run / "workdir", ema=True))
        plain = flatten(restore_weights(tiny_run / "workdir", ema=False))
        found = flatten(split(model.objective)[1])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(np.asarray(found[name]), value)
        assert any((plain[name] != expected[name]).any() for name in expected)

    def test_same_vectors_as_the_shards(self, tiny_run, model):
        """A prepared record and the model's own batch size do not change its vector."""
        from medclip_jax.shards.read import open_split

        records = open_split(tiny_run / "shards", "test")
        volumes = [np.array(records[i]["volume"]) for i in range(5)]
        together = model.embed_volumes(volumes)
        alone = np.concatenate([model.embed_volumes(volume) for volume in volumes])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)

    def test_a_workdir_alone_is_enough(self, tiny_run, model, scan, tmp_path):
        workdir = tmp_path / "workdir"
        shutil.copytree(tiny_run / "workdir", workdir)
        config = json.loads((workdir / "config.json").read_text())
        config["data"]["shards"] = "/gone"
        config["data"]["tokenizer"] = "/gone too"
        (workdir / "config.json").write_text(json.dumps(config))
        alone = medclip_jax.load(workdir, progress=False)
        assert alone.spec == model.spec
        np.testing.assert_array_equal(alone.embed_volumes(scan), model.embed_volumes(scan))
        np.testing.assert_array_equal(alone.embed_texts("No effusion."), model.embed_texts("No effusion."))
        (workdir / "prepare.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"'/gone', are not there.*prepare\.json"):
            medclip_jax.load(workdir)

    def test_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config\.json.*medclip train"):
            medclip_jax.load(tmp_path)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_batch_size_changes_nothing(self, tiny_run, model, batch_size):
        volumes = [record["volume"] for record in made_records(5, 7)]
        other = medclip_jax.load(tiny_run / "workdir", batch_size=batch_size, progress=False)
        found = other.embed_volumes(volumes)
        np.testing.assert_allclose(found, model.embed_volumes(volumes), atol=1e-6)
        # One shape for all batches, the last and partial one included; and the same bits at any place.
        (compiled,) = other.embedder._functions.values()
        assert compiled._cache_size() == 1
        np.testing.assert_array_equal(other.embed_volumes(volumes[::-1]), found[::-1])

    def test_dtype(self, tiny_run, model):
        volume = next(made_records(1, 7))["volume"]
        half = medclip_jax.load(tiny_run / "workdir", dtype="bfloat16", progress=False)
        assert half.config["objective"]["vision"]["dtype"] == "bfloat16"
        assert half.config["objective"]["text"]["dtype"] == "bfloat16"
        difference = np.abs(half.embed_volumes(volume) - model.embed_volumes(volume)).max()
        assert 1e-6 < difference < 0.05
        with pytest.raises(ValueError, match='"float32" or "bfloat16"'):
            medclip_jax.load(tiny_run / "workdir", dtype="float16")

    def test_checkpoint_of_another_model(self, tiny_run, tmp_path):
        workdir = tmp_path / "workdir"
        shutil.copytree(tiny_run / "workdir", workdir)
        config = json.loads((workdir / "config.json").read_text())
        config["objective"]["embedding_width"] = 8
        (workdir / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"does not fit its config\.json \('\w*projection"):
            medclip_jax.load(workdir)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    from medclip_jax.export.folder import write_folder

    return write_folder(model, tmp_path_factory.mktemp("exported") / "clip")


class TestExported:
    def test_same_numbers_as_the_workdir(self, exported, model, scan):
        found = medclip_jax.load(exported, progress=False)
        assert (found.spec, found.crop, found.modality) == (model.spec, model.crop, model.modality)
        np.testing.assert_allclose(found.embed_volumes(scan), model.embed_volumes(scan), atol=1e-6)
        texts = ["There is cardiomegaly.", "No effusion."]
        np.testing.assert_allclose(found.embed_texts(texts), model.embed_texts(texts), atol=1e-6)
        assert found.logit_scale == pytest.approx(model.logit_scale, rel=1e-6)

    def test_workdir_options(self, exported):
        with pytest.raises(ValueError, match="step and shards are for workdirs"):
            medclip_jax.load(exported, step=1)

    def test_hub_id(self, exported, model, scan, monkeypatch):
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError

        asked = []

        def download(name, file, revision=None):
            assert name == "owner/clip-heart.v1"
            asked.append(file)
            if not (exported / file).exists():
                raise EntryNotFoundError(file)
            return str(exported / file)

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
        found = medclip_jax.load("owner/clip-heart.v1", progress=False)
        np.testing.assert_allclose(found.embed_volumes(scan), model.embed_volumes(scan), atol=1e-6)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(asked)
        assert not any(file.endswith((".py", ".bin")) for file in asked)

    def test_hub_out_of_reach(self, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match=r"no model there: .*hf download owner/clip --loc"):
            medclip_jax.load("owner/clip")

    def test_neither_folder_nor_id(self, tmp_path):
        (tmp_path / "gone-by").mkdir()
        with pytest.raises(FileNotFoundError, match=r"gone is no folder: did you mean .*/gone-by\?.*hf://"):
            medclip_jax.load(tmp_path / "gone")


def test_a_missing_evaluation_split_shows_before_the_first_step(tiny_run, tmp_path):
    from ml_collections import ConfigDict

    from medclip_jax.training.loop import train

    config = ConfigDict(json.loads((tiny_run / "workdir" / "config.json").read_text()))
    config.evaluation.split = "validation"
    with pytest.raises(ValueError, match=r"config\.evaluation\.split=validation: no split.*test \(12\)"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


class TestModel:
    def test_prepares_as_medclip_prepare_does(self, model, scan):
        from medclip_jax.shards.scan import crop_and_resample
        from medclip_jax.volumes import read_volume

        volume = read_volume(scan)
        expected = crop_and_resample(volume, SHAPE, SPACING)[0].voxels
        np.testing.assert_array_equal(model.prepare(scan), expected)
        np.testing.assert_array_equal(model.prepare(volume), expected)
        np.testing.assert_array_equal(model.prepare(expected), expected)
        np.testing.assert_array_equal(model.embed_volumes(scan), model.embed_volumes([expected]))

    def test_center_moves_the_crop(self, model, scan):
        moved = model.prepare(scan, center=(0.0, 0.0, 0.0))
        assert (moved == -1024).any()
        assert (moved != model.prepare(scan)).any()

    def test_a_center_for_each_scan(self, model, scan):
        found = model.embed_volumes([scan, scan, scan], center=[None, (0.0, 0.0, 0.0), (40, 40, 20)])
        np.testing.assert_array_equal(found[0], model.embed_volumes(scan)[0])
        np.testing.assert_array_equal(found[1], model.embed_volumes(scan, center=(0.0, 0.0, 0.0))[0])
        assert len(np.unique(found, axis=0)) == 3
        probability = model.zero_shot(scan, ["cardiomegaly"], center=(0.0, 0.0, 0.0))
        assert probability != model.zero_shot(scan, ["cardiomegaly"])
        with pytest.raises(ValueError, match="2 centers for 3 scans"):
            model.embed_volumes([scan] * 3, center=[None, None])
        with pytest.raises(ValueError, match="three numbers"):
            model.prepare(scan, center=(1.0, 2.0))

    def test_a_bad_file_is_named(self, model, scan, tmp_path):
        from medclip_jax.volumes import VolumeRejected

        broken = tmp_path / "broken.nii.gz"
        broken.write_bytes(scan.read_bytes()[:200])
        with pytest.raises(VolumeRejected, match=r"broken\.nii\.gz: The gzip data end early") as caught:
            model.embed_volumes([scan, broken, scan])
        assert caught.value.code == "truncated-file"
        with pytest.raises(VolumeRejected, match=r"gone\.nii: There is no such file"):
            model.zero_shot(tmp_path / "gone.nii", ["cardiomegaly"])

    def test_a_reader_that_fails_is_named(self, model, scan, monkeypatch):
        from medclip_jax.inference import preparation
        from medclip_jax.volumes import VolumeRejected

        def fail(path, **_):
            raise ZeroDivisionError("deep inside")

        monkeypatch.setattr(preparation, "read_scan", fail)
        with pytest.raises(VolumeRejected, match=r"chest\.nii\.gz: .*ZeroDivisionError") as caught:
            model.embed_volumes(scan)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_dicom_folder(self, model, tmp_path):
        from made_scans import chest, lps_stack, write_nifti, write_slices

        voxels = chest()
        write_slices(tmp_path / "series", lps_stack(voxels))
        nifti = write_nifti(tmp_path / "chest.nii.gz", voxels)
        found = model.embed_volumes([tmp_path / "series", nifti])
        assert found.shape == (2, 16)
        # Two files of one scan, whose affines place it differently: what is cropped is the same.
        np.testing.assert_allclose(found[0], found[1], atol=1e-6)

    def test_organ_crop_warns(self, model, scan, monkeypatch):
        monkeypatch.setattr(model, "crop", "heart")
        with pytest.warns(UserWarning, match=r"'heart'.*center="):
            model.prepare(scan)

    def test_zero_shot_is_the_softmax_over_the_pair(self, model, scan):
        found = model.zero_shot(scan, ["cardiomegaly"])
        texts = model.embed_texts(["There is cardiomegaly.", "There is no cardiomegaly."])
        logits = model.logit_scale * (texts.astype(float) @ model.embed_volumes(scan)[0].astype(float))
        expected = np.exp(logits - logits.max())
        assert found == {"cardiomegaly": pytest.approx(expected[0] / expected.sum(), abs=1e-6)}
        assert model.logit_scale == pytest.approx(1 / 0.07, rel=0.05)
        assert model.zero_shot([scan, scan], ["cardiomegaly"]) == [found, found]

    def test_zero_shot_takes_sentences(self, model, scan):
        named = model.zero_shot(scan, ["cardiomegaly"])["cardiomegaly"]
        pair = ("There is cardiomegaly.", "There is no cardiomegaly.")
        assert model.zero_shot(scan, [pair]) == {pair[0]: named}
        assert model.zero_shot(scan, "cardiomegaly") == {"cardiomegaly": named}
        swapped = model.zero_shot(scan, [pair[::-1]])[pair[1]]
        assert swapped == pytest.approx(1 - named, abs=1e-6)
        with pytest.raises(ValueError, match="two sentences"):
            model.zero_shot(scan, [("one",)])

    def test_retrieve_orders_by_cosine(self, model):
        volumes = [record["volume"] for record in made_records(5, 3)]
        vectors = model.embed_volumes(volumes)
        cosines = vectors.astype(float) @ model.embed_texts("There is cardiomegaly.")[0].astype(float)
        hits = model.retrieve("There is cardiomegaly.", volumes, count=3)
        assert [hit.index for hit in hits] == list(np.argsort(-cosines)[:3])
        assert hits == model.retrieve("There is cardiomegaly.", vectors, count=3)
        assert isinstance(hits[0], Hit)

    def test_explain(self, model, scan):
        found = model.explain(scan, "cardiomegaly")
        cosine = model.embed_volumes(scan)[0] @ model.embed_texts("There is cardiomegaly.")[0]
        assert found.score == pytest.approx(cosine, abs=1e-5)
        assert found.patches.shape == (2, 2, 2)
        assert found.voxels.shape == SHAPE
        against = model.explain(scan, "There is cardiomegaly.", "There is no cardiomegaly.")
        assert abs(against.score - found.score) > 1e-6

    def test_unknown_finding(self, model, scan):
        with pytest.raises(KeyError, match="unknown finding 'heartbreak'"):
            model.zero_shot(scan, ["heartbreak"])

    def test_array_of_another_shape(self, model):
        with pytest.raises(ValueError, match=r"int16 \(8, 16, 16\), not float64.*Volume"):
            model.embed_volumes(np.zeros((3, 3, 3)))


def test_a_model_says_what_it_is(model, tiny_run):
    shown = repr(model)
    for part in ("'clip'", "million parameters", "8 x 16 x 16 voxels of 8 x 6 x 6 mm", "cardiomegaly",
                 "up to 24 tokens", str(tiny_run / "workdir")):  # fmt: skip
        assert part in shown
    assert len(shown.splitlines()) < 10


class TestSavingMaps:
    """On the scan's own grid: the same place in the world has the same value, however the file is turned."""

    def grid_of(self, shape=(20, 26, 15)):
        """Oblique, anisotropic, axes (posterior, left, superior) or so."""
        from scipy.spatial.transform import Rotation

        affine = np.eye(4)
        turned = Rotation.from_euler("xyz", [12, -9, 20], degrees=True).as_matrix()
        affine[:3, :3] = turned @ np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1.0]]) * [4.0, 3.2, 6.0]
        affine[:3, 3] = [-31.0, 58.0, -140.0]
        return shape, affine

    def made(self):
        shape, affine = self.grid_of()
        voxels = np.full(shape, -1000.0)
        voxels[4:16, 5:21] = 40
        return (voxels + np.random.default_rng(0).normal(0, 10, shape)).astype(np.int16), affine

    @pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
    def test_world_coordinates(self, model, tmp_path, suffix):
        import nibabel as nib
        import SimpleITK as sitk
        from scipy.ndimage import map_coordinates

        voxels, affine = self.made()
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
        scan = tmp_path / "scan.nii.gz"
        if suffix != ".nii.gz":
            sitk.WriteImage(sitk.ReadImage(str(scan)), str(tmp_path / f"scan{suffix}"))
            scan = tmp_path / f"scan{suffix}"
        found = model.explain(scan, "cardiomegaly")
        found.save(tmp_path / f"heat{suffix}")
        original, heat = sitk.ReadImage(str(scan)), sitk.ReadImage(str(tmp_path / f"heat{suffix}"))
        assert heat.GetSize() == original.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(heat, get)(), getattr(original, get)(), atol=1e-4)
        values = sitk.GetArrayFromImage(heat).transpose(2, 1, 0)
        assert values.max() > 0
        index = np.indices(values.shape).reshape(3, -1)
        lps = np.array(
            [heat.TransformIndexToPhysicalPoint([int(i) for i in point]) for point in index.T[::97]]
        )
        to_map = np.linalg.inv(found.grid.affine)
        ras = np.c_[lps * [-1, -1, 1], np.ones(len(lps))]
        expected = map_coordinates(found.voxels, (to_map @ ras.T)[:3], order=1, mode="grid-constant")
        np.testing.assert_allclose(values.reshape(-1)[::97], expected, atol=1e-5 * values.max())

    def test_what_cannot_be_saved(self, model, scan, tmp_path):
        found = model.explain(scan, "cardiomegaly")
        with pytest.raises(ValueError, match=r"heat\.png: a map is written as \.nii\.gz"):
            found.save(tmp_path / "heat.png")
        with pytest.raises(FileNotFoundError, match="no folder"):
            found.save(tmp_path / "gone" / "heat.nii.gz")
        with pytest.raises(ValueError, match="does not say where it lies"):
            model.explain(model.prepare(scan), "cardiomegaly").save(tmp_path / "heat.nii.gz")

    def test_dicom(self, model, tmp_path):
        """On the stack of slices: at the place of each slice, its pixels."""
        import nibabel as nib
        from made_scans import chest, lps_stack, write_nifti, write_slices

        voxels = chest()
        write_slices(tmp_path / "series", lps_stack(voxels))
        write_nifti(tmp_path / "chest.nii.gz", voxels)
        maps = []
        for source in ("series", "chest.nii.gz"):
            found = model.explain(tmp_path / source, "cardiomegaly")
            found.save(tmp_path / f"{source}.heat.nii")
            image = nib.as_closest_canonical(nib.load(tmp_path / f"{source}.heat.nii"))
            maps.append(image.get_fdata())
        assert maps[0].max() > 0
        np.testing.assert_allclose(*maps, atol=1e-5 * maps[0].max())
