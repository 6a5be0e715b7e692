"""`medclip export`: write a trained model as a folder that PyTorch, transformers and the hub open."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

HELP = """\
Write a trained model as one folder for PyTorch, transformers and the Hugging Face hub: weights, config,
tokenizer, a model card, and one file of code that needs torch alone. Nothing in it names a patient or a
folder of this machine. The folder is checked against the model before it gets its name."""

EPILOG = """\
examples:
  medclip export --workdir runs/clip --out exported/clip
  medclip export --workdir runs/clip --out exported/clip --step 20000 --name chest-clip
  medclip export --workdir runs/clip --out exported/clip --format safetensors,stablehlo,onnx

then, in PyTorch:
  from transformers import AutoModel
  model = AutoModel.from_pretrained("exported/clip", trust_remote_code=True)
  model.zero_shot((voxels, affine))                HU and affine as nibabel gives them

and in JAX:
  model = medclip_jax.load("exported/clip")        also: medclip embed exported/clip scan.nii.gz

A later run starts from it with --config.initial_weights.workdir=exported/clip. More: docs/how-to/export.md
"""

FORMATS = {
    "safetensors": "model.safetensors, the default",
    "pytorch": "pytorch_model.bin, instead of model.safetensors where that is not named too",
    "stablehlo": "both embedding functions with weights as programs for CPU, CUDA and TPU",
    "onnx": "both embedding functions with weights as ONNX (needs the extra medclip-jax[onnx])",
}
"""Name of a format to what it writes."""

_NEEDS = {
    "pytorch": (("torch",), "medclip-jax[torch-export]"),
    "stablehlo": (("flatbuffers",), "flatbuffers"),
    "onnx": (("torch", "onnx", "onnxscript"), "medclip-jax[onnx]"),
}
"""Name of a format to the packages that it takes besides this one's, and what to install."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--workdir", required=True, type=Path, metavar="FOLDER", help="of medclip train")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder to write; an earlier export is replaced",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="which checkpoint (default: the best or newest)"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="FOLDER",
        help="prepared folder of the training, for the counts on the model card and where the run kept no "
        "copy of its settings (default: that of the run, if it is still there)",
    )
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="NAMES",
        help="comma-separated or repeated: " + "; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("--name", help="title of the model card (default: name of DIR)")


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the folder was written and gives the model's vectors, else an error and no folder."""
    formats = _formats(args.format)
    import medclip_jax
    from medclip_jax.export.folder import check_out, write_folder
    from medclip_jax.weights.exported import is_export

    check_out(args.out)
    if is_export(args.workdir):
        raise ValueError(f"{args.workdir} is an export already: give the --workdir of `medclip train`")
    model = medclip_jax.load(args.workdir, step=args.step, shards=args.shards, progress=False)
    differences: dict[str, float] = {}

    def finish(folder: Path) -> None:
        differences.update(_finish(model, folder, formats))

    write_folder(model, args.out, card=_card(args, model), formats=formats, finish=finish)
    for name, difference in differences.items():
        print(f"checked: {name} and JAX differ by {difference:.1e} at most (one volume, float32)")
    if "PyTorch" not in differences:
        print("checked: read back; not compared with PyTorch, which is not installed")
    files = sorted(path for path in args.out.iterdir() if path.is_file())
    for path in files:
        print(f"  {path.name:26s} {_size(path.stat().st_size)}")
    print(f"written: {args.out}")
    return 0


def _formats(given: list[str]) -> list[str]:
    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"no format {name!r}: --format takes {', '.join(FORMATS)}")
    for name in names:
        packages, install = _NEEDS.get(name, ((), ""))
        lacking = [package for package in packages if importlib.util.find_spec(package) is None]
        if lacking:
            raise ValueError(f"--format {name} needs {', '.join(lacking)}: pip install '{install}'")
    if not {"safetensors", "pytorch"} & set(names):
        names.insert(0, "safetensors")
    return list(dict.fromkeys(names))


def _finish(model: Any, folder: Path, formats: list[str]) -> dict[str, float]:
    """Add the programs, and compare what was written with the model."""
    from medclip_jax.export.parity import TOLERANCE, largest_difference, load_torch

    if "stablehlo" in formats:
        from medclip_jax.export.stablehlo import write_stablehlo

        write_stablehlo(model, folder)
    if "onnx" in formats:
        from medclip_jax.export.inputs import input_shapes
        from medclip_jax.export.onnx import write_onnx

        shapes = input_shapes(model.objective, model.spec, model.config["data"])
        write_onnx(load_torch(folder), folder, shapes)
    differences = largest_difference(folder, model.objective)
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{name} and JAX differ by {difference:.1e} on this model, more than {TOLERANCE:g}: nothing "
                "was written. Please report this with the config.json of the workdir"
            )
    return differences


def _card(args: argparse.Namespace, model: Any) -> str:
    from medclip_jax.export.model_card import last_evaluation, model_card
    from medclip_jax.shards.manifest import read_manifest
    from medclip_jax.shards.read import SETTINGS_FILE, open_shards
    from medclip_jax.shards.record import ShardError
    from medclip_jax.training.checkpoints import used_step

    step = used_step(args.workdir) if args.step is None else args.step
    kept = args.workdir / SETTINGS_FILE
    shards = args.shards or model.config["data"]["shards"] or None
    info, manifest = (open_shards(args.workdir) if kept.is_file() else None), []
    try:
        there = open_shards(shards) if shards else None
        # The run's own copy says what it was trained on: shards that were prepared anew since are others.
        if there is not None and (
            info is None or (info.settings, info.splits) == (there.settings, there.splits)
        ):
            info, manifest = there, read_manifest(there.folder)
    except ShardError:
        pass  # gone: the card says what the run kept
    metrics = last_evaluation(
        args.workdir / "metrics.jsonl", list(model.config["evaluation"]["evaluators"]), step=step
    )
    name = args.name or args.out.resolve().name
    return model_card(model, name=name, info=info, manifest=manifest, metrics=metrics, step=step)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
