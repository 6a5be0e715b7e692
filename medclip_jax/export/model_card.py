"""The model card (README.md) of an exported model: what a stranger must know before using it."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.evaluation.results import TOO_FEW, is_enough
from medclip_jax.export.inputs import input_shapes
from medclip_jax.shards.grid import shown_spacing

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model
    from medclip_jax.objectives.base import Objective
    from medclip_jax.shards.read import PreparedInfo

PHANTOM_MEASUREMENTS = {
    "coronary_stenosis_fraction",
    "emphysema_fraction",
    "lung_nodule_mm",
    "pericardial_effusion_mm",
}
"""What `corpora.phantom` measures of its phantoms under names that no table of patients is likely to use."""

CINE_MEASUREMENTS = {
    "aortic_root_mm",
    "lv_ejection_fraction",
    "lv_end_diastolic_diameter_mm",
    "lv_end_diastolic_volume_ml",
    "pericardial_effusion_mm",
    "rv_ejection_fraction",
    "rv_end_diastolic_volume_ml",
    "scar_percent",
    "wall_thickness_mm",
}
"""All that `corpora.cine` measures of its beating hearts; no more and no less tells them from patients."""

_TORCH = """\
```python
from transformers import AutoModel
model = AutoModel.from_pretrained(DIR, trust_remote_code=True)  # DIR: this folder, or its id on the hub
{call}
```

{given} Only torch installed? `sys.path.insert(0, DIR)`, then
`from modeling_medclip import MedclipModel` and `MedclipModel.from_pretrained(DIR)`.
"""

_SCAN = """\
`voxels` are Hounsfield units and `affine` leads from array index to RAS mm, both as nibabel gives them."""

_STUDY = """\
A series is an image of nibabel or SimpleITK, or a tuple of its voxels (i, j, slice, phase) and the affine
from array index to RAS mm; or pictures prepared as below, (N, {height}, {width}): all phases of the first
slice, then those of the second, and so on. Any series may be missing."""

_JAX = """\
```python
import medclip_jax
model = medclip_jax.load(DIR)
{call}
```
"""


def model_card(
    model: Model,
    *,
    name: str,
    info: PreparedInfo | None = None,
    manifest: Sequence[Mapping[str, Any]] = (),
    metrics: tuple[int, Mapping[str, float]] | None = None,
    step: int | None = None,
) -> str:
    """Write the card. It names no patient, no study, no file and no folder.

    Args:
        model: from `medclip_jax.load`.
        name: title of the card.
        info: of the training data, from `shards.read.open_shards` on the shards or the workdir.
        manifest: lines of the shards' manifest, from `shards.manifest.read_manifest`; only counts are taken.
        metrics: step and numbers of the last evaluation, from `last_evaluation`.
        step: of the exported checkpoint.

    Returns:
        Markdown with the hub's YAML front matter.
    """
    has_text = model.objective.has_text
    phantoms = _phantoms(info)
    sections = [
        _front_matter(model.objective),
        f"# {name}",
        f"A model of {_studies(model)}: {model.objective.description}. Written by `medclip export`. "
        "**Not a medical device.**",
        "## Use\n\nIn PyTorch:\n\n" + _TORCH.format(call=_torch_call(model, has_text), given=_given(model)),
        *_parts(model),
        "With medclip_jax, which also reads NIfTI, DICOM, NRRD and MHA files:\n\n"
        + _JAX.format(call=_jax_call(model, has_text)),
        _input(model),
        _output(model, has_text),
        _data(info, manifest, phantoms),
        _training(model, step),
        _evaluation(metrics),
        _limits(model, has_text, phantoms),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def last_evaluation(
    metrics_file: str | os.PathLike, evaluators: Sequence[str], *, step: int | None = None
) -> tuple[int, dict[str, float]] | None:
    """The newest evaluation that a run logged.

    Args:
        metrics_file: metrics.jsonl of a workdir; need not exist.
        evaluators: names of the run's evaluators; their numbers are "<name>/...".
        step: none after this one.

    Returns:
        Its step and its numbers, or None where there is none.
    """
    file = Path(metrics_file)
    found = None
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            logged = json.loads(line)
            at = int(logged.pop("step"))
        except (ValueError, KeyError):
            continue  # a line cut short by a kill
        numbers = {key: value for key, value in logged.items() if key.split("/")[0] in evaluators}
        if numbers and (step is None or at <= step):
            found = at, numbers
    return found


def _studies(model: Model) -> str:
    return f"{model.modality} studies" if model.spec.frame_shape else f"3D {model.modality} scans"


def _front_matter(objective: Objective) -> str:
    has_text, task = objective.has_text, "image-feature-extraction"
    if has_text:
        task = "zero-shot-image-classification"
    elif objective.segments:
        task = "image-segmentation"
    elif objective.predicts:
        task = "image-classification"
    tags = ["medclip", "medical-imaging", "radiology", "3d", *(["clip"] if has_text else []), "custom_code"]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        *(["language: en"] if has_text else []),
        "tags:",
    ]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _torch_call(model: Model, has_text: bool) -> str:
    lines, given = [], "(voxels, affine)"
    if shown := _shown_series(model):
        images = (f'"{name}": nibabel.load("{name}.nii.gz")' for name in shown[:2])
        lines, given = [f"study = {{{', '.join(images)}}}  # and others"], "study"
    if has_text:
        call = f"model.zero_shot({given})  # probability of each finding that it was trained for"
    elif model.objective.segments:
        call = f"model.segment({given})  # (1, D, H, W): 0 the background, n the n-th of model.classes"
    elif model.objective.predicts:
        call = f"model.predict({given})  # name to number, for each volume; names: model.predicts"
    else:
        call = f"model.embed_volumes({given}).mean"
    return "\n".join([*lines, call])


def _given(model: Model) -> str:
    if not model.spec.frame_shape:
        return _SCAN
    height, width = model.spec.frame_shape
    return _STUDY.format(height=height, width=width)


def _shown_series(model: Model) -> list[str]:
    """The series of frames that it looks at, [] where it reads volumes."""
    chosen = model.config["data"].get("views")
    return [name for name in model.spec.views if not chosen or name in chosen]


def _jax_call(model: Model, has_text: bool) -> str:
    given = "STUDY_FOLDER" if model.spec.frame_shape else "scan.nii.gz"
    if model.objective.segments:
        return 'model.segment("scan.nii.gz").save("labels.nii.gz")  # on the scan\'s own grid'
    if model.objective.predicts:
        return f'model.predict("{given}")'
    if not has_text:
        return f'model.embed_volumes("{given}")'
    return f'model.zero_shot("{given}", {json.dumps(list(model.spec.findings[:2]))})'


def _parts(model: Model) -> list[str]:
    """How to have more than vectors of whole volumes in PyTorch, where the model tells it."""
    objective, sections = model.objective, []
    if objective.selects_patches:
        sections += [
            "Patches as vectors in the space of texts, in their places:",
            "volume = model.prepare(voxels, affine)\n"
            "grid = model.vision.encoder.grid  # patches along depth, height, width\n"
            "patches = model.embed_patches(volume).unflatten(1, grid)  # (1, d, h, w, E), of length 1",
            "Which patches the sentences of a report are about, each a string:",
            "found = model.select(volume, [SENTENCE, SENTENCE])\n"
            "found.similarity.unflatten(2, grid)  # (1, 2, d, h, w) cosines; the first sentence's at [0, 0]\n"
            "found.count  # (1, 2): so many of the most similar patches",
        ]
    if objective.predicts_organs:
        grid = "" if objective.selects_patches else "grid = model.vision.encoder.grid\n"
        sections += [
            "How much of each patch each organ fills:",
            f"{grid}shares = model.predict_organs(volume)  # (1, N, organs), each in [0, 1]\n"
            "shares.unflatten(1, grid)  # (1, d, h, w, organs)\n"
            f"model.organ_names  # {_listed(objective.organ_names())}",
        ]
    if objective.segments:
        sections += [
            f"It looks at crops of {_times(objective.crop_shape())} voxels. Training goes by logits of crops "
            "(B, d, h, w) of prepared HU, with gradients:",
            "model.logits(crops)  # (B, d, h, w, 1 + classes)\n"
            f"model.classes  # {_listed(objective.segmented_classes())}",
        ]
    if objective.fills_words:
        sections += [
            "The decoders of hidden patches and hidden words, which training needed, are in the file, too:",
            "model.reconstruct(volume, keep=model.seen).completed  # as many patches as training saw\n"
            'model.word_logits(volume, ["There is a [MASK] ."])  # (1, L, words of the vocabulary)',
        ]
    return [part if index % 2 == 0 else f"```python\n{part}\n```" for index, part in enumerate(sections)]


def _input(model: Model) -> str:
    if model.spec.frame_shape:
        return _frame_input(model)
    crop = {"center": "the middle of the scan", "box": "a box given with each scan"}.get(
        model.crop, f"the {model.crop.replace('_', ' ')}"
    )
    shape, spacing = model.spec.shape, model.spec.spacing
    if None in spacing:
        grid = (
            f"{_times(shape)} voxels (superior, anterior, right), to which the complete scan is resized, "
            "whatever its extent: nothing is cut off or padded, and a voxel has other mm in every scan."
        )
    else:
        grid = (
            f"{_times(shape)} voxels of {_times(spacing)} mm (superior, anterior, right), around {crop}, air "
            "(-1024 HU) outside."
        )
    lines = ["## Input", "", f"* {grid} The model's own `prepare` does it."]
    for tower in _towers(model):
        if tower.get("windows"):
            windows = ", ".join(f"{low:g} to {high:g}" for low, high in tower["windows"])
            lines.append(f"* Windows of the network, HU: {windows}.")
    if model.crop != "center":
        lines.append(
            "* Give `center=(x, y, z)`, RAS mm, of that place with every scan; else its middle is used."
        )
    if model.objective.has_text:
        lines.append(f"* Texts of up to {model.config['data']['text_length']} tokens; longer ones are cut.")
    return "\n".join(lines)


def _frame_input(model: Model) -> str:
    data = model.config["data"]
    lines = [
        "## Input",
        "",
        f"* Pictures of {_times(model.spec.frame_shape)} pixels of the series "
        f"{_listed(_shown_series(model))}, one series after the other in this order: of more than "
        f"{data['frames']}, one of each equal interval. The model's own `prepare` does it.",
        "* Intensities of 0 to 4095, between two percentiles of their series; slices in the plane that they "
        "were taken in, columns to the patient's left and rows to the feet (in a sagittal or axial plane: to "
        "the back), resampled and cut in that plane as `medclip prepare` does.",
    ]
    if model.objective.has_text:
        lines.append(f"* Texts of up to {data['text_length']} tokens; longer ones are cut.")
    return "\n".join(lines)


def _output(model: Model, has_text: bool) -> str:
    import jax

    shapes = input_shapes(model.objective, model.spec, model.config["data"])
    batch = {name: jax.ShapeDtypeStruct((1, *one.shape), one.dtype) for name, one in shapes.items()}
    mean, log_variance = jax.eval_shape(model.objective.embed_volumes, batch)
    what = "study" if model.spec.frame_shape else "volume"
    of = f"Of a {what}, and of a text" if has_text else f"Of a {what}"
    lines = ["## Output", ""]
    if log_variance is None:
        lines.append(f"{of}, a point: {mean.shape[1]} numbers of length 1, compared by the cosine.")
    else:
        lines += [
            f"{of}, a Gaussian: `mean`, {mean.shape[1]} numbers of length 1, and `log_variance`, the natural "
            "logarithms of as many variances. Two are compared by the cosine of the means less half of all "
            "variances of both (1 - CSD / 2); the sum of its variances says how uncertain one is. ONNX and "
            "StableHLO files, where there are some, give both in this order.",
        ]
    return "\n".join(lines)


def _phantoms(info: PreparedInfo | None) -> str:
    """What phantoms a model was trained on, "" where it was on patients."""
    measured = set() if info is None else set(info.measurements)
    if measured == CINE_MEASUREMENTS:
        return "beating hearts in cardiac MR with impressions written for them (`medclip_jax.corpora.cine`)"
    if measured >= PHANTOM_MEASUREMENTS:
        return "procedural chest CTs with reports written for them (`medclip_jax.corpora.phantom`)"
    return ""


def _data(info: PreparedInfo | None, manifest: Sequence[Mapping[str, Any]], phantoms: str) -> str:
    if info is None:
        return "## Training data\n\nNothing is recorded."
    lines = ["## Training data", ""]
    if phantoms:
        lines += [f"**Generated phantoms, no patients**: {phantoms}.", ""]
    if manifest:
        counts = Counter((entry.get("split", ""), entry["class"]) for entry in manifest)
        classes = sorted({key[1] for key in counts if key[0]})
        lines += [f"| split | {' | '.join(classes)} |", f"|---|{'---|' * len(classes)}"]
        order = [split for split in info.splits if any(key[0] == split for key in counts)]
        lines += [f"| {split} | {' | '.join(str(counts[split, c]) for c in classes)} |" for split in order]
        rejected = sum(count for (split, _), count in counts.items() if not split)
        lines += [
            "",
            f"{len(manifest)} studies were given, {rejected} of them rejected.",
        ]
    else:
        lines.append(
            "Volumes: " + ", ".join(f"{count} {split}" for split, count in info.splits.items()) + "."
        )
    prepared = [
        f"{series.name} to {_times(series.shape[1:])} pixels of {shown_spacing(series.spacing[1:])}"
        for series in info.series
        if series.frames
    ] or [f"to {_times(info.shape)} voxels of {shown_spacing(info.spacing)}"]
    lines += [
        "",
        f"Prepared: {'; '.join(prepared)}. "
        f"Findings: {_listed(info.findings)}. Organs: {_listed(info.organs)}.",
        *_kept_out(info),
    ]
    return "\n".join(lines)


def _kept_out(info: PreparedInfo) -> list[str]:
    """What was taken out of the reports that the model was trained on."""
    lines = []
    for quantity in info.settings.get("redact", ()):
        counts = info.settings.get("redacted", {}).get(quantity["name"], {})
        lines.append(
            f"Its reports did not state {quantity['about']} (`--redact {quantity['name']}`: "
            f"{counts.get('passages', 0)} passages of {counts.get('records', 0)} reports were taken out). "
            "Texts that are given to the model are used as they are."
        )
    if info.settings.get("scrub"):
        lines.append(
            "Personal data in its reports was replaced as far as it was found "
            f"(`--scrub {info.settings['scrub']}`), which is no guarantee."
        )
    return [line for text in lines for line in ("", text)]


def _training(model: Model, step: int | None) -> str:
    config = model.config
    rows = {
        "objective": config["objective"]["name"],
        "parameters": f"{_parameters(model):,}",
        **model.objective.towers(),
    }
    if model.objective.has_text:
        rows["logit scale"] = f"{model.logit_scale:.4g}"
    if step is not None:
        rows["step"] = f"{step:,}"
    # A model that was itself loaded from an export brings no settings of a run.
    if config.get("batch_size") and step is not None:
        optimizer = config["optimizer"]
        rows["batch size"] = f"{config['batch_size']:,}"
        rows["learning rate"] = f"{optimizer['learning_rate']:g}, {optimizer['schedule']}"
        rows["weight decay"] = f"{optimizer['weight_decay']:g}"
        rows["moving average"] = f"{config['ema']['decay']:g}" if config["ema"]["decay"] else "none"
    towers = _towers(model)
    rows["trained in"] = ", ".join(dict.fromkeys(tower["dtype"] for tower in towers if "dtype" in tower))
    started = [
        what
        for what, given in (
            ("an earlier run", config.get("initial_weights", {}).get("workdir")),
            ("a published volume tower", any(tower.get("weights") for tower in towers)),
            ("a published text encoder", any(tower.get("folder") for tower in towers)),
        )
        if given
    ]
    if started:
        rows["started from"] = (
            " and ".join(started) + " (name them and their licenses before you publish this)"
        )
    lines = ["## Model and training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([*lines, "", "All settings of the model: `config.json`."])


def _evaluation(metrics: tuple[int, Mapping[str, float]] | None) -> str:
    if metrics is None:
        return (
            "## Evaluation\n\nThe run logged no evaluation. `medclip evaluate --workdir WORKDIR` makes one: "
            "add its numbers here, with the data they were measured on."
        )
    step, numbers = metrics
    shown = {
        name: f"{value:.4g}"
        for name, value in numbers.items()
        if value is not None and math.isfinite(value) and not re.search(r"/(present|absent)/", name)
    }
    for name in shown:
        if (counts := _counts(name, numbers)) and not is_enough(*counts):
            shown[name] = f"{TOO_FEW} ({counts[0]:g} present, {counts[1]:g} absent)"
    lines = [
        f"## Evaluation\n\nOf the run itself, at step {step:,}, on held-out data:",
        "",
        "| metric | value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value} |" for name, value in sorted(shown.items())]
    return "\n".join(lines)


def _counts(name: str, numbers: Mapping[str, float]) -> tuple[float, float] | None:
    """Volumes with and without the finding that a number is of, where the run logged them."""
    evaluator, _, rest = name.partition("/")
    finding = rest.rpartition("/")[2]
    counts = tuple(numbers.get(f"{evaluator}/{kind}/{finding}") for kind in ("present", "absent"))
    return None if None in counts else counts


def _limits(model: Model, has_text: bool, phantoms: str) -> str:
    lines = [
        "## Intended use",
        "",
        "Research: embedding, searching and comparing scans"
        + (", and zero-shot classification of the findings it was trained for." if has_text else "."),
        "",
        "## Limits",
        "",
        "* Not a medical device. Not for diagnosis, triage or any decision about a patient.",
    ]
    if phantoms:
        lines.append(
            "* Trained on generated phantoms alone: what it says of a real scan means nothing. It shows that "
            "the software works."
        )
    if has_text:
        lines.append(
            "* A zero-shot probability ranks scans; it is not the chance that a patient has the finding."
        )
        lines.append("* Texts: English, in the style of the reports and sentences it was trained on.")
    lines += [
        "* Not tested on: scanners, protocols, hospitals, populations and findings other than those of the "
        "data above; children; scans with severe artifacts; sub-groups by sex, age or origin.",
        f"* Made for {model.modality} only, and for the body region and crop it was trained on; another one "
        "gives numbers all the same.",
        "* It may have learned shortcuts and biases of its training reports, and vectors may keep traces of "
        "the scans they were made from: treat vectors of patients as patient data.",
        "* License: for those who trained it to state. Add `license:` at the top before you publish it.",
    ]
    return "\n".join(lines)


def _parameters(model: Model) -> int:
    from medclip_jax.parameters import flatten, split

    return sum(int(np.prod(leaf.shape)) for leaf in flatten(split(model.objective)[1]).values())


def _towers(model: Model) -> list[Mapping[str, Any]]:
    """The sections of the objective's config, one a tower."""
    return [part for part in model.config["objective"].values() if isinstance(part, Mapping)]


def _times(sizes: Sequence[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
