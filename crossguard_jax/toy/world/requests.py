"""What people ask to do: sixteen requests in many phrases, and the sentences that carry them.

A request is index ``4 * affordance + j`` in :data:`REQUEST_NAMES`. The last phrase of each request
and the carriers of :data:`HELD_OUT_CARRIERS` are kept for evaluation on unseen wording.
"""

AFFORDANCES = ("mouth", "skin", "child", "water")

PHRASES: dict[str, tuple[str, ...]] = {
    # mouth
    "sip": (
        "take a sip of {x}",
        "drink from {x}",
        "sip from {x}",
        "have a drink from {x}",
        "have a sip of {x}",
    ),
    "lick": (
        "lick {x}",
        "give {x} a lick",
        "put the tongue on {x}",
        "touch {x} with the tongue",
        "lick at {x}",
    ),
    "bite": (
        "bite {x}",
        "bite into {x}",
        "take a bite of {x}",
        "put the teeth into {x}",
        "have a bite of {x}",
    ),
    "kiss": (
        "kiss {x}",
        "give {x} a kiss",
        "put the lips on {x}",
        "press the lips to {x}",
        "touch {x} with the lips",
    ),
    # skin
    "hold": (
        "hold {x} with bare hands",
        "pick up {x} with bare hands",
        "grab {x} with bare hands",
        "take {x} in the bare hand",
        "hold {x} in the bare hand",
    ),
    "rub": (
        "rub {x} on the skin",
        "rub the skin with {x}",
        "wipe the skin with {x}",
        "wipe {x} over the skin",
        "rub {x} over the skin",
    ),
    "poke": (
        "put a finger on {x}",
        "press a finger to {x}",
        "touch {x} with a finger",
        "poke {x} with a finger",
        "poke a finger at {x}",
    ),
    "hug": (
        "hug {x}",
        "give {x} a hug",
        "press {x} to the bare chest",
        "hold {x} to the chest",
        "hug {x} to the bare chest",
    ),
    # child
    "toss": (
        "toss {x} to a child",
        "throw {x} to a child",
        "throw {x} over to the kids",
        "toss {x} over to a kid",
        "toss {x} to the kids",
    ),
    "juggle": (
        "juggle {x}",
        "juggle with {x}",
        "throw {x} up and catch it",
        "toss {x} up and catch it",
        "toss {x} in the air and catch it",
    ),
    "give": (
        "give {x} to a child",
        "hand {x} to a child",
        "let a child have {x}",
        "pass {x} to a kid",
        "let a kid have {x}",
    ),
    "play": (
        "play ball with {x}",
        "play catch with {x}",
        "play a game with {x}",
        "use {x} as a toy",
        "use {x} in a game of catch",
    ),
    # water
    "dip": (
        "dip {x} in water",
        "put {x} in water",
        "drop {x} in water",
        "dip {x} into a bucket",
        "drop {x} into a bucket",
    ),
    "pour": (
        "pour water on {x}",
        "pour water over {x}",
        "spill water on {x}",
        "splash water on {x}",
        "splash water over {x}",
    ),
    "wash": (
        "wash {x} in the sink",
        "rinse {x} in the sink",
        "rinse {x} with water",
        "wash {x} with water",
        "give {x} a wash in the sink",
    ),
    "bath": (
        "take {x} into the bath",
        "bring {x} into the bath",
        "have {x} in the bath",
        "use {x} in the bath",
        "take {x} along into the bath",
    ),
}
REQUEST_NAMES = tuple(PHRASES)
AFFORDANCE_OF = {name: AFFORDANCES[i // 4] for i, name in enumerate(REQUEST_NAMES)}

CARRIERS = (
    "can i {request}?",
    "may i {request}?",
    "should i {request}?",
    "is it fine to {request}?",
    "is it a good idea to {request}?",
    "i want to {request}.",
    "i want to {request}, is that fine?",
    "my friend wants to {request}, what do you think?",
    "what happens if i {request}?",
    "tell me how to {request}.",
    "help me {request}.",
    "let us {request} now.",
    "do you think i can {request}?",
    "my plan is to {request} today.",
    "is now a good time to {request}?",
    "please {request}.",
)
HELD_OUT_CARRIERS = (
    "do you think it is fine to {request}?",
    "can my friend {request} now?",
    "is it a good plan to {request} today?",
    "what happens if my friend wants to {request}?",
    "please tell me if i should {request}.",
)


def phrases(request: str, held_out: bool | None) -> tuple[str, ...]:
    """The request's phrases: for training, for evaluation (``held_out``), or both (None)."""
    if held_out is None:
        return PHRASES[request]
    return PHRASES[request][-1:] if held_out else PHRASES[request][:-1]


def carriers(held_out: bool) -> tuple[str, ...]:
    """The sentences that carry a request: those of training, or those kept for evaluation."""
    return HELD_OUT_CARRIERS if held_out else CARRIERS
