"""The words around a mention that decide how it is meant, by kind.

All over text as `medclip_jax.reports.cleaning.normalize` gives it. What each kind does stands in
`medclip_jax.reports.context`. To add a wording, put it into the pattern of its kind.
"""

from __future__ import annotations

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
    r"(?:(?:significant|convincing|short-term|long-term|interval|obvious|relevant|appreciable|substantial|definite|marked|major|notable|clear"
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

CUES: tuple[tuple[str, str], ...] = (
    # In order of precedence: words taken by one kind are not looked at for the kinds below it.
    # A template's choices: "none/mild/severe" names what could be ticked.
    (
        "choice_made",
        r"[\[(] ?(?:none|no|absent|normal)(?:, ?\w+){1,6} ?[\])] ?(?=[:=-])"
        r"|\b(?:none|no|yes|absent|present|normal|mild)(?: ?/ ?\w+){1,6} ?(?=[:=-])",
    ),
    (
        "choice_open",
        r"[:=] ?(?:n/?a|not (?:applicable|assessed|evaluated|imaged|included|reported)|unknown"
        rf"|deferred){_END}"
        rf"|[:=?-] ?(?:none|no|yes|y|absent|present|normal|mild)(?: ?/ ?\w+){{1,6}}{_END}",
    ),
    # "no", "not", "without" that deny no finding.
    (
        "shield",
        r"\b(?:without|lack of|no) (?:\w+ ){0,2}?contrast\b|\bnon-?contrast\w*"
        r"|\bnot (?:only|just|merely|simply)\b|\bnot to mention\b|\bno less than\b"
        r"|\b(?:no|without) (?:doubt|question)\b|\bnot (?:be )?(?:given|administered|used)\b"
        r"|\bnot (?:in|un)(?:significant|substantial|considerable|common|remarkable|important)\b"
        r"|\bnot (?:negligible|without|absent|trivial)\b|\bno longer than\b"
        r"|\bno more than (?:an? )?(?=trace|minimal|small|tiny|mild|moderate)"
        r"|\bif (?:any|present|at all)\b"
        # "... has increased, the left has resolved" says nothing of the first.
        r"|(?:,|;|\band|\bbut) (?:the )?(?:left|right)(?:-sided)?(?: one| side)? (?:has|have|is"
        r"|was) (?:\w+ ){0,2}?"
        rf"{_VANISHED}\b"
        r"|\bcannot (?:be )?(?:\w+ )?(?:differentiated|distinguished from)\b"
        r"|\b(?:can|could|may|might) ?not (?:be )?(?:\w+ )?(?:differentiated|distinguished from)\b"
        # What was not there before is new.
        rf"|\b(?:not|never|nor) (?:{SEEN} |been )?(?:previously|formerly|before)\b(?: {SEEN})?"
        rf"|\b(?:not|no) {SEEN} (?:previously|before)\b"
        rf"|\b(?:not|never) (?:\w+ )?(?:{SEEN} )?(?:in|on|at) (?:the |any "
        rf"|that )?{_PRIOR} ?(?:\w+ )?{_SCAN}\b",
    ),
    # "No larger than before" leaves open whether there is any, as a question from the clinic does.
    (
        "open",
        r"\bno (?:larger|bigger|smaller|greater|more|less|fewer)\b(?=[^.;]*\bthan\b)"
        r"|\bclinical(?:ly)? (?:suspicion|suspected|question|concern)(?: of| for)?\b"
        r"|\bno (?:\w+ ){0,2}history of\b"
        r"|\b(?:physicians?|doctors?|clinicians?|surgeons?|colleagues?|team) (?:suspects?|asks?|requests?)\b",
    ),
    # A denial of change says that the finding is there.
    (
        "unchanged",
        rf"\b(?:no|not|without|nor) (?:been )?(?:any )?{_EXTENT}{_CHANGE}\b"
        r"|\b(?:no|not|without|n?either|nor|absence of|lack of) (?:(?!or\b|and\b)[\w-]+ ){0,4}?"
        rf"(?!{_ORGAN_SIZE}){_GROWTH}(?: (?:or|nor|and) {_GROWTH})? (?:in|of|to|for|since|from|compared|as)\b"
        r"|\bno (?:\w+ )?(?:worsening|progressive|progressing) (?=\w)"
        r"|\bno longer (?:\w+ly )?(?:increasing|growing|enlarging|progressing|progressive)\b"
        rf"|\bno (?:increase|decrease) in (?:the )?(?:\w+ )?(?:sizes?|numbers?|diameter|dimensions?)\b"
        rf"|\b(?:not|never) {_ADVERBS}(?:changed?|changing|differ\w*|grow(?:n|ing)?|progress(?:ed|ing)?"
        r"|regress(?:ed|ing)?|improv(?:ed?|ing)|worsen(?:ed|ing)?|shr[au]nk|diminish(?:ed)?|evolved?|decreased?"
        r"|enlarged (?:since|from|compared|in the interval)|increased? (?:in size|since|from|compared|in the)"
        r"|as (?:large|big|small|extensive|marked|prominent|severe|dense|wide|pronounced)|larger"
        r"|smaller|bigger"
        rf"|different|increase)\b(?! than normal)",
    ),
    # What has not gone is there.
    (
        "remains",
        rf"\b(?:not|never|hardly|barely|nor) {_ADVERBS}(?:resolved?|disappear(?:ed)?|resorbed"
        r"|clear(?:ed)?(?! of)"
        r"|subsided?|vanish(?:ed)?|gone)\b"
        r"|\b(?:near(?:ly)?|almost|partial(?:ly)?|partly|incomplete(?:ly)?|largely|mostly|subtotal(?:ly)?"
        r"|virtually|practically|substantial(?:ly)?|some|slow(?:ly)?|gradual(?:ly)?|significant(?:ly)?)[ -]"
        r"(?:\w+ly |complete |total |interval |partial )?"
        rf"(?:{_VANISHED}|resolution|disappearance|resorption|clearance|clearing|regression|regressed)\b"
        r"|\b(?:resolved|cleared|disappeared) (?:on|in) the (?P<side>left|right)\b"
        r"(?=[^.;]{0,60}\b(?:on|in) the (?!(?P=side))(?:left|right))"
        rf"|\b{_SIDE} ?{_NONE}[.,;]? {_SIDE}(?! ?{_NONE})"
        rf"|\b{_SIDE}(?! ?{_NONE})[\w ]{{1,40}}[.,;]? {_SIDE} ?{_NONE}"
        r"|\b(?:un|non-?)resolv(?:ed|ing)\b|\byet to (?:resolve|clear)\b|\bfail(?:ed|s"
        r"|ure)? to (?:resolve|clear)\b",
    ),
    (
        "uncertain_before",
        r"\babsence of\b(?=[^.;]{1,60}\bcannot be (?:confirmed|proven|assured|ensured)\b)"
        r"|\bno\b(?=[^.;,]{1,60}\b(?:can|could|may) be (?:\w+ )?(?:excluded|ruled out)\b)"
        r"|\b(?:possibl[ey]|probabl[ey]|(?<!not )(?<!un)likely|suspicious (?:for|of)|suspected|suspicion of"
        r"|questionable|may (?:be|represent|belong|suggest|indicate|reflect)|might (?:be|represent|reflect)"
        r"|could (?:be|represent|reflect)|equivocal|concern(?:ing)? for|differential diagnosis|doubtful"
        r"|worrisome for|possibility of|query|versus)\b"
        r"|\b(?:cannot|could not|may not|might not|does not|do not|did not|not|unable to"
        r"|impossible to|without"
        r"|difficult to|hard to|insufficient to|inadequate to|limited to|fails? to|failed to|no way to) "
        rf"(?:\w+ ){{0,3}}?{_EXCLUDE}\b|(?:^|(?<=[ (/]))\? ?(?=\w)",
    ),
    (
        "uncertain_after",
        r"\b(?:cannot|not|never|difficult to|hard to) (?:\w+ ){0,3}?(?:excluded|ruled out)\b"
        r"|\b(?:exclusion|excluding it|ruling it out)\b[^.;,]{0,20}\bnot possible\b"
        r"|\b(?:is|are|was|were|remains?) (?:\w+ly )?(?:suspected|suspicious|questionable|possible|doubtful"
        r"|in the differential|not entirely clear)\b|\b(?:should|must|may|could|might) be considered\b"
        rf"|\?(?! ?-? ?{_NO_ANSWER}{_AFTER_ANSWER})(?! ?(?:yes|present|positive){_END})",
    ),
    # Described, but as gone: however long the sentence between.
    (
        "gone",
        rf"\bwhich {BE} (?:not|no longer) (?:\w+ly )?{SEEN}\b"
        rf"|\b{BE} (?:not|no longer) (?:\w+ly )?{SEEN} (?:(?:in|on|at) (?:the |this )?(?:current"
        r"|present|today)"
        rf"|{_NOW})|\bno longer (?:be )?(?:\w+ly )?{SEEN}\b|\bnot {SEEN} {_NOW}\b"
        rf"|\b(?:previous|prior)(?:ly)?\b[^.;]{{0,60}}?(?P<cue>\b{BE} (?:not|no longer) {SEEN}\b)"
        rf"|\b(?:is|are|was|were|has|have|had) (?:since |now |been |also )?(?:\w+ly )?{_VANISHED}\b(?! of)"
        rf"|\b(?:now|since|completely|totally|fully|entirely) {_VANISHED}\b(?! \w+ (?:effusion|opaci"
        r"|nodul|consol))"
        r"|\bthere (?:is|are) none\b"
        rf"|\bbut (?:(?:is|are|was|were) )?not (?:confirmed|verified|{SEEN[3:-1]})\b(?! (?:in|on|at)\b)"
        rf"|\b(?:is|are) now absent\b|\bwent away\b|\bremoved{_END}"
        r"|\b(?:complete|total|full) (?:regression|resolution|resorption|clearing)\b(?! of)"
        rf"|\b(?:resolved|disappeared|cleared|resorbed){_END}|\bregressed completely\b"
        r"|\bcompletely regressed\b"
        r"|\b(?:is|are|was|were|has been|have been) (?:since |now )?(?:removed|explanted|resected"
        r"|drained|evacuated"
        r"|excised)\b"
        rf"|(?:[,;]|\band|\bbut) (?:it|this|these|they) (?:is|are|has|have) (?:now |since |\w+ly )?"
        rf"(?:no longer (?:{SEEN[3:-1]})|{_VANISHED})\b",
    ),
    (
        "gone_before",
        r"\b(?:resolution|disappearance|clearance|clearing|resorption|removal"
        r"|explantation|(?:complete|total|full) regression) of\b"
        r"|(?:^|[,;:] ?|\b(?:with|and|interval|now|completely|fully|of|the) )(?:interval )?resolved (?=[a-z])"
        r"(?!since|in\b|on\b|and\b|with|compared|from|today|now|by\b|completely)"
        r"|\bno longer (?:shows?|demonstrates?|has|have|contains?|any)\b",
    ),
    (
        "unlikely_after",
        r"\b(?:is|are|seems?|appears?|considered|thought|felt|deemed)(?: to be)?(?: very"
        r"| \w+ly)? unlikely\b(?! to)"
        rf"|\bunlikely{_END}|\bless likely{_END}",
    ),
    (
        "unlikely_before",
        r"\b(?:unlikely|not likely|improbable)\b|\blow (?:suspicion|probability|likelihood) (?:of|for)\b",
    ),
    # "Effusion: none", "effusion - no", "effusion? Negative.", "effusion (-)".
    (
        "answered_no",
        rf"(?<=[\w)\]]) ?(?:[:=?|] ?-?|-(?= )|-- ?) ?{_NO_ANSWER}{_AFTER_ANSWER}|[:=] ?(?:0|n){_END}"
        r"|(?<=\w) ?\((?:-|none|no|nil|absent|negative)\)",
    ),
    ("answered_none", rf"(?<=\w)(?: ?[,;]| ?[-=]>| ?→)? (?:none|nil){_END}|(?<=\w);(?:none|nil){_END}"),
    ("answered_yes", rf"(?<=[\w)\]]) ?[:=?] ?(?:yes|present|positive|pos|true|1){_END}|\(\+\)"),
    # "Effusion - no thickening was detected": one denial for both sides of the dash.
    ("negated_both", rf"(?<=\w) ?[-/] ?no\b(?=(?: [\w-]+){{1,4}}? (?:is|are|was|were) {SEEN})"),
    (
        "not_assessed",
        r"\bwould be expected\b|\b(?:may|might|could|would) (?:\w+ly |later |still )?(?:develop|occur"
        r"|recur|arise)\b|\b(?:cannot|could not|can not|not|nor) (?:be )?(?:\w+ )?(?:evaluated"
        r"|assessed|assessable|evaluable)\b"
        r"|\b(?:cannot|can not|could not|may not|did not|do not|does not) (?:\w+ )?(?:be )?change\b",
    ),
    # "We have not seen X": what was not seen follows.
    (
        "not_seen_before",
        rf"\b(?:have|has|had) not (?:\w+ly )?{SEEN}\b(?! (?:in|on|at|since|before|to|and|or|by"
        r"|previously)\b)(?= \w)",
    ),
    (
        "negated_after",
        rf"\b(?:{BE} |do |does |did )?(?:not|never|no longer) (?:\w+ )?(?:\w+ly )?(?:{BE} )?{SEEN}\b"
        rf"|\b(?:cannot|could not) be {SEEN}\b|\b(?:is|are|was|were|has been|have been) (?:excluded"
        r"|ruled out)\b"
        rf"|\bnowhere {SEEN}\b"
        r"|\b(?:is|are|was|were) (?:absent|denied|negative(?! for))\b|\b(?:not|no longer) exists?\b"
        r"|\babsent\b(?= ?(?:[.,;)]|$|(?:bilaterally|in|on|at|from|today|now|and|or|throughout)\b))",
    ),
    (
        "negated_before",
        r"(?:^|(?<=[,;] ))\(-\)|\bnon[- ]?(?=(?:enlarged|dilated|distended|thickened)\b)|\bno\b"
        r"|\bnot\b|\bwithout\b|\babsen(?:ce|t)(?: of)?\b|\b(?:free|clear|devoid) (?:of|from)\b"
        r"|\bneg(?:ative)? (?:\w+ ){0,2}?for\b|\bneither\b|\bnor\b|\bdenies\b|\bnone of\b|\black(?:s"
        r"|ing)?(?: of)?\b"
        r"|\bfail(?:s|ed)? to (?:show|reveal|demonstrate|identify)\b|\bruled out\b|\bexcludes\b|\brules out\b"
        r"|\bcannot\b|\bnil\b|\bzero\b|\brather than\b|\binstead of\b|\bas opposed to\b|\bnothing\b"
        r"|\bnever\b|\bnowhere\b"
        r"|\bnon-?visuali[sz]ation of\b",
    ),
    (
        "history",
        r"\bhistory of\b|\bhx of\b|\bknown case of\b|\boperated (?:for|due to)\b|\bh/o\b|\bs/p\b"
        r"|\bstatus post\b"
        r"|\b(?:(?:grand)?(?:mother|father)|brother|sister|sibling|uncle|aunt|parent|wife|husband|daughter|cousin"
        r"|relatives?|family|familial)(?:'s)?\b"
        r"|\b(?:treated|treatment|therapy|hospitali[sz]ed|admitted) for\b|\b(?:worried|anxious"
        r"|afraid) (?:about|of)\b"
        r"|\bpatient (?:\w+ly )?(?:reports?|states?|says|said|claims|believes|recalls|was told"
        r"|complains of|fears"
        r"|mentions)\b"
        rf"|^(?:on |in |at )?(?:the )?{_PRIOR} (?:\w+ )?{_SCAN}(?: \w+)? ?:"
        r"|^(?:previous|past|former) (?=[\w ]{3,40}\.?$)(?!.*(?:otomy|surg|cabg|operat|stent|valve|fracture))"
        rf"|^(?:on|in|at) (?:the )?{_PRIOR} (?:\w+ )?{_SCAN}\b|^in (?:19|20)\d\d\b"
        r"|^previously\b(?=[^.;]*\b(?:was|were)\b)",
    ),
    (
        "hypothesis",
        r"\bif there (?:is|are|was|were)\b|^(?:is|are) there\b(?=[^?]*\? ?$)|\bto (?:evaluate|assess)\b"
        r"|\bfor (?:the |further )?(?:evaluation|assessment|exclusion) of\b|\b(?:to|in order to"
        r"|please) (?:rule out|exclude|assess for"
        r"|evaluate for|look for)\b|\bin terms of\b"
        r"|\b(?:evaluat(?:e|ion|ing)|assess(?:ment|ing)?|look(?:ing)?|search(?:ing)?|screen(?:ing)?|check(?:ing)?"
        r"|referred|sent|ask(?:ed|ing)?|referral|request(?:ed)?|concern(?:ed)? clinically) for\b|\br/o\b"
        r"|(?<!cannot )\brule[ -]out\b|\bexclude\b|\bindications?\b|\bif (?=there is|clinically|any\b"
        r"|\w+ (?:develops?"
        r"|persists?|occurs?|appears?))|\b(?:at )?risk (?:of|for)\b|\bin case of\b"
        r"|^(?:should|if|in case|were|would)\b|\bunless\b|^(?:please )?(?:evaluate|assess|check"
        r"|question)\b|\b(?:may|might|could|would|can) (?:develop|occur|cause|lead"
        r"|result)\b"
        r"|\bquestion of\b(?=[^.;]*\?)"
        r"|\b(?:inadequate|insufficient|unsuitable|not suitable|limited|suboptimal) for (?:the )?(?:\w+ )?"
        r"(?:assessment|evaluation|detection|diagnosis) of\b"
        r"|\b(?:assessment|evaluation|detection|visualization) of\b(?=[^.;]{0,80}\b(?:is|are|was"
        r"|were) (?:\w+ly )?"
        r"(?:limited|not possible|impossible|precluded|nondiagnostic|non-diagnostic|suboptimal"
        r"|inadequate)\b)",
    ),
    # Coordination: a new statement begins.
    (
        "terminator",
        r"\bbut\b|\bhowever\b|\balthough\b|\bthough\b|\bwhereas\b|\bwhile\b|\byet\b|\bnevertheless\b"
        rf"|\bon the other hand\b|;|\band (?=no\b|without\b)|(?:,|\band) (?=(?:an? )?{DEGREE}\b)"
        rf"|(?:,|\band) (?=(?:only|the)\b)|\bwith (?=(?:an?|{DEGREE}|large|extensive|bilateral)\b)",
    ),
    # What the denial before it does not hold for.
    (
        "except",
        r"\bexcept(?:ing)?(?: for| in| that)?\b|\bapart from\b|\baside from\b|\bother than\b|\boutside of\b"
        r"|\bwith the exception of\b|\bsave for\b|\bbesides\b|\bbeyond\b|\bbarring\b|\bexcluding\b",
    ),
    # Subordination: what follows is of its own, but the sentence is still about what came before.
    (
        "aside",
        r"\bthere (?:is|are|was|were)\b(?! no)|\bdue to\b|\bsecondary to\b|\bwhich\b|\bin addition\b"
        r"|\botherwise\b|\bthen\b",
    ),
    (
        "predicate",
        rf"\b{BE} (?:also |again |still |\w+ly )?{SEEN}\b"
        r"|\bpresent (?:on|in|at) the (?:left|right)(?: side| lung| base)?(?=,)",
    ),
    ("border", r"[,()]| - "),
)
"""Kind and pattern, in order of precedence."""
