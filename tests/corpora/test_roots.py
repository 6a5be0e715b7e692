from pathlib import Path

import pytest

from medclip_jax.corpora.folder import folder
from medclip_jax.corpora.roots import check_root
from medclip_jax.corpora.tables import TableError


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("1.nii", "2.nii"):
        (tmp_path / "scans" / name).write_bytes(b"")

    def table(*volumes):
        path = tmp_path / "studies.csv"
        path.write_text("volume,report\n" + "".join(f"{volume},text\n" for volume in volumes))
        return path

    return tmp_path, table


def check(table, root):
    check_root(folder(table, root=root).studies, Path(root or table.parent), given=root is not None)


def test_a_root_that_the_table_says_already(archive):
    home, table = archive
    with pytest.raises(
        TableError, match=rf"'scans/' already, so that '{home}/scans/scans/.*give --root {home}$"
    ):
        check(table("scans/1.nii", "scans/2.nii"), home / "scans")
    check(table("scans/1.nii", "scans/2.nii"), home)
    check(table("scans/1.nii", "scans/2.nii"), None)


def test_a_root_that_is_missing(archive):
    home, table = archive
    with pytest.raises(TableError, match=rf"they are in '{home}/scans': give --root {home}/scans$"):
        check(table("1.nii", "2.nii"), None)
    check(table("1.nii", "2.nii"), home / "scans")


def test_files_that_are_nowhere_are_left_to_their_rows(archive):
    home, table = archive
    check(table("3.nii", "4.nii"), None)
    check(table(f"{home}/scans/1.nii", "/nowhere/2.nii"), home / "scans")
    check(table("", ""), None)
