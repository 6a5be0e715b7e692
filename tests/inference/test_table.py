"""Columns of the merged file."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from medclip_jax.inference.scans import Entry
from medclip_jax.inference.table import Row, Table


@pytest.mark.parametrize("uncertain", [False, True])
def test_uncertainty_stands_where_the_model_knows_one(tmp_path, uncertain):
    entries = [Entry(f"{name}.nii.gz", tmp_path / f"{name}.nii.gz") for name in "ba"]
    with Table(tmp_path / "out.parquet", {"model": "x"}) as table:
        for number, entry in enumerate(entries):
            vector = np.full(3, number, np.float32)
            table.add(Row(entry, vector, (), 0.5 + number if uncertain else None))
        assert table.merge(entries[::-1], lambda vectors: {"first": vectors[:, 0]}) == 2
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["scan"].to_pylist() == ["a.nii.gz", "b.nii.gz"]
    assert found["first"].to_pylist() == [1.0, 0.0]
    if uncertain:
        assert found["uncertainty"].to_pylist() == [1.5, 0.5]
    else:
        assert "uncertainty" not in found.column_names
