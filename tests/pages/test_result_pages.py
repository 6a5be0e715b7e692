"""Pages: self-contained, escaped, complete; figures: right way up, right aspect, right values."""

import base64
import json
import re
import typing
from html.parser import HTMLParser

import numpy as np
import pytest

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.ordinal import evaluate_ordinal
from medclip_jax.evaluation.results import Table
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.settings import EVALUATORS
from medclip_jax.evaluation.volume_retrieval import evaluate_volume_retrieval
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot
from medclip_jax.pages import demo, figures
from medclip_jax.pages.evaluation import write_evaluation_page
from medclip_jax.pages.html import Page
from medclip_jax.pages.result_sections import Place, add_section

FINDINGS = ("cardiomegaly", "pericardial_effusion")
SPACING = (4.0, 2.0, 2.0)
SHAPE = (8, 12, 16)


def encode_texts(texts):
    vectors = np.array([np.random.default_rng(list(t.encode())).normal(size=8) for t in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def evaluation():
    generator = np.random.default_rng(0)
    volumes = generator.normal(size=(30, 8))
    labels = generator.choice([-1, 1], (30, 2)).astype(np.int8)
    data = EmbeddedSplit(
        name="test",
        volumes=(volumes / np.linalg.norm(volumes, axis=1, keepdims=True)).astype(np.float32),
        studies=np.arange(30),
        patients=np.arange(30),
        labels={name: labels[:, i] for i, name in enumerate(FINDINGS)},
        measurements={"cac_grade": np.arange(30) % 5.0},
        texts={"report": [f"<script>alert({i})</script> & more" for i in range(30)]},
    )
    results = {
        "zero_shot": evaluate_zero_shot(data, encode_texts, draws=20),
        "retrieval": evaluate_retrieval(data, encode_texts),
        "ordinal": evaluate_ordinal(data, encode_texts, draws=0),
    }
    return Evaluation("test", 30, results, {"probe": "nothing to probe: do this"}, data, 1.5)


class Balance(HTMLParser):
    """Collects tags that are opened and not closed, or closed and not opened, and all links."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.stack, self.wrong, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)


def check_self_contained(text):
    parser = Balance()
    parser.feed(text)
    assert parser.wrong == []
    assert parser.stack == []
    assert "script" not in parser.tags
    assert all(link.startswith(("data:image/", "#")) for link in parser.links)
    assert not re.search(r"@import|url\(|https?://", text)
    anchors = set(re.findall(r'<section id="([^"]+)"', text))
    assert {link[1:] for link in parser.links if link.startswith("#")} == anchors
    for picture in re.findall(r"data:image/png;base64,([^\"]+)", text):
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    return parser


def results(evaluation, **changes):
    volume = np.random.default_rng(1).integers(-1000, 300, SHAPE).astype(np.int16)
    records = [{"volume": volume}] * 30
    part = np.clip(volume / 1000, -1, 1)
    fields = {
        "spacing": SPACING,
        "evaluation": evaluation,
        "seconds": {"phantoms": 30.0, "train": 95.5},
        "peak_memory_gb": 2.25,
        "summary": {"machine": "two cores & more"},
        "curves": [demo.Curves("Stage 1", [{"step": i, "loss": 1 / (i + 1)} for i in range(30)])],
        "reconstructions": [demo.ReconstructionView(part, np.where(part > 0, np.nan, part), part)],
        "heat_maps": [demo.HeatMapView("There is X.", volume, np.ones(SHAPE), 0.25)],
        "gallery": [demo.gallery_query(evaluation.data, encode_texts, records, 3, count=4)],
        "baseline": {"cardiomegaly": 0.5},
        "real_scan": demo.RealScan("chest", volume, {"cardiomegaly": 0.75}, ("a-note",)),
        "commands": "medclip embed M S --text 'a < b'",
    }
    return demo.DemoResults(**{**fields, **changes})


def test_demo_page_is_whole(evaluation, tmp_path):
    text = demo.write_demo_page(tmp_path / "new" / "report.html", results(evaluation)).read_text()
    parser = check_self_contained(text)
    for part in (
        "mean zero-shot AUROC",
        "2.1 min",
        "2.2 GB",
        "two cores &amp; more",
        "a &lt; b",
        "nothing to probe",
        "Masked autoencoder",
        "a-note",
        "0.750",
        "&lt;script&gt;alert(3)",
    ):
        assert part in text, part
    assert parser.tags.count("img") >= 5 + 4


def test_demo_page_without_the_optional_parts(evaluation, tmp_path):
    bare = demo.DemoResults(SPACING, evaluation, {"train": 5.0}, 1.0)
    text = demo.write_demo_page(tmp_path / "report.html", bare).read_text()
    check_self_contained(text)
    assert "A real scan" not in text
    assert "Masked autoencoder" not in text


def test_evaluation_page(evaluation, tmp_path):
    path = write_evaluation_page(tmp_path / "page.html", evaluation, {"steps": 3, "name": "<b>"})
    text = path.read_text()
    check_self_contained(text)
    for part in ("Keyword to image", "grade &gt;= 4", "bootstrap over patients", "&lt;b&gt;&quot;", "argmax"):
        assert part in text, part


def test_equal_results_give_equal_pages(evaluation, tmp_path):
    one, two = (write_evaluation_page(tmp_path / f"{i}.html", evaluation).read_bytes() for i in (1, 2))
    assert one == two


def test_pools_and_volumes_by_a_volume_stand_on_the_page(evaluation, tmp_path):
    data = evaluation.data
    results = {
        "pools": evaluate_retrieval(data, encode_texts, subset=0, pools=(8, 64), pool_repeats=3),
        "volumes": evaluate_volume_retrieval(data, match="any", ks=(1, 5)),
    }
    path = write_evaluation_page(tmp_path / "page.html", Evaluation("test", 30, results, {}, data, 1.0))
    text = path.read_text()
    check_self_contained(text)
    for words in ("Retrieval in pools", "Volumes by a volume", "what a random order gives", "R@8", "MAP@5"):
        assert words in text


def test_gallery_shows_the_match_wherever_it_ranks(evaluation):
    data = evaluation.data
    records = [{"volume": np.full(SHAPE, i, np.int16)} for i in range(30)]
    for index in range(10):
        query = demo.gallery_query(data, encode_texts, records, index, count=3)
        cosines = data.volumes.astype(float) @ encode_texts([data.texts["report"][index]])[0].astype(float)
        order = list(np.argsort(-cosines))
        assert query.rank == order.index(index) + 1
        match = [hit for hit in query.hits if hit.match]
        assert len(match) == 1
        assert match[0].rank == query.rank
        assert match[0].volume[0, 0, 0] == index
        assert [hit.volume[0, 0, 0] for hit in query.hits[:2]] == order[:2]


def test_same_title_twice_gets_two_anchors():
    page = Page("title")
    page.section("Part")
    page.section("Part")
    check_self_contained(page.render())


def test_intervals_stand_below_their_value():
    page = Page("title")
    page.section("S")
    page.table(Table("T", ("finding", "AUROC"), (("a", "0.5 [0.4, 0.6]"),), {"n": "3"}))
    assert "<td>0.5<br><small>[0.4, 0.6]</small></td>" in page.render()


class TestFigures:
    def test_slices_are_in_radiological_convention(self):
        volume = np.full((6, 10, 8), -1000, np.int16)
        volume[5, 9, 7] = 1000  # most superior, anterior, right
        figure = figures.slices(volume, (5.0, 2.0, 3.0), at=(5, 9, 7))
        panels = figure.axes[:3]
        for panel, (height, width) in zip(panels, ((20, 24), (30, 24), (30, 20)), strict=True):
            image = panel.get_images()[0]
            assert image.get_array()[0, 0] == 1000  # upper left: right or anterior, anterior or superior
            assert image.get_array().ravel()[1:].max() == -1000
            assert image.get_extent() == [0, width, 0, height]  # mm
            assert panel.get_aspect() == 1

    def test_heat_peaks_where_the_slices_cross(self):
        heat = np.zeros((6, 10, 8))
        heat[2, 3, 5] = 4.0
        figure = figures.slices(np.zeros((6, 10, 8), np.int16), (1.0, 1.0, 1.0), heat=heat)
        for panel, name in zip(
            figure.axes[:3], ("slice 3 of 6", "slice 4 of 10", "slice 6 of 8"), strict=True
        ):
            assert name in panel.get_title()
            assert panel.get_images()[1].get_array().max() == 1.0
        assert len(figure.axes) == 4  # the color bar

    def test_heat_of_zeros_is_drawn(self):
        figure = figures.slices(np.zeros(SHAPE, np.int16), SPACING, heat=np.zeros(SHAPE))
        assert figure.axes[0].get_images()[1].get_array().max() == 0

    def test_curves_leave_out_what_was_not_logged(self):
        records = [{"step": i, "loss": float(i), "validation": None} for i in range(50)]
        figure = figures.curves(records, ("loss", "none_such", "validation"))
        assert [panel.get_title() for panel in figure.axes] == ["loss"]
        bold = figure.axes[0].lines[1].get_ydata()
        assert bold[20] == pytest.approx(20)  # the mean of a line is the line
        assert bold[0] == pytest.approx(np.mean(np.arange(3)))

    def test_nothing_was_logged(self):
        assert "nothing" in figures.curves([], ("loss",)).axes[0].texts[0].get_text()

    def test_roc_shows_the_curve_and_its_area(self, evaluation):
        result = evaluation.results["zero_shot"]
        figure = figures.roc(result)
        scores = result.findings["cardiomegaly"]
        x, y = figure.axes[0].lines[1].get_data()
        assert np.trapezoid(y, x) == pytest.approx(scores.values["auroc"], abs=1e-12)
        assert f"{scores.values['auroc']:.3f}" in figure.axes[0].texts[0].get_text()

    def test_bars_and_baseline(self, evaluation):
        result = evaluation.results["zero_shot"]
        figure = figures.auroc_bars(result, {"cardiomegaly": 0.4, "pericardial_effusion": 0.6})
        panel = figure.axes[0]
        widths = [bar.get_width() for bar in panel.patches]
        assert widths == pytest.approx(
            [result.findings[name].values["auroc"] for name in FINDINGS] + [result.means["auroc"]]
        )
        assert list(panel.collections[0].get_offsets()[:, 0]) == pytest.approx([0.4, 0.6, 0.5])

    def test_reconstruction_covers_hidden_patches(self):
        original = np.zeros(SHAPE)
        visible = original.copy()
        visible[:, :6] = np.nan
        figure = figures.reconstruction(original, visible, original, SPACING)
        cover = figure.axes[1].get_images()[1].get_array()  # on top of the original
        assert cover.mask.mean() == 0.5
        assert not cover.mask[6:].any()  # posterior lies below
        assert [len(panel.get_images()) for panel in figure.axes[:3]] == [1, 2, 1]

    def test_letters_name_the_sides_of_each_plane(self):
        volume = np.zeros(SHAPE)
        for axis, panel in enumerate(figures.slices(volume, SPACING).axes[:3]):
            where = {text.get_text(): text.get_position() for text in panel.texts}
            left, right, above, below = figures.SIDES[axis]
            assert where[left][0] < 0.1 < 0.9 < where[right][0]
            assert where[below][1] < 0.1 < 0.9 < where[above][1]

    def test_thumbnail_has_the_aspect_of_the_slice(self):
        picture = figures.thumbnail(np.zeros((4, 10, 20), np.int16), (1.0, 2.0, 2.0))
        width, height = (int.from_bytes(picture[i : i + 4]) for i in (16, 20))
        assert width / height == pytest.approx(2, rel=0.02)


def test_metrics_file_with_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert figures.read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_has_a_section(name):
    result = typing.get_type_hints(EVALUATORS[name])["return"]
    assert add_section.dispatch(result) is not add_section.dispatch(object)


def test_a_result_that_no_page_knows_says_what_is_missing():
    with pytest.raises(TypeError, match=r"results of dict: register its section with .*add_section.register"):
        add_section({}, Place(Page("title"), "mine"))
