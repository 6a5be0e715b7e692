"""Features on disk: embedded once, through kills and damage, and never mistaken for another model's."""

import json
import signal
import subprocess
import sys
from types import MethodType, SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.evaluation.feature_cache import FeatureCache
from medclip_jax.evaluation.volume_features import VolumeFeatures
from medclip_jax.objectives.base import Embedding
from medclip_jax.objectives.towers import VisionTower
from tests.evaluation.point_toy import FINDINGS, Toy, embedder_of, records

COUNT = 11
TRUE = np.random.default_rng(0).normal(size=(COUNT, 3)).astype(np.float32)


def embedding(asked, batch=2):
    """What embeds rows two at a time, and writes down which."""

    def embed(rows):
        asked.extend(rows)
        for start in range(0, len(rows), batch):
            part = np.array(rows[start : start + batch])
            yield {"mean": TRUE[part], "pooled": 2 * TRUE[part]}

    return embed


def opened(folder, asked, key=("a",)):
    cache = FeatureCache(folder, rows=4)
    found = cache.features({"weights": key}, COUNT, embedding(asked))
    np.testing.assert_array_equal(found["mean"], TRUE)
    np.testing.assert_array_equal(found["pooled"], 2 * TRUE)
    return cache


def files(folder):
    return sorted(folder.rglob("*.npz"))


def test_a_volume_is_embedded_once(tmp_path):
    asked = []
    assert opened(tmp_path, asked).described().startswith("features of 0 volumes")
    assert asked == list(range(COUNT))
    again = []
    assert opened(tmp_path, again).found == COUNT
    assert again == []
    # Another model, or split, has a folder of its own.
    assert opened(tmp_path, again, key=("b",)).made == COUNT
    assert len(files(tmp_path)) == 6
    (about, _) = sorted(tmp_path.rglob("about.json"))
    assert json.loads(about.read_text())["weights"] in (["a"], ["b"])
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


KILLED = """
import os, signal, sys
import numpy as np
from medclip_jax.evaluation.feature_cache import FeatureCache

true = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)

def embed(rows):
    for row in rows:
        if row == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"mean": true[[row]], "pooled": 2 * true[[row]]}

FeatureCache(sys.argv[1], rows=4).features({"weights": ("a",)}, 11, embed)
"""


def test_a_killed_run_goes_on(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in files(tmp_path)] == ["00000000-00000004.npz", "00000004-00000008.npz"]
    asked = []
    cache = opened(tmp_path, asked)
    assert asked == [8, 9, 10]
    assert (cache.found, cache.made) == (8, 3)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path):
    path.write_bytes(b"")


def of_other_rows(path):
    np.savez(path, mean=TRUE[:3], pooled=TRUE[:3])


def of_objects(path):
    np.savez(path, mean=np.array([{}, {}, {}, {}], object))


@pytest.mark.parametrize("damage", [cut, flipped, emptied, of_other_rows, of_objects])
def test_a_damaged_file_is_made_again_and_said_so(tmp_path, caplog, damage):
    opened(tmp_path, [])
    damaged = files(tmp_path)[1]
    damage(damaged)
    asked = []
    cache = opened(tmp_path, asked)
    assert asked == [4, 5, 6, 7]
    assert cache.damaged == [damaged]
    assert f"{damaged} is damaged" in caplog.text
    assert "1 damaged files made again" in cache.described()
    assert opened(tmp_path, asked).damaged == []


class Broken:
    """Records whose volumes cannot be read."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        raise AssertionError("volumes must not be read again")


def test_a_split_from_the_cache_is_the_same_split(tmp_path):
    rows = records()
    embedder = embedder_of(Toy())

    def split(records, count):
        cache = FeatureCache(tmp_path, rows=4)
        found = embed_split(
            "test",
            records,
            embedder,
            findings=FINDINGS,
            kinds=("pooled",),
            kept_features=lambda *given: cache.features({"weights": embedder.weights_hash()}, *given),
            descriptions=[{key: x for key, x in row.items() if key != "volume"} for row in rows],
        )
        assert cache.found == count
        return found

    bare = embed_split("test", rows, embedder, findings=FINDINGS, kinds=("pooled",))
    first, second = split(rows, 0), split(Broken(rows), len(rows))
    for one in (first, second):
        np.testing.assert_array_equal(one.volumes, bare.volumes)
        np.testing.assert_array_equal(one.pooled, bare.pooled)
        np.testing.assert_array_equal(one.labels["cardiomegaly"], bare.labels["cardiomegaly"])
        assert one.texts == bare.texts


def test_the_hash_is_of_the_present_weights():
    objective = Toy()
    embedder = embedder_of(objective)
    before = embedder.weights_hash()
    assert before == embedder_of(Toy()).weights_hash()
    objective.weight[...] = objective.weight[...].at[3, 2].add(1e-6)
    changed = embedder.weights_hash()
    assert changed != before
    embedder.update(Toy())
    assert embedder.weights_hash() == before


def test_the_command_takes_them_from_there(tiny_run, tmp_path, capsys):
    def evaluated(*more):
        numbers = tmp_path / "numbers.json"
        arguments = ["evaluate", "--workdir", str(tiny_run / "workdir"), "--json", str(numbers)]
        assert main([*arguments, "--set", "zero_shot.draws=0", *more]) == 0
        return json.loads(numbers.read_text())["metrics"], capsys.readouterr().out

    bare, printed = evaluated()
    assert "features of" not in printed
    first, printed = evaluated("--cache", str(tmp_path / "cache"))
    assert "features of 0 volumes" in printed
    assert "12 embedded" in printed
    second, printed = evaluated("--cache", str(tmp_path / "cache"))
    assert "features of 12 volumes" in printed
    assert ", 0 embedded" in printed
    assert bare == first == second


def test_asap_features_are_the_last_states_mean_patch_standardized():
    states = np.random.default_rng(0).normal(2, 3, (2, 5, 7))
    encoder = SimpleNamespace(last_states=lambda voxels, train: jnp.asarray(states))
    tower = SimpleNamespace(to_voxels=lambda volume, keys: volume, encoder=encoder)
    tower.mean_token = MethodType(VisionTower.mean_token, tower)
    objective = SimpleNamespace(
        volume_tower=lambda: tower, embed_volumes=lambda inputs: Embedding(jnp.ones((2, 3)))
    )
    found = VolumeFeatures(("asap",))(objective, {"volume": None})["asap"]
    mean = states.mean(axis=1)
    expected = (mean - mean.mean(axis=1, keepdims=True)) / mean.std(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)
