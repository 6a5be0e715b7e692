"""Sections of a page on how a model sees: uncertainty, tokens, sentences and patches, hidden words."""

from medclip_jax.evaluation.grounding import GroundingResult
from medclip_jax.evaluation.masked_words import MaskedWordsResult, ShownWord
from medclip_jax.evaluation.organs import OrgansResult
from medclip_jax.evaluation.reconstruction import ReconstructionResult
from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.spectrum import SpectrumResult
from medclip_jax.evaluation.uncertainty import UncertaintyResult
from medclip_jax.pages import figures, grounding_figures, spectrum_figures, uncertainty_figures
from medclip_jax.pages.result_sections import Place, add_section, add_tile


@add_tile.register
def _(result: UncertaintyResult, at: Place) -> None:
    if "noise" in result.degradations:
        at.page.tile(number(result.degradations["noise"].pooled), "Spearman, uncertainty and noise")


@add_section.register
def _(result: UncertaintyResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Uncertainty", "uncertainty"),
        "Does the predicted variance grow with damage, does it tell wrong answers, are probabilities "
        "what they say?",
    )
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


@add_section.register
def _(result: SpectrumResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Token spectrum", "spectrum"),
        "How many directions do the patch tokens of each layer use, and what do they tell apart? "
        "A tower whose tokens lie along few directions, or are all alike, says little of a place.",
    )
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


@add_tile.register
def _(result: GroundingResult, at: Place) -> None:
    at.page.tile(number(result.everything.ratio, 2), "patches of sentences in their organ, x chance")


@add_section.register
def _(result: GroundingResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Sentences and patches", "grounding"),
        "Do the patches that a sentence selects lie in the organ that it names? A ratio of 1 is chance.",
    )
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


@add_section.register
def _(result: OrgansResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Organs of patches", "organs"),
        "How much of each patch each organ fills, as the model tells it. The mean map knows positions alone.",
    )
    page.table(result.table())
    for place, scan in enumerate(result.scans, 1):
        page.figure(
            grounding_figures.organ_maps(scan, list(result.organs)),
            "Organs in color over three slices: masks above, told by the model below",
            f"Scan {place}. The deeper the color, the more of the patch an organ fills.",
        )


@add_section.register
def _(result: ReconstructionResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Hidden patches", "reconstruction"),
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


@add_tile.register
def _(result: MaskedWordsResult, at: Place) -> None:
    gain = result.groups["words"].values["gain_over_none"]
    at.page.tile(number(gain), "hidden words gained by volume")


@add_section.register
def _(result: MaskedWordsResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Hidden words", "masked_words"),
        "Words of reports that the model fills in: what it gains from the volume is what it sees there.",
    )
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
