"""The page of `medclip evaluate --page`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.evaluation.few_shot import FewShotResult
from medclip_jax.evaluation.grounding import GroundingResult
from medclip_jax.evaluation.library import LibraryResult
from medclip_jax.evaluation.masked_words import MaskedWordsResult, ShownWord
from medclip_jax.evaluation.mlp_probe import MlpProbeResult
from medclip_jax.evaluation.ordinal import OrdinalResult
from medclip_jax.evaluation.organs import OrgansResult
from medclip_jax.evaluation.probe_result import ProbeResult, percent
from medclip_jax.evaluation.reconstruction import ReconstructionResult
from medclip_jax.evaluation.results import TOO_FEW, number
from medclip_jax.evaluation.retrieval import RetrievalResult
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.spectrum import SpectrumResult
from medclip_jax.evaluation.uncertainty import UncertaintyResult
from medclip_jax.evaluation.views import ViewsResult
from medclip_jax.evaluation.zero_shot import ZeroShotResult
from medclip_jax.pages import (
    figures,
    grounding_figures,
    probe_figures,
    spectrum_figures,
    uncertainty_figures,
)
from medclip_jax.pages.html import Page
from medclip_jax.pages.library import add_library


def write_evaluation_page(
    path: str | Path,
    evaluation: Evaluation,
    config: Mapping[str, Any] | None = None,
    *,
    baseline: Mapping[str, float] | None = None,
    baseline_name: str = "baseline",
) -> Path:
    """Write the tables and curves of an evaluation as one HTML file.

    Args:
        path: of the file.
        evaluation: from `medclip_jax.evaluation.run.evaluate_all`.
        config: of the run, printed at the end.
        baseline: finding to AUROC of something simpler, drawn beside the model's.
        baseline_name: what that is.

    Returns:
        The path.
    """
    page = Page(
        f"Evaluation on {evaluation.split}", f"{evaluation.count} volumes, {evaluation.seconds:.0f} s"
    )
    for result in evaluation.results.values():
        if isinstance(result, ZeroShotResult):
            mean = TOO_FEW if np.isnan(result.shown_mean) else number(result.shown_mean)
            page.tile(mean, "mean zero-shot AUROC")
        elif isinstance(result, RetrievalResult):
            k = sorted(result.image_to_text.recall)[0]
            page.tile(number(result.image_to_text.recall[k]), f"image to text R@{k}")
            page.tile(number(result.text_to_image.recall[k]), f"text to image R@{k}")
        elif isinstance(result, OrdinalResult):
            page.tile(number(result.auroc.mean), f"mean ordinal AUROC, {result.name}")
        elif isinstance(result, GroundingResult):
            page.tile(number(result.everything.ratio, 2), "patches of sentences in their organ, x chance")
        elif isinstance(result, MaskedWordsResult):
            page.tile(
                number(result.groups["words"].values["gain_over_none"]), "hidden words gained by volume"
            )
        elif isinstance(result, ViewsResult):
            page.tile(number(result.top1["gain_over_noise"]), "crops that find their volume, less noise")
        elif isinstance(result, UncertaintyResult) and "noise" in result.degradations:
            page.tile(number(result.degradations["noise"].pooled), "Spearman, uncertainty and noise")
        elif isinstance(result, ProbeResult):
            share = max(result.trained)
            mean = result.mean(share)
            value = TOO_FEW if mean is None else number(mean.value)
            page.tile(value, f"mean AUROC of the linear probe, {percent(share)} of labels")
        elif isinstance(result, FewShotResult) and result.group:
            shots = result.shots[0]
            page.tile(number(result.group.accuracy[shots].mean()), f"accuracy of the classes, {shots} shot")
        elif isinstance(result, MlpProbeResult) and result.group:
            page.tile(number(result.group.values["accuracy"]), "accuracy of the classes, MLP probe")
    add_results(page, evaluation, baseline=baseline, baseline_name=baseline_name)
    if config is not None:
        page.section("Configuration")
        page.code(json.dumps(config, indent=1, default=str))
    return page.write(path)


def add_results(
    page: Page,
    evaluation: Evaluation,
    *,
    baseline: Mapping[str, float] | None = None,
    baseline_name: str = "baseline",
) -> None:
    """Add a section for each result, and one for what was skipped.

    Args:
        page: to add to.
        evaluation: from `evaluate_all`.
        baseline: finding to AUROC of something simpler.
        baseline_name: what that is.
    """
    for name, result in evaluation.results.items():
        if isinstance(result, ZeroShotResult):
            page.section(
                _title("Zero-shot classification", name, "zero_shot"),
                "Each finding is decided by which of two prompts lies nearer to the volume; the model was "
                "never trained as a classifier. An AUROC of 0.5 is chance.",
            )
            page.figure(
                figures.auroc_bars(result, baseline, baseline_name),
                "Bars: AUROC of each finding with its interval",
                "Gray: 95 % bootstrap interval over patients. Dotted: chance."
                + (f" Diamond: {baseline_name}." if baseline else ""),
            )
            page.figure(
                figures.roc(result),
                "ROC curves, one for each finding",
                "Sensitivity against 1 - specificity at every threshold.",
            )
            page.table(result.table())
        elif isinstance(result, RetrievalResult):
            page.section(
                _title("Retrieval", name, "retrieval"),
                "R@k: share of queries with an item of their own study among the k nearest. P@k: share of "
                "volumes with the finding among the k nearest to its prompt; compare it with chance.",
            )
            for table in (result.table(), result.subset_table(), result.keyword_table()):
                if table is not None:
                    page.table(table)
        elif isinstance(result, OrdinalResult):
            page.section(
                _title("Ordered grades", name, "ordinal"),
                "One similarity ranks the volumes; each cut of the scale asks whether it separates higher "
                "grades from lower ones.",
            )
            page.figure(figures.grade_boxes(result), "Similarity to the prompt for each grade")
            page.table(result.table())
        elif isinstance(result, UncertaintyResult):
            page.section(
                _title("Uncertainty", name, "uncertainty"),
                "Does the predicted variance grow with damage, does it tell wrong answers, are probabilities "
                "what they say?",
            )
            _add_uncertainty(page, result)
        elif isinstance(result, SpectrumResult):
            page.section(
                _title("Token spectrum", name, "spectrum"),
                "How many directions do the patch tokens of each layer use, and what do they tell apart? "
                "A tower whose tokens lie along few directions, or are all alike, says little of a place.",
            )
            _add_spectrum(page, result)
        elif isinstance(result, GroundingResult):
            page.section(
                _title("Sentences and patches", name, "grounding"),
                "Do the patches that a sentence selects lie in the organ that it names? A ratio of 1 is "
                "chance.",
            )
            _add_grounding(page, result)
        elif isinstance(result, OrgansResult):
            page.section(
                _title("Organs of patches", name, "organs"),
                "How much of each patch each organ fills, as the model tells it. The mean map knows "
                "positions alone.",
            )
            page.table(result.table())
            for place, scan in enumerate(result.scans, 1):
                page.figure(
                    grounding_figures.organ_maps(scan, list(result.organs)),
                    "Organs in color over three slices: masks above, told by the model below",
                    f"Scan {place}. The deeper the color, the more of the patch an organ fills.",
                )
        elif isinstance(result, ReconstructionResult):
            page.section(
                _title("Hidden patches", name, "reconstruction"),
                "Patches that the model fills in from the others. Hidden ones are blue in the middle column; "
                "the last column keeps what was visible.",
            )
            page.table(result.table())
            for shown in result.volumes:
                page.figure(
                    figures.reconstruction(
                        shown.original,
                        shown.visible,
                        shown.completed,
                        shown.spacing,
                        title=f"window {shown.window}",
                    ),
                    "Original, visible and completed slices in three planes",
                )
        elif isinstance(result, MaskedWordsResult):
            page.section(
                _title("Hidden words", name, "masked_words"),
                "Words of reports that the model fills in: what it gains from the volume is what it sees "
                "there.",
            )
            _add_words(page, result)
        elif isinstance(result, ViewsResult):
            page.section(
                _title("Views of volumes", name, "views"),
                "Crops that read a report and look for its volume. What noise in their place finds, too, was "
                "found in the report.",
            )
            page.table(result.table())
        elif isinstance(result, ProbeResult):
            page.section(
                _title("Linear probe", name, "probe"),
                "A logistic regression for each finding on the features of the frozen volume tower, with a "
                "part of the training labels and with all of them.",
            )
            if result.shown:
                page.figure(
                    probe_figures.label_shares(result),
                    "AUROC against the share of the training labels",
                    "Band: 95 % bootstrap interval over patients. Dotted: chance."
                    + (" Gray, dashed: the same architecture with random weights." if result.random else ""),
                )
            for table in result.tables():
                page.table(table)
        elif isinstance(result, LibraryResult):
            page.section(
                _title("Library", name, "library"),
                "Every volume is looked up among those of other patients, by its pictures alone. P@k: share "
                "of the k nearest that have the same diagnosis or finding; compare it with chance.",
            )
            add_library(page, result)
        elif isinstance(result, FewShotResult):
            page.section(
                _title("Few-shot", name, "few_shot"),
                "A few examples of each class, drawn many times; a volume belongs to the class whose mean is "
                "nearest. Nothing is trained.",
            )
            page.figure(
                probe_figures.shots(result),
                "Accuracy and AUROC against the number of examples",
                "Lines: mean over the draws. Band: their standard deviation.",
            )
            for table in result.tables():
                page.table(table)
        elif isinstance(result, MlpProbeResult):
            page.section(
                _title("MLP probe", name, "mlp_probe"),
                "A small classifier on the features of the frozen volume tower, trained with labels.",
            )
            for table in result.tables():
                page.table(table)
    if evaluation.skipped:
        page.section("Not evaluated")
        for name, reason in evaluation.skipped.items():
            page.paragraph(f"{name}: {reason}", note=True)


def _add_uncertainty(page: Page, result: UncertaintyResult) -> None:
    if result.degradations:
        page.figure(
            uncertainty_figures.degradation(result),
            "Uncertainty against the level of each kind of damage",
            "Blue: median and quartiles over the samples. Gray: single samples. Spearman's correlation of "
            "uncertainty and level over samples and levels together; in brackets its mean within a sample.",
        )
    if result.answers is not None:
        page.figure(
            uncertainty_figures.selective(result.answers),
            "Risk-coverage curves",
            "The questions are answered in the order of the predicted variance of the volume, or of the "
            "margin of the probability; the lower the curve, the better the order.",
        )
        page.figure(
            uncertainty_figures.reliability(result.answers),
            "Reliability diagram",
            "Each dot is a bin of probabilities; on the dotted line they are what they say.",
        )
    if result.inclusion is not None:
        page.figure(
            uncertainty_figures.inclusion(result.inclusion),
            "Histogram of inclusion scores",
            f"Share inside: {number(result.inclusion.share)}.",
        )
    page.table(result.table())


def _add_spectrum(page: Page, result: SpectrumResult) -> None:
    page.figure(
        spectrum_figures.decay(result),
        "Singular values of every layer on a logarithmic scale",
        "Tokens less their mean, over the first singular value. The slower the decay, the more directions "
        "carry something.",
    )
    page.figure(
        spectrum_figures.ranks(result),
        "Effective rank and token cosine by layer",
        "Lines: all tokens together, or the mean over the volumes. Gray: 5th to 95th percentile of the "
        "volumes.",
    )
    if result.maps is not None:
        shares = ", ".join(
            f"{color} {share:.0%}"
            for color, share in zip(("red", "green", "blue"), result.maps.shares, strict=True)
        )
        page.figure(
            spectrum_figures.token_maps(result.maps),
            "Slices of scans, and their tokens in colors",
            f"Tokens of layer {result.maps.layer!r} along the three directions in which those of these "
            f"scans differ most ({shares} of the variance). Places of one color are alike to the tower, "
            "within a scan and between scans.",
        )
    page.table(result.table())


def _add_grounding(page: Page, result: GroundingResult) -> None:
    page.table(result.table())
    page.table(result.organ_table())
    if result.scans:
        page.heading("What sentences select")
        page.paragraph(
            "Outlined in cyan and colored: the patches that are most similar to the sentence, as many as the "
            "model takes for it; the slices cross where most of them lie. Dotted green: patches in which the "
            "organ or the place of the finding lies."
        )
    for place, scan in enumerate(result.scans, 1):
        for sentence in scan.sentences:
            page.figure(
                grounding_figures.selection(scan, sentence),
                f"Three slices with the patches selected by: {sentence.text}",
                f"Scan {place}: \u201c{sentence.text}\u201d {grounding_figures.describe(sentence)}.",
            )


def _add_words(page: Page, result: MaskedWordsResult) -> None:
    page.table(result.table())
    if result.reports:
        page.heading("Reports, filled in")
        page.paragraph(
            "Gray: words that the model saw. Green: hidden ones that it found. Red: what it put instead, "
            "and behind it the word that stands there."
        )
    for place, report in enumerate(result.reports, 1):
        for image, label in (("own", "with its volume"), ("none", "without a volume")):
            right = sum(word.right[image] for word in report if word.hidden)
            hidden = sum(word.hidden for word in report)
            page.words(
                f"Report {place}, {label}: {right} of {hidden} found",
                (_marked(word, image) for word in report),
            )


def _marked(word: ShownWord, image: str) -> tuple[str, str, str]:
    """A word as `Page.words` takes it."""
    if not word.hidden:
        return word.text, "", ""
    if word.right[image]:
        return word.text, "right", ""
    true = word.text.rstrip()
    return word.filled[image] + word.text[len(true) :], "wrong", true


def _title(title: str, name: str, usual: str) -> str:
    return title if name == usual else f"{title}: {name}"
