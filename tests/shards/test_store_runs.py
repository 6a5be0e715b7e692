"""Trained, evaluated and embedded from a set in a store: the numbers of the same set on this machine."""

import json
import shutil

import pytest

from medclip_jax.cli.main import main
from medclip_jax.shards import fetch, publish
from tests.tiny_run import train_on

parquet = pytest.importorskip("pyarrow.parquet")


def numbers(run, scan, folder):
    """What the commands evaluate and embed make of a run: results, and the row with the vector of a scan."""
    folder.mkdir()
    assert main(["evaluate", "--workdir", str(run), "--json", str(folder / "results.json")]) == 0
    assert main(["embed", str(run), str(scan), "--out", str(folder / "vectors.parquet")]) == 0
    rows = parquet.read_table(folder / "vectors.parquet").to_pylist()
    results = json.loads((folder / "results.json").read_text())
    for seconds in ("seconds", "seconds_of"):
        results.pop(seconds)
    return results, rows


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_run_on_a_set_in_a_store(tiny_run, scan, own_cache, request, tmp_path, scheme):
    """`tiny_run` is the same run on the folder that is published."""
    bucket = f"file://{tmp_path}" if scheme == "file" else request.getfixturevalue("s3")
    url = f"{bucket}/runs/set"
    publish.publish(tiny_run / "shards", url, progress=False)
    train_on(url, tmp_path / "workdir")
    assert json.loads((tmp_path / "workdir" / "config.json").read_text())["data"]["shards"] == url
    expected, rows = numbers(tiny_run / "workdir", scan, tmp_path / "here")
    # Another machine has nothing in its cache.
    shutil.rmtree(own_cache)
    fetch.fetch_set.cache_clear()
    found, same_rows = numbers(tmp_path / "workdir", scan, tmp_path / "there")
    assert found["volumes"] == 12
    assert found == expected
    assert len(rows) == 1
    assert rows == same_rows
