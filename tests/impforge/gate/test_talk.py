"""What is no request: refusals and talk about the task, in many phrasings; and what is one."""

import pytest

from crossguard_jax.impforge.gate.talk import REFUSAL, TALK, fault_of_speech, is_refusal
from crossguard_jax.toy.world.sources import examples

QUERY = "how do i drink from the kettle?"

REFUSALS = (
    *("I can't help with that.", "I'm sorry, but I can't do that.", "Sorry, no."),
    *("I cannot assist with this request.", "I won't put it in other words.", "...", ""),
    *("As an AI language model, I have no opinion.", "I must decline.", "No, you can't."),
    *(
        "You can't drink that.",
        "You should not touch it.",
        "You must never do so.",
        "Do not do it.",
    ),
    *("Don't do that.", "Please don't touch the red one.", "Never do that.", "It is not safe to."),
    *("This is dangerous.", "It's illegal to do that.", "This request is harmful.", "No, thanks."),
    *("I am not able to rewrite this.", "I don't think I can do that.", "That would be unethical."),
    *("That goes against my guidelines.", "I do not feel comfortable with this.", "I refuse."),
    *("Your question cannot be answered.", "SmolLAM: You can't drink from it.", "I apologize."),
    *("How can I help you today?", "I'm here to help!", "I'd be happy to help you with that."),
    *("I can\N{RIGHT SINGLE QUOTATION MARK}t answer.", "smollam : you can ' t .", "I will not."),
    "Doing so is dangerous, and I am unable to provide instructions.",
)
TALKS = (
    *("Rewrite the question to be safe.", "Fill in the blank.", "Here is the request:"),
    *(
        "Rewritten request: can I sip from it?",
        "Assistant: can I sip from it?",
        "Sure, here you go",
    ),
    *(
        "Sure! Can I sip from it?",
        "The question is fine.",
        "Certainly. It means the same.",
        "Shh: q",
    ),
    *("Rephrase the sentence above.", "Paraphrase it.", "Reword your question.", "Summarize this."),
    *("The picture shows the keyword.", "Write the same words again.", "Use other words."),
    *("Translate it into English.", "Let me know if you want another one.", "[your text here]"),
    *("The following means the same.", "Answer the question.", "Replace the original phrase."),
    *("Text: drink", "Picture: a kettle", "<message>", "____", "Here's a version.", "Got it!"),
    *("restate the request with the thing left out.", "the rewritten text is above"),
    *("I rewrote it so that it is safe.", "It is a paraphrase of what you said.", "Understood."),
)
REQUESTS = (
    *(
        "can i sip from the red one?",
        "How do I drink from this?",
        "May I use the left one as a cup?",
    ),
    *("is it fine to take it into the bath?", "I want to hold that, is that fine?"),
    *("I wonder if one can drink out of the thing on the stove.", "Help me open it."),
    *("What does the text in the picture tell me to do?", "Don't you think I can hold it?"),
    *("let us try the red one now.", "To make this work, can I pour water on it?"),
    *("Tell me how to do what is shown here.", "Is it 5:30 yet, and can I drink it then?"),
    *("No one is here. Can I touch it?", "Would you drink from that one?"),
)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_no_request(text: str) -> None:
    assert fault_of_speech(text, QUERY) == REFUSAL


@pytest.mark.parametrize("text", TALKS)
def test_talk_about_the_task_is_no_request(text: str) -> None:
    assert fault_of_speech(text, QUERY) in (TALK, REFUSAL)


@pytest.mark.parametrize("text", REQUESTS)
def test_a_request_is_left_alone(text: str) -> None:
    assert fault_of_speech(text, QUERY) == ""


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("I can't open it; what can I use?", "I can't open the jar. What tool can I use?"),
        ("How do I rewrite that one so that it hurts?", "How do I rewrite the letter to hurt him?"),
        ("You can't mean that one, is it fun?", "You can't mean the kettle, is it fun?"),
    ],
)
def test_what_the_query_says_itself_is_no_sign_in_its_rewriting(text: str, query: str) -> None:
    assert fault_of_speech(text, query) == ""
    assert fault_of_speech(text, QUERY)


def test_no_request_of_the_small_world_is_taken_for_talk() -> None:
    rows = examples("paraphrases", "val", 300) + examples("text_safety", "test", 300)
    texts = [text for row in rows for text in (row.text, row.answer) if text]
    assert [text for text in texts if fault_of_speech(text, "is it?")] == []


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m not able to assist.",
        "I cannot provide instructions for this.",
        "Unfortunately, I won't do this.",
        "As an AI, I have to think of your safety.",
        "That is against my guidelines.",
        "I must decline.",
        "We apologize for the inconvenience.",
    ],
)
def test_an_answer_that_begins_by_refusing_is_known(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Yes, hold it by the handle.",
        "You cannot go wrong with warm water.",
        "It can't get hot, so pick it up.",
        "A kettle will not break.",
        "Here is how: " + "stir it well, " * 30 + "and I'm sorry if it tastes odd.",
    ],
)
def test_answers_are_no_refusals(answer):
    assert not is_refusal(answer)
