"""The words around a mention that decide how it is meant, by kind.

All over text as `medclip_jax.reports.cleaning.normalize` gives it. What each kind does stands in
`medclip_jax.reports.context`. To add a wording, add a line to its kind.
"""

from __future__ import annotations

import re

BE = r"(?:is|are|was|were|be|been|being|has been|have been)"
SEEN = (
    r"(?:observed|detected|seen|noted|identified|found|present|visuali[sz]ed|distinguished|demonstrated|evident"
    r"|encountered|monitored|followed|watched|available|selected|determined|noticed|recogni[sz]ed|appreciated"
    r"|shown|visible|appreciable|demonstrable|detectable)"
)
DEGREE = (
    r"(?:mild|minimal|small|moderate|trace|stable|unchanged|mildly|minimally|moderately|severe|tiny|slight"
    r"|persistent|subtle)"
)
_EXTENT = (
    r"(?:(?:significant|convincing|short-term|long-term|interval|obvious|relevant|appreciable|substantial"
    r"|definite|marked|major|notable|clear"
    r"|considerable|other|important|prominent|remarkable|size|dimensional|further|radiographic|radiological"
    r"|measurable|visible|apparent|overall|gross|(?:\w+ )?(?:evidence|signs?) of) ){0,3}"
)
_ADVERBS = r"(?:\w+ly |yet |been |be |so |quite |any )*"
_CHANGE = r"(?:changes?|differences?|progression|regression|alteration|variation|evolution)"
_GROWTH = (
    r"(?:increases?|decreases?|growth|reduction|improvement|worsening|enlargement|shrinkage|diminution"
    r"|expansion|resolution|clearing|clearance|resorption|progression|regression)"
)
# "No increase in heart size" denies the finding itself.
_ORGAN_SIZE = (
    r"(?:increase|enlargement)s? (?:in|of) (?:the )?(?:\w+ ){0,2}?"
    r"(?:lymph node|heart|cardiac|ventric|aort|arter|wall|bronch|calib|dens)"
)
_SIDE = r"(?:left|right)(?: side)? ?:"
_NONE = r"(?:none|no|nil|absent)\b"
_VANISHED = r"(?:resolved|disappeared|resorbed|cleared|subsided|vanished|gone)"
_EXCLUDE = r"(?:exclude|excluding|excludes|rule[ -]out|rules out|ruling out|exclusion of)"
_PRIOR = r"(?:prior|previous|earlier|old|preceding|last|outside|initial)"
_SCAN = r"(?:ct|cts|study|studies|exams?|examinations?|scans?|images?|imaging|reports?|radiographs?|x-?rays?)"
_NOW = r"(?:today|now|currently|any ?more|any longer|at present|presently|this time)"
_END = r"(?= ?(?:[.,;)\]]|$))"
_NO_ANSWER = (
    r"(?:none|no|nil|neg|negative|absent|zero|false|nothing|without|no evidence"
    rf"|not (?:present|enlarged|{SEEN[3:-1]}))"
)
_WHERE = r"bilaterally|on (?:the )?(?:left|right)|on either side"
_AFTER_ANSWER = rf"(?: (?:{SEEN[3:-1]}|significant|acute|of note|{_WHERE}))?{_END}"


def _words(phrases: str) -> tuple[str, ...]:
    """Patterns of phrases that stand for themselves, | between them."""
    return tuple(rf"\b{phrase}\b" for phrase in phrases.split("|"))


_PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # In order of precedence: words taken by one kind are not looked at for the kinds below it.
    # A template's choices: "none/mild/severe" names what could be ticked.
    (
        "choice_made",
        (
            r"[\[(] ?(?:none|no|absent|normal)(?:, ?\w+){1,6} ?[\])] ?(?=[:=-])",
            r"\b(?:none|no|yes|absent|present|normal|mild)(?: ?/ ?\w+){1,6} ?(?=[:=-])",
        ),
    ),
    (
        "choice_open",
        (
            (
                r"[:=] ?(?:n/?a|not (?:applicable|assessed|evaluated|imaged|included|reported)|unknown"
                rf"|deferred){_END}"
            ),
            rf"[:=?-] ?(?:none|no|yes|y|absent|present|normal|mild)(?: ?/ ?\w+){{1,6}}{_END}",
        ),
    ),
    # "no", "not", "without" that deny no finding.
    (
        "shield",
        (
            r"\b(?:without|lack of|no) (?:\w+ ){0,2}?contrast\b",
            r"\bnon-?contrast\w*",
            r"\bnot (?:only|just|merely|simply)\b",
            r"\bnot to mention\b",
            r"\b(?:no|without) (?:doubt|question)\b",
            r"\bnot (?:be )?(?:given|administered|used)\b",
            r"\bnot (?:in|un)(?:significant|substantial|considerable|common|remarkable|important)\b",
            r"\bnot (?:negligible|without|absent|trivial)\b",
            r"\bno (?:less|longer) than\b",
            r"\bno more than (?:an? )?(?=trace|minimal|small|tiny|mild|moderate)",
            r"\bif (?:any|present|at all)\b",
            # "... has increased, the left has resolved" says nothing of the first.
            (
                r"(?:,|;|\band|\bbut) (?:the )?(?:left|right)(?:-sided)?(?: one| side)? (?:has|have|is"
                rf"|was) (?:\w+ ){{0,2}}?{_VANISHED}\b"
            ),
            r"\b(?:can|could|may|might) ?not (?:be )?(?:\w+ )?(?:differentiated|distinguished from)\b",
            # What was not there before is new.
            rf"\b(?:not|never|nor) (?:{SEEN} |been )?(?:previously|formerly|before)\b(?: {SEEN})?",
            rf"\b(?:not|no) {SEEN} (?:previously|before)\b",
            (
                rf"\b(?:not|never) (?:\w+ )?(?:{SEEN} )?(?:in|on|at) (?:the |any "
                rf"|that )?{_PRIOR} ?(?:\w+ )?{_SCAN}\b"
            ),
        ),
    ),
    # "No larger than before" leaves open whether there is any, as a question from the clinic does.
    (
        "open",
        (
            r"\bno (?:larger|bigger|smaller|greater|more|less|fewer)\b(?=[^.;]*\bthan\b)",
            r"\bclinical(?:ly)? (?:suspicion|suspected|question|concern)(?: of| for)?\b",
            r"\bno (?:\w+ ){0,2}history of\b",
            (
                r"\b(?:physicians?|doctors?|clinicians?|surgeons?|colleagues?|team) (?:suspects?|asks?"
                r"|requests?)\b"
            ),
        ),
    ),
    # A denial of change says that the finding is there.
    (
        "unchanged",
        (
            rf"\b(?:no|not|without|nor) (?:been )?(?:any )?{_EXTENT}{_CHANGE}\b",
            (
                r"\b(?:no|not|without|n?either|nor|absence of|lack of) (?:(?!or\b"
                rf"|and\b)[\w-]+ ){{0,4}}?(?!{_ORGAN_SIZE}){_GROWTH}(?: (?:or|nor|and) {_GROWTH})? (?:in|of"
                r"|to|for|since|from|compared|as)\b"
            ),
            r"\bno (?:\w+ )?(?:worsening|progressive|progressing) (?=\w)",
            r"\bno longer (?:\w+ly )?(?:increasing|growing|enlarging|progressing|progressive)\b",
            (
                r"\bno (?:increase|decrease) in (?:the )?(?:\w+ )?(?:sizes?|numbers?|diameter"
                r"|dimensions?)\b"
            ),
            (
                rf"\b(?:not|never) {_ADVERBS}(?:changed?|changing|differ\w*|grow(?:n|ing)?|progress(?:ed"
                r"|ing)?|regress(?:ed|ing)?|improv(?:ed?|ing)|worsen(?:ed|ing)?|shr[au]nk|diminish(?:ed)?"
                r"|evolved?|decreased?|enlarged (?:since|from|compared|in the interval)"
                r"|increased? (?:in size|since|from|compared|in the)|as (?:large|big|small|extensive"
                r"|marked|prominent|severe|dense|wide|pronounced)|larger|smaller|bigger|different"
                r"|increase)\b(?! than normal)"
            ),
        ),
    ),
    # What has not gone is there.
    (
        "remains",
        (
            (
                rf"\b(?:not|never|hardly|barely|nor) {_ADVERBS}(?:resolved?|disappear(?:ed)?|resorbed"
                r"|clear(?:ed)?(?! of)|subsided?|vanish(?:ed)?|gone)\b"
            ),
            (
                r"\b(?:near(?:ly)?|almost|partial(?:ly)?|partly|incomplete(?:ly)?|largely|mostly"
                r"|subtotal(?:ly)?|virtually|practically|substantial(?:ly)?|some|slow(?:ly)?"
                r"|gradual(?:ly)?|significant(?:ly)?)[ -](?:\w+ly |complete |total |interval "
                rf"|partial )?(?:{_VANISHED}|resolution|disappearance|resorption|clearance|clearing"
                r"|regression|regressed)\b"
            ),
            (
                r"\b(?:resolved|cleared|disappeared) (?:on|in) the (?P<side>left"
                r"|right)\b(?=[^.;]{0,60}\b(?:on|in) the (?!(?P=side))(?:left|right))"
            ),
            rf"\b{_SIDE} ?{_NONE}[.,;]? {_SIDE}(?! ?{_NONE})",
            rf"\b{_SIDE}(?! ?{_NONE})[\w ]{{1,40}}[.,;]? {_SIDE} ?{_NONE}",
            r"\b(?:un|non-?)resolv(?:ed|ing)\b",
            r"\byet to (?:resolve|clear)\b",
            r"\bfail(?:ed|s|ure)? to (?:resolve|clear)\b",
        ),
    ),
    (
        "uncertain_before",
        (
            r"\babsence of\b(?=[^.;]{1,60}\bcannot be (?:confirmed|proven|assured|ensured)\b)",
            r"\bno\b(?=[^.;,]{1,60}\b(?:can|could|may) be (?:\w+ )?(?:excluded|ruled out)\b)",
            (
                r"\b(?:possibl[ey]|probabl[ey]|(?<!not )(?<!un)likely|suspicious (?:for|of)|suspected"
                r"|suspicion of|questionable|may (?:be|represent|belong|suggest|indicate|reflect)"
                r"|might (?:be|represent|reflect)|could (?:be|represent|reflect)|equivocal"
                r"|concern(?:ing)? for|differential diagnosis|doubtful|worrisome for|possibility of|query"
                r"|versus)\b"
            ),
            (
                r"\b(?:cannot|could not|may not|might not|does not|do not|did not|not|unable to"
                r"|impossible to|without|difficult to|hard to|insufficient to|inadequate to|limited to"
                rf"|fails? to|failed to|no way to) (?:\w+ ){{0,3}}?{_EXCLUDE}\b"
            ),
            r"(?:^|(?<=[ (/]))\? ?(?=\w)",
        ),
    ),
    (
        "uncertain_after",
        (
            r"\b(?:cannot|not|never|difficult to|hard to) (?:\w+ ){0,3}?(?:excluded|ruled out)\b",
            r"\b(?:exclusion|excluding it|ruling it out)\b[^.;,]{0,20}\bnot possible\b",
            (
                r"\b(?:is|are|was|were|remains?) (?:\w+ly )?(?:suspected|suspicious|questionable|possible"
                r"|doubtful|in the differential|not entirely clear)\b"
            ),
            r"\b(?:should|must|may|could|might) be considered\b",
            rf"\?(?! ?-? ?{_NO_ANSWER}{_AFTER_ANSWER})(?! ?(?:yes|present|positive){_END})",
        ),
    ),
    # Described, but as gone: however long the sentence between.
    (
        "gone",
        (
            rf"\bwhich {BE} (?:not|no longer) (?:\w+ly )?{SEEN}\b",
            (
                rf"\b{BE} (?:not|no longer) (?:\w+ly )?{SEEN} (?:(?:in|on|at) (?:the |this )?(?:current"
                rf"|present|today)|{_NOW})"
            ),
            rf"\bno longer (?:be )?(?:\w+ly )?{SEEN}\b",
            rf"\bnot {SEEN} {_NOW}\b",
            rf"\b(?:previous|prior)(?:ly)?\b[^.;]{{0,60}}?(?P<cue>\b{BE} (?:not|no longer) {SEEN}\b)",
            (
                r"\b(?:is|are|was|were|has|have|had) (?:since |now |been "
                rf"|also )?(?:\w+ly )?{_VANISHED}\b(?! of)"
            ),
            (
                rf"\b(?:now|since|completely|totally|fully|entirely) {_VANISHED}\b(?! \w+ (?:effusion|opaci"
                r"|nodul|consol))"
            ),
            r"\bthere (?:is|are) none\b",
            (
                rf"\bbut (?:(?:is|are|was|were) )?not (?:confirmed|verified|{SEEN[3:-1]})\b(?! (?:in|on"
                r"|at)\b)"
            ),
            r"\b(?:is|are) now absent\b",
            r"\bwent away\b",
            rf"\bremoved{_END}",
            r"\b(?:complete|total|full) (?:regression|resolution|resorption|clearing)\b(?! of)",
            rf"\b(?:resolved|disappeared|cleared|resorbed){_END}",
            r"\bregressed completely\b",
            r"\bcompletely regressed\b",
            (
                r"\b(?:is|are|was|were|has been|have been) (?:since |now )?(?:removed|explanted|resected"
                r"|drained|evacuated|excised)\b"
            ),
            (
                r"(?:[,;]|\band|\bbut) (?:it|this|these|they) (?:is|are|has|have) (?:now |since "
                rf"|\w+ly )?(?:no longer (?:{SEEN[3:-1]})|{_VANISHED})\b"
            ),
        ),
    ),
    (
        "gone_before",
        (
            (
                r"\b(?:resolution|disappearance|clearance|clearing|resorption|removal|explantation"
                r"|(?:complete|total|full) regression) of\b"
            ),
            (
                r"(?:^|[,;:] ?|\b(?:with|and|interval|now|completely|fully|of|the) )"
                r"(?:interval )?(?:resolved|cleared) (?=[a-z])"
                r"(?!since|in\b|on\b|and\b|with|compared|from|today|now|by\b|completely)"
            ),
            r"\bno longer (?:shows?|demonstrates?|has|have|contains?|any)\b",
        ),
    ),
    (
        "unlikely_after",
        (
            (
                r"\b(?:is|are|seems?|appears?|considered|thought|felt|deemed)(?: to be)?(?: very"
                r"| \w+ly)? (?:unlikely|not likely)\b(?! to)"
            ),
            rf"\bunlikely{_END}",
            rf"\bless likely{_END}",
        ),
    ),
    (
        "unlikely_before",
        (
            r"\b(?:unlikely|not likely|improbable)\b",
            r"\blow (?:suspicion|probability|likelihood) (?:of|for)\b",
        ),
    ),
    # "Effusion: none", "effusion - no", "effusion? Negative.", "effusion (-)".
    (
        "answered_no",
        (
            rf"(?<=[\w)\]]) ?(?:[:=?|] ?-?|-(?= )|-- ?) ?{_NO_ANSWER}{_AFTER_ANSWER}",
            rf"[:=] ?(?:0|n){_END}",
            r"(?<=\w) ?\((?:-|none|no|nil|absent|negative)\)",
        ),
    ),
    (
        "answered_none",
        (
            rf"(?<=\w)(?: ?[,;]| ?[-=]>| ?→)? (?:none|nil){_END}",
            rf"(?<=\w);(?:none|nil){_END}",
        ),
    ),
    (
        "answered_yes",
        (
            rf"(?<=[\w)\]]) ?[:=?] ?(?:yes|present|positive|pos|true|1){_END}",
            r"\(\+\)",
        ),
    ),
    # "Effusion - no thickening was detected": one denial for both sides of the dash.
    (
        "negated_both",
        (rf"(?<=\w) ?[-/] ?no\b(?=(?: [\w-]+){{1,4}}? (?:is|are|was|were) {SEEN})",),
    ),
    (
        "not_assessed",
        (
            r"\bwould be expected\b",
            r"\b(?:may|might|could|would) (?:\w+ly |later |still )?(?:develop|occur|recur|arise)\b",
            (
                r"\b(?:cannot|could not|can not|not|nor) (?:be )?(?:\w+ )?(?:evaluated|assessed|assessable"
                r"|evaluable)\b"
            ),
            r"\b(?:cannot|can not|could not|may not|did not|do not|does not) (?:\w+ )?(?:be )?change\b",
        ),
    ),
    # "We have not seen X": what was not seen follows.
    (
        "not_seen_before",
        (
            (
                rf"\b(?:have|has|had) not (?:\w+ly )?{SEEN}\b(?! (?:in|on|at|since|before|to|and|or|by"
                r"|previously)\b)(?= \w)"
            ),
        ),
    ),
    (
        "negated_after",
        (
            rf"\b(?:{BE} |do |does |did )?(?:not|never|no longer) (?:\w+ )?(?:\w+ly )?(?:{BE} )?{SEEN}\b",
            rf"\b(?:cannot|could not) be {SEEN}\b",
            r"\b(?:is|are|was|were|has been|have been) (?:excluded|ruled out)\b",
            rf"\bnowhere {SEEN}\b",
            r"\b(?:is|are|was|were) (?:absent|denied|negative(?! for))\b",
            r"\b(?:not|no longer) exists?\b",
            r"\babsent\b(?= ?(?:[.,;)]|$|(?:bilaterally|in|on|at|from|today|now|and|or|throughout)\b))",
        ),
    ),
    (
        "negated_before",
        (
            r"(?:^|(?<=[,;] ))\(-\)",
            r"\bnon[- ]?(?=(?:enlarged|dilated|distended|thickened)\b)",
            *_words("no|not|without"),
            r"\babsen(?:ce|t)(?: of)?\b",
            r"\b(?:free|clear|devoid) (?:of|from)\b",
            r"\bneg(?:ative)? (?:\w+ ){0,2}?for\b",
            *_words("neither|nor|denies|none of"),
            r"\black(?:s|ing)?(?: of)?\b",
            r"\bfail(?:s|ed)? to (?:show|reveal|demonstrate|identify)\b",
            *_words("ruled out|excludes|rules out|cannot|nil|zero|rather than|instead of"),
            *_words("as opposed to|nothing|never|nowhere"),
            r"\bnon-?visuali[sz]ation of\b",
        ),
    ),
    (
        "history",
        (
            *_words("history of|hx of|known case of"),
            r"\boperated (?:for|due to)\b",
            r"\bh/o\b",
            r"\bs/p\b",
            r"\bstatus post\b",
            (
                r"\b(?:(?:grand)?(?:mother|father)|brother|sister|sibling|uncle|aunt|parent|wife|husband"
                r"|daughter|cousin|relatives?|family|familial)(?:'s)?\b"
            ),
            r"\b(?:treated|treatment|therapy|hospitali[sz]ed|admitted) for\b",
            r"\b(?:worried|anxious|afraid) (?:about|of)\b",
            (
                r"\bpatient (?:\w+ly )?(?:reports?|states?|says|said|claims|believes|recalls|was told"
                r"|complains of|fears|mentions)\b"
            ),
            rf"^(?:on |in |at )?(?:the )?{_PRIOR} (?:\w+ )?{_SCAN}(?: \w+)? ?:",
            (
                r"^(?:previous|past|former) (?=[\w ]{3,40}\.?$)(?!.*(?:otomy|surg|cabg|operat|stent"
                r"|valve|fracture))"
            ),
            rf"^(?:on|in|at) (?:the )?{_PRIOR} (?:\w+ )?{_SCAN}\b",
            r"^in (?:19|20)\d\d\b",
            r"^previously\b(?=[^.;]*\b(?:was|were)\b)",
        ),
    ),
    (
        "hypothesis",
        (
            r"\bif there (?:is|are|was|were)\b",
            r"^(?:is|are) there\b(?=[^?]*\? ?$)",
            r"\bto (?:evaluate|assess)\b",
            r"\bfor (?:the |further )?(?:evaluation|assessment|exclusion) of\b",
            r"\b(?:to|in order to|please) (?:rule out|exclude|assess for|evaluate for|look for)\b",
            r"\bin terms of\b",
            (
                r"\b(?:evaluat(?:e|ion|ing)|assess(?:ment|ing)?|look(?:ing)?|search(?:ing)?|screen(?:ing)?"
                r"|check(?:ing)?|referred|sent|ask(?:ed|ing)?|referral|request(?:ed)?"
                r"|concern(?:ed)? clinically) for\b"
            ),
            r"\br/o\b",
            r"(?<!cannot )\brule[ -]out\b",
            r"\bexclude\b",
            r"\bindications?\b",
            r"\bif (?=there is|clinically|any\b|\w+ (?:develops?|persists?|occurs?|appears?))",
            r"\b(?:at )?risk (?:of|for)\b",
            r"\bin case of\b",
            r"^(?:should|if|in case|were|would)\b",
            r"\bunless\b",
            r"^(?:please )?(?:evaluate|assess|check|question)\b",
            r"\b(?:may|might|could|would|can) (?:develop|occur|cause|lead|result)\b",
            r"\bquestion of\b(?=[^.;]*\?)",
            (
                r"\b(?:inadequate|insufficient|unsuitable|not suitable|limited"
                r"|suboptimal) for (?:the )?(?:\w+ )?(?:assessment|evaluation|detection|diagnosis) of\b"
            ),
            (
                r"\b(?:assessment|evaluation|detection|visualization) of\b(?=[^.;]{0,80}\b(?:is|are|was"
                r"|were) (?:\w+ly )?(?:limited|not possible|impossible|precluded|nondiagnostic"
                r"|non-diagnostic|suboptimal|inadequate)\b)"
            ),
        ),
    ),
    # Coordination: a new statement begins.
    (
        "terminator",
        (
            *_words("but|however|although|though|whereas|while|yet|nevertheless|on the other hand"),
            r";",
            r"\band (?=no\b|without\b)",
            rf"(?:,|\band) (?=(?:an? )?{DEGREE}\b)",
            r"(?:,|\band) (?=(?:only|the)\b)",
            rf"\bwith (?=(?:an?|{DEGREE}|large|extensive|bilateral)\b)",
        ),
    ),
    # What the denial before it does not hold for.
    (
        "except",
        (
            r"\bexcept(?:ing)?(?: for| in| that)?\b",
            *_words("apart from|aside from|other than|outside of|with the exception of|save for"),
            *_words("besides|beyond|barring|excluding"),
        ),
    ),
    # Subordination: what follows is of its own, but the sentence is still about what came before.
    (
        "aside",
        (
            r"\bthere (?:is|are|was|were)\b(?! no)",
            *_words("due to|secondary to|which|in addition|otherwise|then"),
        ),
    ),
    (
        "predicate",
        (
            rf"\b{BE} (?:also |again |still |\w+ly )?{SEEN}\b",
            r"\bpresent (?:on|in|at) the (?:left|right)(?: side| lung| base)?(?=,)",
        ),
    ),
    (
        "border",
        (
            r"[,()]",
            r" - ",
        ),
    ),
)

CUES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile("|".join(patterns))) for kind, patterns in _PATTERNS
)
"""Kind and what it looks like, in order of precedence."""
