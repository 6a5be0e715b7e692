"""What evaluators can be told: looked at before anything is loaded, so that a mistake costs no time."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from medclip_jax.evaluation.chosen_volumes import VOLUMES
from medclip_jax.evaluation.class_probe import evaluate_class_probe
from medclip_jax.evaluation.embeddings import TEXT_FIELDS
from medclip_jax.evaluation.few_shot import evaluate_few_shot
from medclip_jax.evaluation.grounding import evaluate_grounding
from medclip_jax.evaluation.knn import DISTANCES, evaluate_knn
from medclip_jax.evaluation.library import evaluate_library
from medclip_jax.evaluation.masked_words import evaluate_masked_words
from medclip_jax.evaluation.means_alone import RANKINGS
from medclip_jax.evaluation.metrics import CRITERIA
from medclip_jax.evaluation.mlp_probe import evaluate_mlp_probe
from medclip_jax.evaluation.ordinal import evaluate_ordinal
from medclip_jax.evaluation.organs import evaluate_organs
from medclip_jax.evaluation.pointing import EXPLAINED, evaluate_pointing
from medclip_jax.evaluation.prediction import evaluate_prediction
from medclip_jax.evaluation.presets import label_sets, name_tables
from medclip_jax.evaluation.probe import evaluate_probe
from medclip_jax.evaluation.prognosis import evaluate_prognosis
from medclip_jax.evaluation.reconstruction import evaluate_reconstruction
from medclip_jax.evaluation.results import Result, chosen_findings
from medclip_jax.evaluation.retrieval import PAIRS, evaluate_retrieval
from medclip_jax.evaluation.segmentation import evaluate_segmentation
from medclip_jax.evaluation.spectrum import evaluate_spectrum
from medclip_jax.evaluation.subgroups import evaluate_subgroups
from medclip_jax.evaluation.survival_heads import HEADS
from medclip_jax.evaluation.task_metrics import OF_FINDINGS
from medclip_jax.evaluation.tasks import FEATURES
from medclip_jax.evaluation.uncertainty import evaluate_uncertainty
from medclip_jax.evaluation.views import evaluate_views
from medclip_jax.evaluation.vocabulary import evaluate_vocabulary
from medclip_jax.evaluation.volume_retrieval import LEFT_OUT, MATCHES, evaluate_volume_retrieval
from medclip_jax.evaluation.zero_shot import (
    ENSEMBLES,
    SAME_SPLIT,
    SAMPLES,
    SCORES,
    TIES,
    evaluate_zero_shot,
)
from medclip_jax.reports.names import UnknownFinding, finding_name
from medclip_jax.reports.places import read_places
from medclip_jax.reports.prompts import POSITIVE_ONLY, WORDINGS

if TYPE_CHECKING:
    from medclip_jax.reports.definitions import Findings
    from medclip_jax.shards.read import PreparedInfo

EVALUATORS: dict[str, Callable[..., Result]] = {
    "zero_shot": evaluate_zero_shot,
    "retrieval": evaluate_retrieval,
    "volume_retrieval": evaluate_volume_retrieval,
    "ordinal": evaluate_ordinal,
    "uncertainty": evaluate_uncertainty,
    "spectrum": evaluate_spectrum,
    "grounding": evaluate_grounding,
    "masked_words": evaluate_masked_words,
    "organs": evaluate_organs,
    "reconstruction": evaluate_reconstruction,
    "views": evaluate_views,
    "segmentation": evaluate_segmentation,
    "pointing": evaluate_pointing,
    "library": evaluate_library,
    "prediction": evaluate_prediction,
    "probe": evaluate_probe,
    "class_probe": evaluate_class_probe,
    "knn": evaluate_knn,
    "few_shot": evaluate_few_shot,
    "mlp_probe": evaluate_mlp_probe,
    "vocabulary": evaluate_vocabulary,
    "prognosis": evaluate_prognosis,
    "subgroups": evaluate_subgroups,
}
"""Kind of evaluator to its function. Its keyword arguments are the evaluator's settings."""

_WHEN_NAMED = (
    "pointing",
    "volume_retrieval",
    "probe",
    "class_probe",
    "knn",
    "few_shot",
    "mlp_probe",
    "vocabulary",
    "prognosis",
    "subgroups",
)

USUAL = tuple(name for name in EVALUATORS if name not in _WHEN_NAMED)
"""What runs where none is named: the probes embed the training split, too, which may take long, what volumes
find `library` says with pictures, and few sets have groups."""

GIVEN = (
    "load_split",
    "load_random",
    "embedder",
    "open_records",
    "open_manifest",
    "open_label_maps",
    "results",
)
"""Keyword arguments that the runner gives to evaluators that have them: no settings."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "labels": ("labels", "findings"),
    "template": WORDINGS,
    "score": SCORES,
    "ranking": RANKINGS,
    "criterion": CRITERIA,
    "text": tuple(TEXT_FIELDS),
    "baseline": ("none", "random"),
    "features": FEATURES,
    "distance": DISTANCES,
    "explain": EXPLAINED,
    "label_set": ("", *label_sets()),
    "names": ("", *name_tables()),
    "ensemble": ENSEMBLES,
    "ties": TIES,
    "volumes": VOLUMES,
    "sample": SAMPLES,
    "pairs": PAIRS,
    "match": MATCHES,
    "leave_out": LEFT_OUT,
    "head": tuple(HEADS),
    "metric": OF_FINDINGS,
}
"""Setting to the values that it can have."""

_OF_PAIRS = ("zero_shot", "uncertainty")
"""Evaluators that compare a positive prompt with a negative one."""

_AT_LEAST_ONE = (
    "bins",
    "subset_draws",
    "pool_repeats",
    "seeds",
    "among",
    "repeats",
    "epochs",
    "hidden",
    "batch",
    "retrieval_batch",
    "neighbors",
    "groups",
)

_WHOLE = ("pools",)
"""Settings that are a list of whole numbers, by default an empty one."""

_ABOVE_ZERO = ("shares", "penalties", "shots", "ks", "horizons")
"""Settings that are a list of such numbers, at least one; shares go up to 1."""


def default_evaluators() -> dict[str, dict[str, Any]]:
    """Every evaluator with its default settings, as a config spells them."""
    return {name: {"kind": name, **_defaults(name)} for name in EVALUATORS}


def check_evaluators(
    evaluators: Mapping[str, Mapping[str, Any]], where: str = ""
) -> dict[str, tuple[Callable[..., Result], dict[str, Any]]]:
    """Check names, settings and values, without data and model.

    Args:
        evaluators: name to settings; `kind` picks the evaluator and defaults to the name.
        where: what stands before a name in the message, such as "config.evaluation.evaluators.".

    Returns:
        Name to the function and its settings.

    Raises:
        ValueError: an unknown evaluator or setting (the message names the nearest), or a value that the
            setting cannot have.
    """
    checked = {}
    for name, given in evaluators.items():
        if not hasattr(given, "items"):
            raise ValueError(f"{where}{name} must be a dict of settings, not {given!r}")
        settings = dict(given.items())
        kind = settings.pop("kind", name)
        if kind not in EVALUATORS:
            raise ValueError(
                f"no evaluator {kind!r} for {where}{name}.{_nearest(kind, EVALUATORS)} There are "
                f"{', '.join(EVALUATORS)}. A name of your own needs kind='...'"
            )
        known = _defaults(kind)
        for key, value in settings.items():
            if key not in known:
                raise ValueError(
                    f"no {where}{name}.{key}.{_nearest(key, known, f'{where}{name}.')} {name!r} has the "
                    f"settings {', '.join(known)}"
                )
            _check_value(f"{where}{name}.{key}", key, value, known[key])
        template = settings.get("template", known.get("template"))
        if kind in _OF_PAIRS and template in POSITIVE_ONLY and settings.get("score") != "positive_only":
            raise ValueError(
                f"{where}{name}.template={template!r} has prompts for presence alone: "
                + (f"set {where}{name}.score='positive_only'" if "score" in known else "use another")
            )
        checked[name] = EVALUATORS[kind], settings
    return checked


def check_shards(
    evaluators: Mapping[str, Mapping[str, Any]],
    info: PreparedInfo,
    split: str,
    definitions: Findings | None = None,
    learned: PreparedInfo | None = None,
) -> None:
    """Check that prepared shards hold what the evaluators want of them.

    Args:
        evaluators: as `check_evaluators` accepts them.
        info: of the shards.
        split: to evaluate on.
        definitions: the findings that are known; None for those of the shards.
        learned: of another set that is learned from; None for other splits of the same.

    Raises:
        ValueError: a split that a threshold is chosen on, or that a probe learns from, is not there, or is
            the split itself; an unknown finding.
    """
    from medclip_jax.shards.read import check_split

    definitions = info.definitions if definitions is None else definitions
    for name, (function, settings) in check_evaluators(evaluators).items():
        threshold = settings.get("threshold", "argmax")
        if threshold == split and threshold != SAME_SPLIT and learned is None:
            raise ValueError(
                f"{name}.threshold={threshold!r} is the split being scored: a threshold chosen there "
                'flatters F1 and accuracy; use another split or "argmax", or "test", which chooses on the '
                "scored split and is marked as such"
            )
        known = inspect.signature(function).parameters
        others = {
            key: settings.get(key, known[key].default) for key in ("train", "validation") if key in known
        }
        if threshold not in ("argmax", SAME_SPLIT):
            others["threshold"] = threshold
        if settings.get("holdout"):
            others.pop("train", None)  # the split itself is cut in two
        if settings.get("folds"):
            others = {}  # the split itself is cut
        for key, other in others.items():
            if other == split and learned is None:
                raise ValueError(f"{name}.{key}={other!r} is the split being scored: use another")
            try:
                check_split(info if learned is None else learned, other)
            except ValueError as error:
                raise ValueError(f"{name}.{key}: {error}") from None
        for key in ("findings", "classes"):
            chosen = label_sets().get(settings.get("label_set", "")) if key == "findings" else None
            try:
                chosen_findings(
                    settings.get(key, ()), chosen.findings if chosen else info.findings, definitions
                )
            except ValueError as error:
                raise ValueError(f"{name}.{key}: {error}") from None
        single = [("finding", settings["finding"])] if "finding" in settings else []
        for key, finding in (*single, *((k, f) for k in ("focal", "diffuse") for f in settings.get(k, ()))):
            try:
                finding_name(finding, definitions=definitions)
            except UnknownFinding as error:
                raise ValueError(f"{name}.{key}: {error}") from None
        try:
            read_places(settings.get("places", ()))
        except ValueError as error:
            raise ValueError(f"{name}.places: {error}") from None


def _defaults(kind: str) -> dict[str, Any]:
    parameters = inspect.signature(EVALUATORS[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN}


def _check_value(where: str, key: str, value: Any, default: Any) -> None:
    if key in ("findings", "classes", "clinical", "risks") and isinstance(value, str):
        return  # names with commas between, see `chosen_findings`
    if isinstance(default, tuple):
        wanted = f"a list, such as {default or ('cardiomegaly',)}"
        if isinstance(value, list | tuple):
            member = default[0] if default else (1 if key in _WHOLE else "")
            for item in value:
                _check_value(f"{where}, an entry", "", item, member)
                if key in _ABOVE_ZERO and not 0 < item <= (1 if key == "shares" else math.inf):
                    upper = " and up to 1" if key == "shares" else ""
                    raise ValueError(f"{where}, an entry={item!r}: it must be a number above 0{upper}")
            if value or key not in _ABOVE_ZERO:
                return
    elif isinstance(default, dict):
        wanted = "a dict of lists of rising numbers, such as {'age': (0, 50, 65, 120)}"
        if hasattr(value, "items") and all(_rises(edges) for _, edges in value.items()):
            return
    elif isinstance(default, str):
        if not isinstance(value, str):
            wanted = "a text"
        elif key in _CHOICES and value not in _CHOICES[key]:
            choices = ", ".join(one or '""' for one in _CHOICES[key])
            raise ValueError(
                f"{where}={value!r}: it must be one of {choices}.{_nearest(value, _CHOICES[key])}"
            )
        else:
            return
    else:
        whole = isinstance(default, int)
        low = 1 if key in _AT_LEAST_ONE else 0
        wanted = f"a {'whole ' if whole else ''}number, {low} or more"
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if key == "holdout" and fits and value >= 1:
            raise ValueError(f"{where}={value!r}: it is the share of patients to score, below 1")
        if fits and math.isfinite(value) and value >= low:
            return
    raise ValueError(f"{where}={value!r}: it must be {wanted}")


def _rises(edges: Any) -> bool:
    return (
        isinstance(edges, list | tuple)
        and len(edges) > 1
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in edges)
        and all(low < high for low, high in pairwise(edges))
    )


def _nearest(text: Any, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(str(text), list(known), n=1, cutoff=0.4)
    return f" Did you mean {prefix}{near[0]}?" if near else ""
