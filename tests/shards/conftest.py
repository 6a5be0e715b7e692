"""Tiny archives in every state that an archive is found in, and an object store on this machine."""

import csv
import gzip
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nibabel
import numpy as np
import pytest

SHAPE = (24, 20, 16)
"""Of the source volumes, in NIfTI's order: right, front, up."""

SPACING = (4.0, 4.0, 6.0)

REPORT = "Findings: {}. There is no pericardial effusion. Impression: Cardiomegaly is present. Case {}."


def body(seed: int) -> np.ndarray:
    """A noisy ellipsoid of tissue with lungs, in air."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid[:2] ** 2).sum(0))
    voxels = np.where(radius < 0.8, 40.0, -1000.0)
    voxels[(radius < 0.5) & (np.abs(grid[2]) < 0.7)] = -800
    return np.rint(voxels + random.normal(0, 8, SHAPE)).astype(np.int16)


def heart(seed: int = 0) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:14, 10:14, 5:9] = 1
    return mask


def save(path: Path, voxels: np.ndarray, shift=(0.0, 0.0, 0.0), scale: float = 1.0) -> Path:
    affine = np.diag([*(np.array(SPACING) * scale), 1.0])
    affine[:3, 3] = shift
    image = nibabel.Nifti1Image(voxels, affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def write_table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """Ten good studies of six patients with masks; returns the table."""
    root = tmp_path_factory.mktemp("secretward")
    rows = []
    for index in range(10):
        name = f"DOE^JANE_{index}.nii.gz"
        save(root / "scans" / name, body(index))
        save(root / "masks" / name / "heart.nii.gz", heart())
        save(root / "masks" / name / "aorta.nii.gz", np.zeros(SHAPE, np.uint8))
        rows.append(
            {
                "volume": f"scans/{name}",
                "study": f"ACC90210-{index}",
                "patient": f"MRN4711-{index % 6}",
                "report": REPORT.format("the heart is enlarged", index),
                "organs": f"masks/{name}",
                "label:cardiomegaly": "1" if index % 2 else "",
                "measurement:agatston_score": "" if index == 3 else str(10.5 * index),
                "box": f"{32 + index} 52 40 52 30 48",
            }
        )
    return write_table(root / "studies.csv", rows)


@pytest.fixture(scope="session")
def messy(tmp_path_factory) -> Path:
    """One study in each state; returns the table. The expected outcome stands in the column `expected`."""
    root = tmp_path_factory.mktemp("secretward_messy")
    rows = []

    def add(name: str, expected: str, report: str | None = None, **more) -> None:
        rows.append(
            {
                "volume": name and f"DOE^JANE_{name}",
                "study": f"ACC90210-{len(rows)}",
                "patient": f"MRN4711-{len(rows)}",
                "report": REPORT.format("clear lungs", len(rows)) if report is None else report,
                "organs": "",
                "organ_classes": "",
                "modality": "",
                "expected": expected,
            }
            | more
        )

    for index in range(3):
        save(root / f"DOE^JANE_good{index}.nii.gz", body(index))
        add(f"good{index}.nii.gz", "accepted-with-note:organs-missing")
    masked = save(root / "DOE^JANE_masked.nii.gz", body(10))
    save(root / "DOE^JANE_m1.nii.gz", heart() * 3)
    classes = '{"3": "heart", "5": "aorta"}'
    add(masked.name[9:], "accepted", organs="DOE^JANE_m1.nii.gz", organ_classes=classes)
    save(root / "DOE^JANE_grid.nii.gz", body(11))
    save(root / "DOE^JANE_m2.nii.gz", heart()[::2, ::2, ::2].copy() * 3, scale=2.0)
    add(
        "grid.nii.gz",
        "accepted-with-note:organs-on-another-grid",
        organs="DOE^JANE_m2.nii.gz",
        organ_classes=classes,
    )
    save(root / "DOE^JANE_blank.nii.gz", body(12))
    save(root / "DOE^JANE_m3.nii.gz", np.zeros(SHAPE, np.uint8))
    add("blank.nii.gz", "accepted-with-note:organs-empty", organs="DOE^JANE_m3.nii.gz", organ_classes=classes)
    save(root / "DOE^JANE_away.nii.gz", body(13))
    save(root / "DOE^JANE_m4.nii.gz", heart() * 3, shift=(5000, 0, 0))
    add(
        "away.nii.gz",
        "accepted-with-note:organs-outside-crop",
        organs="DOE^JANE_m4.nii.gz",
        organ_classes=classes,
    )
    save(root / "DOE^JANE_same.nii.gz", body(0))
    add("same.nii.gz", "accepted-with-note:duplicate-volume")
    for index in (20, 21):
        save(root / f"DOE^JANE_copy{index}.nii.gz", body(index))
        add(f"copy{index}.nii.gz", "accepted-with-note:duplicate-report", report="The same text for two.")
    for index, text in enumerate(("", "Not given.", "NaN")):
        save(root / f"DOE^JANE_silent{index}.nii.gz", body(30 + index))
        add(f"silent{index}.nii.gz", "rejected:empty-report", report=text)
    add("", "rejected:report-without-volume")
    add("absent.nii.gz", "rejected:missing-file")
    first = {name: rows[0][name] for name in ("study", "patient", "report")}
    add("good0.nii.gz", "rejected:duplicate-volume-id", **first)
    whole = gzip.compress(gzip.decompress((root / "DOE^JANE_good1.nii.gz").read_bytes()))
    (root / "DOE^JANE_cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    add("cut.nii.gz", "rejected:truncated-file")
    (root / "DOE^JANE_text.nii.gz").write_text("this is DOE^JANE, MRN4711")
    add("text.nii.gz", "rejected:*")
    save(root / "DOE^JANE_flat.nii.gz", np.zeros(SHAPE, np.int16))
    add("flat.nii.gz", "rejected:constant")
    save(root / "DOE^JANE_mr.nii.gz", body(40))
    add("mr.nii.gz", "rejected:wrong-modality", modality="MR")
    (root / "DOE^JANE_m5.nii.gz").write_bytes(b"\x1f\x8b broken")
    save(root / "DOE^JANE_badmask.nii.gz", body(41))
    add("badmask.nii.gz", "rejected:organs-*", organs="DOE^JANE_m5.nii.gz", organ_classes=classes)
    return write_table(root / "studies.csv", rows)


BUCKET = "scans"
KEYS = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "verysecret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def endpoint():
    """Address of an S3 server with an empty bucket."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    server = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **KEYS},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(endpoint, monkeypatch):
    """Use the server; URL of its bucket."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    return f"s3://{BUCKET}"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Folder of this test alone that sets of stores are copied to."""
    from medclip_jax.shards import fetch

    monkeypatch.setenv(fetch.FOLDER_VARIABLE, str(tmp_path / "cache"))
    fetch.fetch_set.cache_clear()
    return tmp_path / "cache"
