"""Texts that are no request: an assistant's refusal, and talk about the task of rewriting.

A row's text is a user's turn and speaks of the world. A refusal is the other side's turn, and talk
about the task speaks of a text. Both are told by closed classes of words (who speaks, what
prohibits, verbs and nouns of language itself), whatever else is said; and what a query says itself
is no sign in its rewriting, as some requests are about texts. What no word gives away has lost the
query's intent, which is another test's to see.
"""

import re

REFUSAL, TALK = "a refusal", "talk about the task"

_APOSTROPHES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")

_DECLINES = re.compile(
    r"\b(sorry|apologi[sz]e|as an ai\b|against my (guidelines|polic(y|ies)|principles)"
    r"|i (must|have to) (decline|refuse)|i (decline|refuse)\b"
    r"|i('m| am)( not able| unable| not going)\b"
    r"|i (can ?not|can't|won't|will not)\b)",
    re.IGNORECASE,
)
# The other side prohibits, or judges the request, where a user would ask.
_PROHIBITS = re.compile(
    r"^\W*(?:[\w ]{0,20}[,:] ?)?(?:"
    r"no\s*[,.!;]|(?:please |kindly )?(?:do not|don ?'? ?t|never)\b(?! you\b)"
    r"|(?:you|nobody|no one) (?:really |simply |just )?(?:can ?'? ?t|can ?not|must not"
    r"|mustn ?'? ?t|should not|shouldn ?'? ?t|may not|ought not|(?:are|is) not (?:able|allowed)"
    r"|aren ?'? ?t (?:able|allowed)|should never|must never)\b"
    r"|(?:it|this|that|doing (?:so|this|that))(?: is| would be|'s)"
    r" (?:not|never|against|illegal|unethical|unsafe|dangerous|inappropriate|harmful|wrong|risky"
    r"|a bad idea)\b"
    r"|(?:this|that|the|your) (?:request|question|content|topic|prompt|query) (?:is|was|has|cannot"
    r"|can ?not|violates|goes|would)\b"
    r")",
    re.IGNORECASE,
)
# An assistant speaks of itself, of what it may, or of serving somebody.
_ASSISTANT = re.compile(
    r"\b(?:as an? (?:ai|assistant|language model|chatbot|responsible)\b|(?:ai|language) model\b"
    r"|i (?:do not|don ?'? ?t) (?:think i (?:can|should)|feel comfortable|have the ability)"
    r"|i(?: am|'m) (?:here|happy|glad|ready|pleased) to (?:help|assist)"
    r"|i(?: would|'d) be (?:happy|glad) to|how (?:can|may) i (?:help|assist) you"
    r"|(?:help|assist) you with (?:that|this|your)|unable to (?:help|assist|provide|comply|fulfil)"
    r"|not (?:able|allowed|programmed|designed|permitted) to (?:help|assist|provide|answer|comply)"
    r"|i (?:do not|don ?'? ?t|can ?not|can ?'? ?t|won ?'? ?t) (?:help|assist|provide|comply|support"
    r"|condone|encourage|promote|engage))",
    re.IGNORECASE,
)
# A turn that names its speaker or its part: "SmolLAM: ...", "Rewritten request: ...".
_LABELLED = re.compile(r"^\W*\w[\w.'-]*(?: \w[\w.'-]*){0,3} ?:(?!\d)", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|understood|no problem|got it)\s*[,.!:;]"
    r"|^\W*here(?: is|'s| are|s)\b|^\W*the following\b|^\W*let me (?:know|try|help|put)\b",
    re.IGNORECASE,
)
_VERB = (
    r"(?:re-?(?:write|wrote|writing|written|phras\w*|word(?:ed|ing)?|formulat\w*|stat(?:e[ds]?|ing))"
    r"|paraphras\w*|summari[sz]\w*|proofread\w*|translat(?:e[ds]?|ing|ion)|fill(?:ing)? in)"
)
_NOUN = (
    r"(?:questions?|requests?|prompts?|sentences?|quer(?:y|ies)|instructions?|wordings?|phrases?"
    r"|texts?|blanks?|tasks?|statements?|paragraphs?|responses?|answers?|captions?|descriptions?"
    r"|versions?|rewrites?|keywords?)"
)
_LANGUAGE = re.compile(
    rf"\b{_VERB}\b"
    rf"|\b(?:the|this|that|these|your|following|above|given|original|new)"
    rf" (?:\w+ )?{_NOUN}\b(?! (?:in|on|of) (?:the|this) (?:picture|image|photo|sign|screen))"
    r"|\b(?:same|other|different|own|these|following) words?\b"
    r"|\bin (?:quotes|brackets|parentheses)\b|\bmeans the same\b|\bthe same meaning\b"
    r"|\[[^\]]{0,40}\]|_{2,}|<[^>]{0,40}>",
    re.IGNORECASE,
)
_SIGNS = {
    REFUSAL: (_PROHIBITS, _ASSISTANT),
    TALK: (_LABELLED, _PREAMBLE, _LANGUAGE),
}


def is_refusal(answer: str) -> bool:
    """Whether an answer begins by refusing (its first 200 characters; an empty one refuses)."""
    beginning = answer[:200].translate(_APOSTROPHES)
    return not beginning.strip() or bool(_DECLINES.search(beginning))


def fault_of_speech(text: str, query: str) -> str:
    """``REFUSAL``, ``TALK``, or "" for what may be a request.

    Args:
        text: a rewriting.
        query: what was rewritten; a sign that it bears itself says nothing of the rewriting.
    """
    text, query = (t.translate(_APOSTROPHES) for t in (text, query))
    if not re.search(r"\w", text) or (is_refusal(text) and not is_refusal(query)):
        return REFUSAL
    for fault, patterns in _SIGNS.items():
        if any(pattern.search(text) and not pattern.search(query) for pattern in patterns):
            return fault
    return ""
