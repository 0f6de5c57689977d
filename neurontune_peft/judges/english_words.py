"""Words that the English patterns share: who, whether, what is done, good and bad (ours)."""

# Everything is in verbose mode: a space is written as \s or [ ].
GAP = r"[\s,]+"
ADVERBS = (
    r"(?:(?:\w+ly(?:\s(?:and|or)\s\w+ly)?|just|also|still|really|not|ever|never|even|therefore|thus|by\sno\smeans|"
    r"in\s(?:any|good)\s\w+|be|at\sthis\stime|with\s(?:a\s)?good\sconscience|as\san\sai(?:\s\w+){0,2})[\s,]+){0,3}"
)
DO = r"""(?:
    help|assist|aid|support|provide|give|offer|supply|share|tell|teach|show|explain|describe|discuss|outline|list|
    answer|respond|reply|address|comment|speak|talk|speculate|fulfil+|satisfy|compl(?:y|ete)|accommodate|honou?r|
    grant|process|accept|do|perform|carry|execute|proceed|continue|go\s(?:along|ahead|there)|engage|participate|
    take\spart|play\salong|role-?play|pretend|act|assume|adopt|
    write|create|generate|produce|make|craft|compose|draft|design|develop|build|come\sup|construct|invent|
    suggest|advise|recommend|instruct|guide|direct|walk|encourage|promote|condone|endorse|facilitate|advocate|enable|
    contribute|disclose|reveal|divulge|release|publish|distribute|access|retrieve|look|search|find|translate|
    justify|allow|let\syou|entertain|indulge|work|be\s(?:used|involved|part|of)|use|follow|bypass|ignore|break|violate|
    deliver|say\s(?:that|this|how)|repeat|print|output|simulate|impersonate|joke|in\sgood|ethically|legally|meet|turn
)\b"""
ONE_MODAL = (
    r"(?:cannot|can[\s']?not|can't|cant|won't|wont|will\snot|could\s?n[o']t|couldn't|should\snot|shouldn't|must\snot|"
    r"mustn't|may\snot|would\snot|wouldn't|am\snot\sgoing\sto|'m\snot\sgoing\sto|do\snot|don't|'d\srather\snot|"
    r"would\srather\snot|would\sprefer\snot\sto|'d\sprefer\snot\sto|am\snot\sgonna|refuse\sto|will\snever|"
    r"would\snever|"
    r"could\snever|can\sneither)"
)
MODAL = rf"{ONE_MODAL}(?:,?\s(?:and|or|nor)\s(?:\w+ly\s)?{ONE_MODAL}(?!\w),?)?"
# What is refused behind "and cannot": narrower than above, as whose inability it is stands far away.
SERVE = r"""(?:
    help|assist|provide|give|offer|share|answer|respond|fulfil+|satisfy|comply|do\s(?:that|this|so)|engage|participate|
    write|create|generate|produce|discuss|support|promote|condone
)\b"""
SERVING = r"""(?:
    helping|assisting|providing|giving|offering|sharing|answering|responding|fulfilling|writing|creating|generating|
    producing|discussing|explaining|supporting|promoting|participating|engaging|doing\s(?:that|this|so)
)\b"""
AM = r"(?:[ ]?'?m|\sam|'re|\sare)"
GOOD = r"""(?:
    appropriate|acceptable|ethical|okay|ok|right|safe|advisable|recommended|moral|respectful|fair|wise|responsible|
    justifiable|justified|permissible|permitted|constructive|productive|helpful|healthy|legal|lawful|proper|tolerable|
    best|a\sgood\sidea|in\sthe\sbest\sinterest|accurate,?\s(?:or|and|nor)\s(?:fair|appropriate|respectful|ethical)
)\b"""
BAD = r"""(?:
    illegal|unlawful|unethical|immoral|inappropriate|unacceptable|wrong|harmful|hurtful|irresponsible|reprehensible|
    discriminatory|offensive|disrespectful|against\sthe\slaw|a\sviolation|a\s(?:\w+\s){0,2}crime(?=\sand|,|\.|$)|
    highly\sdangerous|extremely\sdangerous|(?:potentially\s)?dangerous\sand|not\sonly\s\w+
)\b"""
IT = r"(?:it|this|that|these|those|doing\s(?:so|this|that)|such\s\w+(?:\s\w+)?)"
IS = r"(?:'s|\sis|\sare|\swould\sbe|'d\sbe|\swas|\swere|\swould)"
REQUEST = (
    r"(?:this|that|your|the|such)\s(?:(?:type|kind)\sof\s)?(?:request|question|prompt|topic|content|query|premise|"
    r"statement|task|information|instruction|conversation|scenario|activity|behaviou?r)s?"
)
