"""A tiny trained model from a workdir: load, medclip embed, medclip evaluate."""

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.model import Hit
from medclip_jax.volumes import Volume

FINDINGS = ("cardiomegaly", "pericardial_effusion", "coronary_calcification")
SHAPE, SPACING = (8, 16, 16), (8.0, 6.0, 6.0)


def made_records(n, seed):
    from medclip_jax.shards.record import Record

    generator = np.random.default_rng(seed)
    for i in range(n):
        labels = generator.choice([-1, 1], len(FINDINGS)).astype(np.int8)
        report = f"Report {seed} {i}. There is {'' if labels[0] > 0 else 'no '}cardiomegaly."
        yield Record(
            id=f"{seed}-{i}",
            study=1000 * seed + i,
            patient=1000 * seed + i,
            volume=generator.integers(-1000, 300, SHAPE).astype(np.int16),
            report=report,
            findings_text=report,
            impression="",
            statements=report,
            findings=labels,
            labels=labels,
            measurements=np.array([i % 5], np.float32),
        )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Shards and the workdir of a contrastive model after two steps."""
    from medclip_jax.objectives import clip
    from medclip_jax.reports.tokenizer import train_wordpiece
    from medclip_jax.shards.record import Schema
    from medclip_jax.shards.write import write_shards
    from medclip_jax.training.config import base_config
    from medclip_jax.training.loop import train

    folder = tmp_path_factory.mktemp("run")
    splits = {
        name: list(made_records(n, seed)) for seed, (name, n) in enumerate({"train": 16, "test": 12}.items())
    }
    write_shards(folder / "shards", Schema(SHAPE, SPACING, FINDINGS, (), ("cac_grade",)), splits)
    texts = [record.report for record in splits["train"]]
    train_wordpiece(texts * 3, folder / "shards" / "tokenizer", 200)
    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=2, heads=2, pooling="mean", dtype="float32"
    )
    config.objective.text.update(width=24, depth=1, heads=2, max_positions=64, dtype="float32")
    config.objective.embedding_width = 16
    config.data.shards = str(folder / "shards")
    config.data.text_length = 24
    config.batch_size = 8
    config.steps = 2
    config.ema.decay = 0.5
    config.evaluation.split = "test"
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}}
    config.log.tensorboard = False
    config.log.progress = False
    train(config, folder / "workdir")
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return medclip_jax.load(run_folder / "workdir", progress=False)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A NIfTI of 48 x 100 x 96 mm with air, soft tissue and noise."""
    voxels = np.full((24, 25, 12), -1000.0)
    voxels[4:20, 4:20] = 40
    voxels += np.random.default_rng(0).normal(0, 10, voxels.shape)
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([4.0, 4.0, 4.0, 1])), path)
    return path


def test_import_is_light():
    code = "import sys, medclip_jax; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_face():
    assert medclip_jax.__version__
    assert {"load", "Model", "__version__"} <= set(dir(medclip_jax))
    with pytest.raises(AttributeError, match="it has Model"):
        medclip_jax.laod  # noqa: B018


class TestLoad:
    def test_takes_the_averaged_weights_of_the_newest_checkpoint(self, run_folder, model):
        from medclip_jax.training.checkpoints import restore_params
        from medclip_jax.training.state import flatten, split

        expected = flatten(restore_params(run_folder / "workdir", ema=True))
        plain = flatten(restore_params(run_folder / "workdir", ema=False))
        found = flatten(split(model.objective)[1])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(np.asarray(found[name]), value)
        assert any((plain[name] != expected[name]).any() for name in expected)

    def test_same_vectors_as_the_shards(self, run_folder, model):
        """A prepared record and the model's own batch size do not change its vector."""
        from medclip_jax.shards.read import open_split

        records = open_split(run_folder / "shards", "test")
        volumes = [np.array(records[i]["volume"]) for i in range(5)]
        together = model.embed_volumes(volumes)
        alone = np.concatenate([model.embed_volumes(volume) for volume in volumes])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)

    def test_a_workdir_alone_is_enough(self, run_folder, model, scan, tmp_path):
        workdir = tmp_path / "workdir"
        shutil.copytree(run_folder / "workdir", workdir)
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

    def test_checkpoint_of_another_model(self, run_folder, tmp_path):
        workdir = tmp_path / "workdir"
        shutil.copytree(run_folder / "workdir", workdir)
        config = json.loads((workdir / "config.json").read_text())
        config["objective"]["embedding_width"] = 8
        (workdir / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"does not fit its config\.json \(parameter '\w*projection"):
            medclip_jax.load(workdir)


def test_a_missing_evaluation_split_shows_before_the_first_step(run_folder, tmp_path):
    from ml_collections import ConfigDict

    from medclip_jax.training.loop import train

    config = ConfigDict(json.loads((run_folder / "workdir" / "config.json").read_text()))
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

    def test_retrieve_orders_by_cosine(self, model):
        volumes = [record.volume for record in made_records(5, 3)]
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

    def test_volume_of_another_grid(self, model):
        volume = Volume(np.zeros((5, 5, 5), np.int16), (30.0, 30.0, 30.0), np.diag([30.0, 30, 30, 1]))
        assert model.embed_volumes(volume).shape == (1, 16)


class TestEmbedCommand:
    def test_prints_cosines_and_probabilities(self, run_folder, model, scan, tmp_path, capsys):
        out = tmp_path / "vectors.npz"
        text = "There is cardiomegaly."
        code = main(["embed", str(run_folder / "workdir"), str(scan), "--text", text, "--out", str(out)])
        printed = capsys.readouterr().out
        assert code == 0
        cosine = float(model.embed_volumes(scan)[0] @ model.embed_texts(text)[0])
        assert f"{cosine:+.4f}" in printed
        probability = model.zero_shot(scan, ["pericardial_effusion"])["pericardial_effusion"]
        assert f"{probability:.3f}" in printed
        with np.load(out) as written:
            np.testing.assert_allclose(written["volumes"], model.embed_volumes(scan), atol=1e-6)
            np.testing.assert_allclose(written["texts"], model.embed_texts(text), atol=1e-6)
            assert list(written["sentences"]) == [text]

    def test_unreadable_files_are_listed(self, run_folder, scan, tmp_path, capsys):
        broken, missing = tmp_path / "broken.nii.gz", tmp_path / "missing.nii.gz"
        broken.write_bytes(scan.read_bytes()[:200])
        arguments = ["embed", str(run_folder / "workdir"), str(scan), str(broken), str(missing)]
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert "1 of 3 scans embedded" in printed.out
        assert f"not read: {broken}" in printed.err
        assert f"not read: {missing}" in printed.err

    def test_nothing_readable(self, run_folder, tmp_path, capsys):
        assert main(["embed", str(run_folder / "workdir"), str(tmp_path / "missing.nii.gz")]) == 1
        assert "not read" in capsys.readouterr().err

    def test_unknown_finding(self, run_folder, scan, capsys):
        arguments = ["embed", str(run_folder / "workdir"), str(scan), "--findings", "heartbreak"]
        assert main(arguments) == 2
        assert "unknown finding 'heartbreak'" in capsys.readouterr().err

    def test_no_model(self, scan, tmp_path, capsys):
        assert main(["embed", str(tmp_path), str(scan)]) == 2
        assert "no config.json" in capsys.readouterr().err


class TestEvaluateCommand:
    def test_equals_the_evaluation_in_the_training_loop(self, run_folder, tmp_path):
        lines = [json.loads(line) for line in (run_folder / "workdir/metrics.jsonl").read_text().splitlines()]
        logged = {
            name: value for line in lines for name, value in line.items() if name.startswith("zero_shot/")
        }
        numbers = tmp_path / "numbers.json"
        assert main(["evaluate", "--workdir", str(run_folder / "workdir"), "--json", str(numbers)]) == 0
        found = json.loads(numbers.read_text())["metrics"]
        assert found.keys() == logged.keys()
        assert found == pytest.approx(logged, abs=1e-9)

    def test_tables_json_and_page(self, run_folder, tmp_path, capsys):
        page, numbers = tmp_path / "page.html", tmp_path / "out" / "numbers.json"
        arguments = ["evaluate", "--workdir", str(run_folder / "workdir"), "--set", "zero_shot.draws=20"]
        arguments += ["--evaluators", "zero_shot,retrieval,ordinal", "--set", "ordinal.draws=0"]
        arguments += ["--set", "zero_shot.threshold=train"]
        assert main([*arguments, "--page", str(page), "--json", str(numbers)]) == 0
        printed = capsys.readouterr().out
        for part in ("Zero-shot classification", "Retrieval", "Keyword to image", "Ordered grades"):
            assert part in printed
        assert "12 volumes" in printed
        assert "volume mean, text cls" in printed
        found = json.loads(numbers.read_text())
        assert found["volumes"] == 12
        assert found["metrics"]["retrieval/image_to_text/R@50"] is None
        assert 0 <= found["metrics"]["zero_shot/auroc_mean"] <= 1
        assert found["conditions"]["zero_shot"]["threshold"] == "best f1 on split 'train'"
        assert "data:image/png;base64" in page.read_text()

    def test_unknown_setting(self, run_folder, capsys):
        arguments = ["evaluate", "--workdir", str(run_folder / "workdir"), "--set", "zero_shot.drawz=1"]
        assert main(arguments) == 2
        assert "no setting 'drawz'" in capsys.readouterr().err

    def test_unknown_split(self, run_folder, capsys):
        assert main(["evaluate", "--workdir", str(run_folder / "workdir"), "--split", "tset"]) == 2
        assert "no split 'tset'" in capsys.readouterr().err

    def test_override_without_value(self, run_folder, capsys):
        assert main(["evaluate", "--workdir", str(run_folder / "workdir"), "--set", "draws"]) == 2
        assert "EVALUATOR.SETTING=VALUE" in capsys.readouterr().err
