"""Findings of one's own: the file, what it refuses, and how reports are read and prompts written with it."""

from pathlib import Path

import pytest

from medclip_jax.corpora.folder import folder
from medclip_jax.corpora.report_files import read_report_files
from medclip_jax.corpora.tables import TableError
from medclip_jax.reports.anatomy import states_normal
from medclip_jax.reports.definitions import BUILT_IN, DefinitionError, Findings
from medclip_jax.reports.findings import extract
from medclip_jax.reports.findings_file import FindingsFileError, choose_findings, read_findings
from medclip_jax.reports.names import UnknownFinding, finding_name
from medclip_jax.reports.prompts import pair, prompts_of
from medclip_jax.reports.statements import statements
from medclip_jax.reports.vocabulary import CARDIAC_FINDINGS, FINDINGS, Finding

SHIPPED = Path(__file__).parents[2] / "configs" / "findings" / "acute.toml"
ACS = """\
# of the emergency department
[acute_coronary_syndrome]
column = "ACS (30 d)"
words = ["acute coronary syndrome", "NSTEMI", "oedema of the myocardium"]
patterns = ['(?:acute|recent) \\w+ infarct\\w*']
excluded = ['old infarct\\w*']
positive = ["There is an acute coronary syndrome.", "Acute coronary event."]
negative = ["There is no acute coronary syndrome."]

[ffr_below_limit]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "findings.toml"
    path.write_text(ACS)
    return path


class TestFile:
    def test_what_it_defines(self, file):
        known = read_findings(file)
        assert [finding.name for finding in known.own] == ["acute_coronary_syndrome", "ffr_below_limit"]
        assert known["acute_coronary_syndrome"].phrase == "acute coronary syndrome"
        assert known["acute_coronary_syndrome"].is_read
        assert not known["ffr_below_limit"].is_read
        assert set(FINDINGS) < set(known)
        assert BUILT_IN.own == ()
        assert "acute_coronary_syndrome" not in BUILT_IN

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "defines no finding: begin one with a line such as"),
            ("[a\n", "is no TOML .*line 1"),
            ("[cardiomegaly]\n", r"line 1, \[cardiomegaly\]: 'cardiomegaly' is the library's cardiomegaly, "
             "which a definition does not change: call it otherwise, such as cardiomegaly_own"),
            ("[pericardial_effusions]\n", "is the library's pericardial_effusion"),
            ("[coronary_artery_wall_calcification]\n", "is the library's coronary_calcification"),
            ("[all]\n", "stands for several findings with --findings"),
            ('["Big Heart"]\n', r"line 1, \[Big Heart\]: .* in lower case.*, such as big_heart"),
            ("[patient_12345678]\n", "no number of five digits"),
            ("\n[a]\nwrods = ['b']\n", r"line 3, \[a\] wrods: there is no such key. Did you mean words\?"),
            ("[a]\nwords = 3\n", r'line 2, \[a\] words: 3 is no list of texts: write words = \["'),
            ("[a]\nwords = ['b', ' ']\n", "line 2.*an entry is empty: take it out"),
            ("[a]\nphrase = 3\n", "line 2.*3 is no text"),
            ("[a]\npositive = 'b'\n", "prompts are compared, present against absent: give negative"),
            ("[a]\npatterns = ['b', '(c']\n", r"line 2, \[a\] patterns: '\(c' is no regular expression"),
            ("[a]\npatterns = ['b*']\n", "matches where there is nothing"),
            ("[a]\npatterns = ['(b) \\1']\n", r"write \(\?:...\) for a group"),
            ("[a]\n[a_b]\ncolumn = 'a'\n", "'a' is the finding a, .*: title the column otherwise"),
            ("[a]\ncolumn = 'Cardiomegaly'\n", "is the library's cardiomegaly.*title the column otherwise"),
            ("a = 3\n", r"line 1, \[a\]: a finding is a section: write a line \["),
        ],
    )  # fmt: skip
    def test_what_is_refused_says_where_and_what_to_do(self, file, text, said):
        file.write_text(text)
        with pytest.raises(FindingsFileError, match=rf"findings\.toml.*{said}"):
            read_findings(file)

    @pytest.mark.parametrize(
        "pattern", [r"(?:\w+ ?)+ clot", r"(?:a|a)*b", r"\w+\w+\w+\w+ clot", "(?:x?){30}y"]
    )
    def test_patterns_whose_time_explodes_are_refused(self, file, pattern):
        file.write_text(f"[clot]\npatterns = ['{pattern}']\n")
        with pytest.raises(
            FindingsFileError, match=r"takes more than 0.05 s for a sentence.*a limit, such as"
        ):
            read_findings(file)

    def test_no_file(self, tmp_path):
        with pytest.raises(FindingsFileError, match=r"cannot read the findings file .*No such file"):
            read_findings(tmp_path / "none.toml")

    def test_shipped_example(self):
        names, known = choose_findings(["cardiac", str(SHIPPED)])
        own = ("acute_coronary_syndrome", "right_heart_strain", "significant_ffr")
        assert names == (*CARDIAC_FINDINGS, *own)
        said = "NSTEMI with a culprit lesion. No right heart strain; the RV/LV ratio is not increased."
        assert tuple(extract(said, own, definitions=known).values()) == (1, -1, 0)
        assert extract("Old infarction of the LAD.", own[:1], definitions=known) == {own[0]: 0}


class TestChoice:
    def test_names_groups_and_files(self, file):
        names, known = choose_findings(["cardiomegaly", str(file), " Emphysema", "cardiomegaly"])
        assert names == ("cardiomegaly", "acute_coronary_syndrome", "ffr_below_limit", "emphysema")
        assert [finding.name for finding in known.own] == ["acute_coronary_syndrome", "ffr_below_limit"]
        assert choose_findings(["all"]) == (tuple(FINDINGS), BUILT_IN)

    def test_two_files_that_define_one(self, file, tmp_path):
        (tmp_path / "more.toml").write_text("[acute_coronary_syndrome]\n")
        with pytest.raises(FindingsFileError, match=r"together: .* is the finding acute_coronary_syndrome"):
            choose_findings([str(file), str(tmp_path / "more.toml")])

    def test_unknown_ones_are_told_how_to_be_defined(self):
        with pytest.raises(UnknownFinding) as error:
            choose_findings(["Heart-Failure"])
        assert str(error.value).endswith(
            '    [heart_failure]\n    phrase = "heart failure"\n    words = ["heart failure"]'
        )

    def test_what_is_nearly_a_name_is_a_slip(self):
        with pytest.raises(UnknownFinding, match="perhaps cardiomegaly") as error:
            choose_findings(["cardiomegali"])
        assert "To define it" not in str(error.value)

    def test_a_file_of_another_kind(self, file):
        other = file.rename(file.with_suffix(".txt"))
        with pytest.raises(
            UnknownFinding, match=r"findings\.txt' is a file, and a findings file ends in \.toml"
        ):
            choose_findings([str(other)])


class TestReading:
    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("Acute coronary syndromes.", 1),
            ("Acute-coronary syndrome.", 1),
            ("No NSTEMI.", -1),
            ("nstemis were excluded.", -1),
            ("Oedema of the myocardium.", 1),
            ("Recent septal infarction.", 1),
            ("ACUTE SEPTAL INFARCT.", 1),
            ("Old infarction.", 0),
            ("HISTORY: NSTEMI.\nFINDINGS: Clear.", 0),
            ("xNSTEMI", 0),
        ],
    )
    def test_words_and_patterns(self, file, text, status):
        known = read_findings(file)
        names = ["acute_coronary_syndrome", "ffr_below_limit"]
        assert extract(text, names, definitions=known) == dict(zip(names, (status, 0), strict=True))

    def test_names_and_titles(self, file):
        known = read_findings(file)
        for given in ("Acute coronary syndrome", "acs 30 d", "ACS (30 D)", "acute-coronary-syndromes"):
            assert finding_name(given, definitions=known) == "acute_coronary_syndrome"
        assert finding_name("big heart", ["big_heart"]) == "big_heart"
        assert finding_name("Cardiomegaly", definitions=known) == "cardiomegaly"

    def test_prompts_and_statements(self, file):
        known = read_findings(file)
        assert pair("ffr below limit", definitions=known)[1] == "There is no ffr below limit."
        own = prompts_of("acute_coronary_syndrome", "is_present", definitions=known)
        assert own.positive == ("There is an acute coronary syndrome.", "Acute coronary event.")
        assert own.negative == ("There is no acute coronary syndrome.",)
        for name in FINDINGS:
            assert prompts_of(name, definitions=known) == tuple((text,) for text in pair(name))
        # A report cannot state what has no wording: silence does not mean absence.
        found = {"acute_coronary_syndrome": 0, "ffr_below_limit": 0, "cardiomegaly": 1}
        assert statements(found, known) == [
            "There is no acute coronary syndrome.",
            "There is cardiomegaly.",
        ]
        assert statements({"ffr_below_limit": 1}, known) == ["There is ffr below limit."]

    def test_a_sentence_that_states_one_is_not_normal(self, file):
        known = read_findings(file)
        assert states_normal("NSTEMI.")
        assert not states_normal("NSTEMI.", known)


class TestTables:
    def table(self, tmp_path, header):
        path = tmp_path / "studies.csv"
        path.write_text(f"volume,report,{header}\na.nii,Clear.,1\nb.nii,Clear.,0\n")
        return path

    @pytest.mark.parametrize("header", ["label:acute_coronary_syndrome", "Label: ACS (30 d)", "acs (30 d)"])
    def test_labels(self, file, tmp_path, header):
        known, path = read_findings(file), self.table(tmp_path, header)
        labels = [study.labels for study in folder(path, definitions=known)]
        assert labels == [{"acute_coronary_syndrome": 1}, {"acute_coronary_syndrome": -1}]
        found = read_report_files(str(path), definitions=known).reports
        assert [report.labels for report in found] == labels

    def test_an_unknown_label_says_how_to_define_it(self, tmp_path):
        path = self.table(tmp_path, "label:acute_coronary_syndrome")
        with pytest.raises(TableError) as error:
            folder(path)
        assert "label of an unknown finding 'acute_coronary_syndrome'" in str(error.value)
        assert '    [acute_coronary_syndrome]\n    phrase = "acute coronary syndrome"\n' in str(error.value)

    def test_two_columns_of_one_label(self, file, tmp_path):
        path = tmp_path / "studies.csv"
        path.write_text("volume,report,label:acute_coronary_syndrome,ACS (30 d)\na.nii,Clear.,1,0\n")
        with pytest.raises(TableError, match="several columns that mean 'acute_coronary_syndrome'"):
            folder(path, definitions=read_findings(file))


class TestDefinitions:
    def test_they_travel_as_json(self, file):
        known = read_findings(file)
        found = Findings.from_json(known.to_json())
        assert found == known
        assert hash(found) == hash(known)
        assert found.own == known.own
        assert Findings.from_json(()) == BUILT_IN

    @pytest.mark.parametrize(
        "written",
        [
            3,
            [3],
            [{"name": "a"}],
            [{"name": "a", "phrase": "a", "more": []}],
            [{"name": "a", "phrase": "a", "patterns": ["("]}],
            [{"name": "a", "phrase": "a", "positive": "b", "negative": "c"}],
            [{"name": "A b", "phrase": "a"}],
        ],
    )
    def test_damaged_json(self, written):
        with pytest.raises(ValueError, match=r"definition|finding"):
            Findings.from_json(written)

    def test_what_the_library_learns_later_keeps_the_meaning_it_had(self):
        own = Finding("cardiomegaly", "a big heart", patterns=("(?i:big heart)",))
        with pytest.raises(DefinitionError, match="the library's cardiomegaly"):
            Findings([own])
        found = Findings.from_json([{"name": "cardiomegaly", "phrase": "a big heart"}])
        assert found["cardiomegaly"].phrase == "a big heart"

    def test_others_come_in_place_of_those_of_the_same_name(self):
        one, two = Findings([Finding("a", "first"), Finding("b", "b")]), Findings([Finding("a", "second")])
        assert [finding.phrase for finding in one.updated(two).own] == ["second", "b"]
        assert one.updated(BUILT_IN) is one
