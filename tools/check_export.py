"""Whether a person with torch alone gets the zero-shot AUROC of the JAX run from an exported model.

    medclip demo
    python tools/check_export.py medclip-demo

exports DEMO/contrastive, scores the held-out phantoms with `medclip_jax.load`, and again in a process where
torch is the only package that can be imported (JAX, medclip_jax, transformers, NumPy and others are blocked),
from the exported folder and a file of tensors. A few phantoms go in as they lie on disk, too: voxels and
affine, prepared by either side. Prints one JSON line for each side and one for the comparison; exit code 1
where they disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AUROC_TOLERANCE = 1e-6
VECTOR_TOLERANCE = 1e-5
BLOCKED = ("jax", "jaxlib", "flax", "medclip_jax", "transformers", "numpy", "safetensors", "tokenizers",
           "huggingface_hub", "nibabel", "SimpleITK", "pydicom", "scipy", "sklearn")  # fmt: skip
BATCH = 16


def main() -> int:
    """Run the check; 0 where both sides agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="folder of `medclip demo`")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--raw", type=int, default=3, help="phantoms that go in as they lie on disk (%(default)s)"
    )
    parser.add_argument("--torch-side", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch_side:
        torch_side(args.demo)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return compare(args.demo, args.split, args.raw, Path(folder))


def compare(demo: Path, split: str, raw: int, folder: Path) -> int:
    """Export, score on both sides, print, and say by the exit code whether they agree."""
    import torch

    import medclip_jax
    from medclip_jax.cli.main import main as medclip
    from medclip_jax.evaluation.metrics import auroc
    from medclip_jax.shards.read import open_split

    workdir, shards, exported = demo / "contrastive", demo / "shards", folder / "exported"
    if medclip(["export", "--workdir", str(workdir), "--shards", str(shards), "--out", str(exported)]):
        return 1
    records = open_split(shards, split, fields=["volume", "labels"])
    volumes, labels = zip(
        *((r["volume"], r["labels"]) for r in (records[i] for i in range(len(records)))), strict=True
    )

    began = time.perf_counter()
    model = medclip_jax.load(workdir, batch_size=BATCH)
    findings = list(model.spec.findings)
    scores = model.zero_shot(list(volumes), findings)
    jax_auroc = {}
    for column, name in enumerate(findings):
        known = [i for i, row in enumerate(labels) if row[column]]
        jax_auroc[name] = auroc([labels[i][column] == 1 for i in known], [scores[i][name] for i in known])
    seconds = time.perf_counter() - began
    scans = list(raw_scans(demo, raw, model.crop))
    vectors = [model.embed_volumes(path, center=center)[0] for path, _, _, center in scans]
    report("jax", jax_auroc, len(volumes), seconds)

    torch.save(
        {
            "volumes": torch.stack([torch.from_numpy(volume.copy()) for volume in volumes]),
            "labels": torch.stack([torch.from_numpy(row.copy()) for row in labels]),
            "findings": findings,
            "scans": [
                (torch.from_numpy(voxels), torch.from_numpy(affine), [float(x) for x in center])
                for _, voxels, affine, center in scans
            ],
        },
        folder / "given.pt",
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), str(folder), "--torch-side"],
        check=True, cwd=folder, env=environment,
    )  # fmt: skip
    found = json.loads((folder / "found.json").read_text())
    report("torch", found["auroc"], len(volumes), found["seconds"])
    of_scans = max(
        (abs(ours - theirs) for row, other in zip(vectors, found["vectors"], strict=True)
         for ours, theirs in zip(row.tolist(), other, strict=True)), default=0.0
    )  # fmt: skip
    difference = max(
        abs(jax_auroc[name] - found["auroc"][name]) for name in findings if found["auroc"][name] is not None
    )
    probability = max(abs(row[name] - other[i]) for row, other in zip(scores, found["scores"], strict=True)
                      for i, name in enumerate(findings))  # fmt: skip
    agree = difference <= AUROC_TOLERANCE and of_scans <= VECTOR_TOLERANCE
    print(json.dumps({
        "agree": agree, "auroc_difference": difference, "probability_difference": probability,
        "raw_scans": len(scans), "raw_vector_difference": of_scans, "blocked": found["blocked"],
    }))  # fmt: skip
    return 0 if agree else 1


def raw_scans(demo: Path, count: int, crop: str):
    """The first phantoms as on disk: path, voxels, affine, and the middle of the organ to crop around."""
    import nibabel
    import numpy as np

    from medclip_jax.corpora.folder import folder
    from medclip_jax.volumes.geometry import mask_center
    from medclip_jax.volumes.read import read_labels

    for study, _ in zip(folder(demo / "phantoms" / "studies.csv"), range(count), strict=False):
        values = {name: value for value, name in study.organ_classes.items()}
        mask, affine = read_labels(study.organs["*"])
        image = nibabel.load(study.path)
        yield study.path, np.asarray(image.dataobj), image.affine, mask_center(mask == values[crop], affine)


def report(side: str, scores: dict, volumes: int, seconds: float) -> None:
    """One JSON line."""
    known = {name: None if value is None or value != value else value for name, value in scores.items()}
    defined = [value for value in known.values() if value is not None]
    mean = sum(defined) / len(defined)
    line = {
        "side": side,
        "volumes": volumes,
        "seconds": round(seconds, 1),
        "auroc_mean": mean,
        "auroc": known,
    }
    print(json.dumps(line), flush=True)


class _Without:
    """A finder of modules to which the blocked packages are not installed."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        """As the finder's own."""
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)


def torch_side(folder: Path) -> None:
    """Score what lies in given.pt with the exported model, where nothing but torch can be imported."""
    sys.meta_path[:] = [_Without(finder) for finder in sys.meta_path]
    import warnings

    warnings.filterwarnings("ignore", message=".*NumPy.*")
    import torch

    sys.path.insert(0, str(folder / "exported"))
    from modeling_medclip import MedclipModel

    given = torch.load(folder / "given.pt", weights_only=True)
    began = time.perf_counter()
    model = MedclipModel.from_pretrained(folder / "exported")
    scores = torch.cat([model.zero_shot(part, given["findings"]) for part in given["volumes"].split(BATCH)])
    found = {"auroc": {}, "scores": scores.tolist(), "seconds": time.perf_counter() - began}
    for column, name in enumerate(given["findings"]):
        labels = given["labels"][:, column]
        positive, negative = scores[labels == 1, column], scores[labels == -1, column]
        wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
        found["auroc"][name] = wins.mean().item() if wins.numel() else None
    found["vectors"] = [
        model.embed_volumes(model.prepare(voxels, affine, center=center)).mean[0].tolist()
        for voxels, affine, center in given["scans"]
    ]
    found["blocked"] = [name for name in BLOCKED if name not in sys.modules]
    if leaked := sorted(set(BLOCKED) - set(found["blocked"])):
        raise RuntimeError(f"{', '.join(leaked)} was imported all the same")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
