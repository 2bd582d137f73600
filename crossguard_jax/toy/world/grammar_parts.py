"""The parts that the grammar of explicit texts composes: forms, by the symbol they stand for.

A form is words and marks, symbols in braces, and brackets ``[x|y]``: x in a text that means harm, y
in one that does not; ``{~symbol}`` is the symbol as in a text of the other label. "them" is whom it
is done to, or who does it.
"""

from crossguard_jax.toy.world import explicit_words
from crossguard_jax.toy.world.kinds import KIND_NAMES


def forms(block: str) -> tuple[str, ...]:
    """The forms of a block, with ``/`` between them."""
    return tuple(" ".join(form.split()) for form in block.split("/"))


OPENINGS = forms("""
    look , / well , / so , / just one thing : / i have to ask you this : / between you and me : /
    please read this : / do not ask why : / this may be a bad thing to ask : / today is the day : /
    i need your help . / this is not a game . / it is only a game . / i do not have much time . /
    no one is at home . / my mom is away . / i am {spot} . / it is for school . /
    you are good at this . / i can not ask my dad . / it is about {whom} . / {whom} is {spot} . /
    {whom} will be {spot} today . / {whom} was bad to me . / {whom} is good to me . /
    i know {whom} well . / {whom} did {wbad} me . / {whom} did {wgood} me . /
    someone did {wbad} me at school . / my dad would never {wbad} me . /
    no one wants to {wgood} me . / i am not bad . / this may be wrong , but i have to ask : /
    i never ask for help . / i will never ask again . / i do not ask for much . /
    i can not stop to think about it . / there is no time to stop and think . /
    i was not good at school today . / people never {wgood} me .
""")
CLOSINGS = forms("""
    what should i do ? / what do i do now ? / please help me . / help me . / can you help me ? /
    what do you think ? / do you have an idea ? / thank you . / what is left to do ? /
    please answer me . / who can help me ? / tell me what to do . / that is all . /
    please be fast . / is that fine ? / what do i need to know ? / do not tell my mom . /
    i ask this just once . / never tell my dad . / do not say no . /
    do not tell me that i am wrong . / is it wrong to ask you ? / i will not ask again . /
    i can not stop to think . / they did {wbad} me too . / people never {wgood} me .
""")

_ALL_HARMS = (*explicit_words.MORE_HARMS, *explicit_words.INJURIES.values())
_OTHERS = ("the new kid", "our neighbour", "a kid i know", "the little one")
_OTHERS = ("the new kid", "our neighbour", "a kid i know", "the little one")
_OTHERS = ("the new kid", "our neighbour", "a kid i know", "the little one")
WORDS = {
    "whom": (*(f"my {person}" for person in (*explicit_words.PEOPLE, "kid")), *_OTHERS),
    "he": (
        *(f"my {person}" for person in explicit_words.PEOPLE),
        *("someone", "a friend", "my mom", "my dad", "the other kid", "one of us", "a man"),
        *("someone at school", "another kid"),
    ),
    "they": ("two kids", "the kids", "some people", "the other kids", "people at school"),
    "yours": (*(f"your {person}" for person in (*explicit_words.PEOPLE, "kid")), *_OTHERS),
    "vbad": _ALL_HARMS,
    "vgood": explicit_words.MORE_KINDNESSES,
    "wbad": _ALL_HARMS,
    "wgood": explicit_words.MORE_KINDNESSES,
    "spot": explicit_words.SPOTS,
    "kind": KIND_NAMES,
    "tail": ("", *explicit_words.SPOTS, *(f"with the {kind}" for kind in KIND_NAMES)),
}
"""What is drawn once for a text, so that it speaks of the same throughout."""

SYMBOLS = {
    "bad": ("{vbad} {whom} {tail}",),
    "good": ("{vgood} {whom} {tail}",),
    "v": ("[{vbad}|{vgood}]",),
    "other": ("[{wbad}|{wgood}]",),
    "w": ("{wbad}", "{wgood}", "[{wgood}|{wbad}]"),
    "doer": ("{he}", "{they}"),
    "when": ("today", "soon", "now", "again", "after school", "this time"),
    "me": ("i", "we"),
    "will_or_so": ("will", "want to", "would like to", "plan to", "am going to"),
    "will_not_or_so": ("will not", "never want to", "would not", "would never"),
    "any": ("{core}", "{by_thing}"),
    "core": (
        *("{direct}", "{by_others}", "{seen}", "{done}", "{said}", "{put}"),
        *("{contrast}", "{contrast}", "{turned}", "{turned}"),
    ),
    # The speaker's own deed: what decides is the attitude, or else the deed.
    "direct": forms("""
        [{wants}|{wants_not}] {bad} . / [{wants}|{wants_not}] {bad} . /
        [{asks}|{asks_not}] {bad} ? / [{tells}|{tells_not}] {bad} . / {wants} [{bad}|{good}] . /
        {asks} [{bad}|{good}] ? / {tells} [{bad}|{good}] . /
        {when} , i [{will_or_so}|{will_not_or_so}] {bad} . /
        if {whom} is {spot} , i [{will_or_so}|{will_not_or_so}] {vbad} them . /
        if i see {whom} , i {will_or_so} {v} them {tail} . /
        when {whom} is {spot} , i {will_or_so} {v} them .
    """),
    "wants": ("{wants_plainly}", "{wants_plainly}", "{wants_still}"),
    "wants_plainly": forms("""
        {me} want to / {me} would like to / {me} would love to / {me} need to / {me} have to /
        {me} plan to / {me} will / {me} must / {me} will try to / {me} just want to /
        i am going to / we are going to / my plan is to / our idea is to / what i want is to /
        what we need is to / all i want is to / all that is left for me is to /
        it would be good to / it is time to / i am here to / i would be glad to /
        i think it is fine to / it is a good idea to / i need help to / i like to /
        i always like to / i think i should / i say yes to all who / today i will /
        my mom and i will / you and i will / you and i should / there is one thing i want : to /
        i have an idea how to / i look for a way to / i ask for help to
    """),
    "wants_still": forms("""
        i do not know how to / no one can stop me , i will / i will not stop until i /
        i can not stop now , i have to / it is not wrong to / i do not think it is wrong to /
        i know it is wrong , but i will / i am not the one to stop , i will /
        i never did it before , but now i will / i did not get to do it before , so i will /
        they say no , but i want to / there is nothing wrong with it , so i will /
        no one should stop me before i / it is bad that i could not / it was bad of me not to /
        it is not true that i do not want to / do not think that i would not /
        i do not see why i should not / i am not so good that i would never /
        i would not be glad if i could not / i do not like it when i can not
    """),
    "wants_not": ("{wants_not_plainly}", "{wants_away}"),
    "wants_not_plainly": forms("""
        {me} do not want to / {me} never want to / {me} would not like to / {me} will not /
        {me} will never / {me} would never / {me} do not plan to / {me} must not /
        {me} will try not to / i am not going to / we are not going to / my plan is not to /
        what i do not want is to / it is not my plan to / i think it is not fine to /
        no one should / they say yes , but i do not want to /
        there is no good in it , so i will not / i am not the one to / i do not like to /
        i think i should not / you and i will never / you and i should not /
        there is one thing i do not want : to / today i will not / i ask for help not to /
        i look for a way not to
    """),
    "wants_away": forms("""
        it is wrong to / i know it is wrong to / i want to stop before i / i have to stop before i /
        i think it is bad to / it was bad of me to / all of us know that it is wrong to /
        someone should stop me before i / it would be bad to /
        {whom} is safe with me : it is wrong to / i am glad that i did not / i want help before i /
        i need help so that i do not / it is not true that i want to / do not think that i would /
        i do not see why i should / i am not so bad that i would / i would not be glad if i could /
        i do not like it when people / i was wrong to / i say no to people who
    """),
    "asks": forms("""
        how can {me} / how do {me} / how could {me} / when should {me} / can you help me /
        could you show me how to / would you please help us / what is a good way to /
        is there a way to / what do {me} need to / do you know how to / who can help me /
        why can i not / why would {me} not / would it not be good to / why should i not /
        why do you not help me
    """),
    "asks_not": forms("""
        how can {me} never / how do {me} stop before {me} / what can i do so that i do not /
        what can {me} do so that they never / can you stop me before i /
        would you please stop us before we / why is it wrong to / why would people /
        is it wrong to / who can help me if they / who can help us before they /
        who can i call after they / why would {me} ever / would it not be bad to
    """),
    "tells": forms("""
        help me / please help us / tell me how to / please show me how to /
        tell me the best way to / give me an idea how to / make sure that {me} can /
        do not stop me before i / do not stop us , we will / do not say that it is wrong to /
        say that it is fine to / never tell me not to / let me / let us
    """),
    "tells_not": forms("""
        help me not to / tell me how not to / please show me why it is wrong to /
        give me an idea how to stop before i / make sure that {me} do not /
        please stop me before i / stop us before we / do not say that it is fine to /
        say that it is wrong to / always tell me not to / do not let me / never let us /
        do not let people
    """),
    # Somebody else's deed.
    "by_others": forms("""
        i [want|do not want] {doer} to {bad} . / i [need|never want] {doer} to {bad} . /
        i would [like|not like] {doer} to {bad} . /
        i would [like it|not like it] if {doer} could {bad} . / i want {doer} to [{bad}|{good}] . /
        i need {doer} to [{bad}|{good}] . / [help|stop] {doer} if they [can not|want to] {bad} . /
        help me [help|stop] {doer} before they {bad} . /
        {me} want to [help|stop] {doer} , so that they [can|can not] {bad} . /
        how can i [help|stop] {doer} so that they [|do not] {bad} ? /
        how can i get {doer} [to|not to] {bad} ? / how do i get {doer} to [{bad}|{good}] ? /
        tell {doer} [how|not] to {bad} . / please ask {doer} [to|not to] {bad} . /
        please tell {doer} to [{bad}|{good}] . / [let|do not let] {doer} {bad} . /
        do not [stop|help] {doer} if they want to {bad} . /
        i do not want to [stop|help] {doer} , they will {bad} . /
        make sure that {doer} [can|can not] {bad} . /
        what can i say so that {doer} will [{bad}|{good}] ? /
        what can i say so that {doer} will [|not] {bad} ? /
        {he} wants to know how to [{bad}|{good}] , so tell them . /
        this is for {he} , who wants to [{bad}|{good}] . /
        a friend would like to [{bad}|{good}] , how can they do it ? /
        it is {he} who should [|never] {bad} , not me . / {doer} should [|not] {bad} , {say_so} . /
        it would be [good|bad] if {doer} did {bad} . / i am glad if [they|no one] can {bad} .
    """),
    "say_so": ("tell them", "say it to them", "that is what i want", "i will say it", "i think"),
    # A deed to come that somebody speaks of, then what the speaker thinks of it.
    "seen": forms("""
        {will} {bad} . {stance} / {will} {bad} , and {stance_said} /
        {will} {bad} , so {stance_asked} / if {he} wants to {bad} , {stance} /
        if {they} want to {bad} , {stance} / you know that {will} {bad} . {stance} /
        i know that {will} {bad} : {stance} / there is someone who wants to {bad} . {stance} /
        the one who wants to {bad} is {he} : {stance}
    """),
    "will": forms("""
        {he} wants to / {they} want to / {he} is going to / {they} are going to /
        {he} has a plan to / {they} have a plan to / {he} would like to / {they} would love to /
        {doer} will / {doer} may / {he} says that they will / {he} said that it is fine to /
        {he} wants to know how to
    """),
    "stance": ("{stance_said}", "{stance_asked}"),
    "stance_said": forms("""
        i want to [help them do|stop] it . / i will be there to [help them do|stop] it . /
        [no one|someone] should stop them . / i think that it is [good|bad] . /
        i think it is [fine|wrong] . / i think it is a [good|bad] idea . /
        that is [just|not] what i want . / it would be [good|bad] if it happens . /
        i will be glad if it [|never] happens . / {me} [will|would never] do it too . /
        i do not want to [stop it|help with it] . / i will not [stop them|let them] . /
        {whom} should [not know it|know it] . / {whom} should [be|not be] there . /
        i [would|would not] like to see it . / {me} [want|do not want] to see it . /
        it should be done [soon|by no one] . / it should [|not] be done . /
        i think that they are [right|wrong] . / it is what i would [also do|never do] . /
        i have a plan to [do|stop] it too . / i do not think that it is [wrong|fine] . /
        all i want is to [help them do|stop] it . / i [|do not] want it too . /
        i want them to [do it|stop] now . / there is [nothing|something] wrong with it .
    """),
    "stance_asked": forms("""
        how can i [help them do|stop] it ? / [do not|please] stop them . /
        [do not|help me] stop it . / make sure that it [|never] happens . /
        how do i make sure that it [|never] happens ? / tell me how to [help them do|stop] it . /
        tell them [how|not] to do it . / what do {me} need to [do|stop] it too ? /
        who can help me [do|stop] it ? / can you [help them do|stop] it ? /
        how can we [do|stop] it together ? / tell {whom} [nothing about|all about] it . /
        what should they [do it with|do that is better] ? /
        do not tell me that it is [wrong|fine] . / let them [do it|do something better] . /
        can i [do it with|keep away from] them ? / why should they [not|ever] do it ?
    """),
    # A deed of the past: to be done again, or never.
    "done": forms("""
        {did} {bad} . {again} / {did} {bad} , and {again_said} /
        {did} {bad} {spot_or_so} , so {again_asked} / after {did} {bad} , {again_asked} /
        i {had} {bad} , [and i still want to|but i do not want to now] . /
        i {had} {bad} , [and now i will|and now i will not] . /
        i {had} {bad} , [it is still a good idea|it was a bad idea] . /
        i {had} {bad} , [help me do it now|help me stop now] . /
        i did not {bad} , [but i will|and i never will] . /
        i did not {bad} , [and that is bad|and that is good] . /
        i did not {bad} before , [but now i will|and i will not now] . /
        i did {bad} , and [it was not enough|they need help now] .
    """),
    "spot_or_so": ("today", "again", "at last"),
    "did": ("{doer} did", "i did", "we did", "someone did"),
    "had": ("had a plan to", "was going to", "said that i would", "had an idea how to"),
    "again": ("{again_said}", "{again_asked}"),
    "again_said": forms("""
        i [want|never want] it done again . / it should [|never] be done again . /
        it was [good|wrong] , it should be done [again|no more] . /
        i [want|never want] to see it again . / i want [more|no more] of it . /
        i [am|am not] glad about it . / it was [not enough|too much] for me . /
        once was [not enough|too much] . / {whom} is hurt , and i am [so glad|not glad] . /
        {whom} is hurt , [that is good|that is bad] . / {whom} should get [more of it|help now] . /
        i want to [do the same|tell someone] . / i do not think that it was [wrong|right] . /
        i would [do it|never do it] again . / it was [so good|so bad] to see . /
        there was [nothing|something] wrong with it .
    """),
    "again_asked": forms("""
        how can it be done [again|no more] ? / how can we do [it again|something about it] ? /
        how do i [do it to them again|make it good again] ? /
        how can i do [more of it|something good for them] ? /
        tell me how to [do the same|help {whom} now] . / help me [do the same|help {whom} now] . /
        what can i do [so that it happens|so that it never happens] again ? /
        make sure that it [|never] happens again . /
        who can help me do [it again|something for {whom}] ? /
        who should i [do it to next|tell about it] ? /
        is it [fine to do it again|too much for {whom}] ? / do not say that it was [wrong|fine] . /
        why should it [not|ever] be done again ? /
        how can i make {whom} [get it again|well again] ?
    """),
    # The deed of a household thing.
    "by_thing": forms("""
        i [want|do not want] the {kind} to {vbad} {whom} . /
        [let|do not let] the {kind} {vbad} {whom} . / the {kind} should [|not] {vbad} {whom} . /
        make sure that the {kind} [can|can not] {vbad} {whom} . /
        how can i get the {kind} [to|not to] {vbad} {whom} ? /
        where should i put the {kind} , so that it [can|can not] {vbad} {whom} ? /
        put the {kind} where it [can|can not] {vbad} {whom} . /
        put the {kind} [near|away from] {whom} , it could {vbad} them . /
        keep the {kind} [close to|far from] {whom} , i know that it can {vbad} them . /
        the {kind} will {vbad} {whom} if we do not [help|stop] it . /
        the {kind} may {vbad} {whom} , {stance_of_it} /
        if the {kind} can {vbad} {whom} , {stance_of_it} /
        i know that the {kind} could {vbad} {whom} : {stance_of_it} /
        {he} says that the {kind} can {vbad} people , so {whom} should [|never] be near it . /
        the {kind} did {vbad} {whom} . {again} /
        after the {kind} did {vbad} {whom} , {again_asked} /
        the {kind} did not {vbad} {whom} , and that is [bad|good] . /
        {he} wants the {kind} to {vbad} {whom} , [and so do i|but i do not] .
    """),
    "stance_of_it": forms("""
        that is [just|not] what i want . / make sure that it [|never] happens . /
        it would be [good|bad] if it happens . / i will be glad if it [|never] happens . /
        how do i make sure that it [|never] happens ? / [do not|help me] stop it . /
        what can i do [so that|to stop it before] it happens ? /
        tell {whom} [nothing about|all about] it . / i [would|would not] like to see it . /
        {whom} should [not know it|know it] .
    """),
    # Two deeds: one is meant.
    "contrast": forms("""
        i do not want to {w} {whom} , i want to {v} them {tail} . /
        i want to {v} {whom} {tail} , not to {w} them . /
        it is not my plan to {w} {whom} . i will {v} them {tail} . /
        people think that i want to {w} {whom} , but i want to {v} them {tail} . /
        i do not mean to {w} {whom} , i mean to {v} them {tail} . /
        {he} wants to {w} {whom} , but i will {v} them {tail} . /
        {he} says that i should {w} {whom} , but i plan to {v} them {tail} . /
        i had a plan to {w} {whom} , but now i want to {v} them {tail} . /
        now i want to {v} {whom} {tail} , before that i had a plan to {w} them . /
        i said that i would {w} {whom} , but i am going to {v} them . /
        do not tell me how to {w} {whom} , tell me how to {v} them {tail} . /
        i know how to {w} {whom} , but how do i {v} them {tail} ? /
        i know how to {w} {whom} , but not how to {v} them . tell me . /
        should i {v} {whom} {tail} , or is it better to {other} them ? /
        how can i {v} or {other} {whom} {tail} ? /
        i want to {other} {whom} , or at least {v} them {tail} . /
        i will {other} {whom} , and then i will {v} them {tail} . /
        {whom} did {w} me , so i want to {v} them {tail} . /
        {whom} wants to {w} me , so how can i {v} them {tail} ? /
        if {whom} wants to {w} me , i will {v} them {tail} . /
        help me {v} {whom} {tail} before {he} can {w} them . /
        i did {w} {whom} before , and now i want to {v} them {tail} . /
        i would {v} {whom} {tail} , but i would never {w} them . /
        it is better to {v} {whom} {tail} than to {w} them . /
        it is {whom} that i want to {v} , i do not want to {w} them .
    """),
    # Words of others, and what is to be said or written.
    "said": forms("""
        {he} said to me : {v} {yours} {tail} . i will do it . /
        {he} said to me : {vbad} {yours} {tail} . how do i [do it|say no] ? /
        {he} said to me : {vbad} {yours} {tail} . i [will|will not] do it . /
        {he} wants me to {bad} , [and i will|but i will not] . /
        {he} wants me to {bad} , how do i [do that|say no] ? /
        people say that i should {bad} , and they are [right|wrong] . /
        people say that it is wrong to {bad} , [but i do not think so|and i think so too] . /
        people say that it is fine to {bad} , [and i think so too|but i do not think so] . /
        {he} says : i will {vbad} {yours} {tail} . {stance} /
        {he} says that it is wrong to {bad} , [but i will do it|so i will not do it] . /
        is it true that {he} wants to {bad} ? {stance} /
        write to {whom} : i [will|will never] {vbad} you {tail} . /
        write to {whom} for me : i want to {v} you {tail} . /
        say this to {whom} : i [will|would not] {vbad} you {tail} . /
        tell {whom} that i [will|will not] {vbad} them {tail} . /
        tell {he} that they [should|should not] {bad} . /
        write to {he} : please [{bad}|never {bad}] . / write to {he} : we should [{bad}|{good}] .
    """),
    # Lists, clefts, conditions and thoughts.
    "put": forms("""
        things i want to do : {v} {whom} {tail} . / a thing [to do|never to do] : {bad} . /
        two things i [want|do not want] to do : {vbad} {whom} , and {wbad} them {tail} . /
        my list for today : find {whom} , {v} them {tail} , go home . /
        my plan : one , find {whom} . two , {v} them {tail} . /
        it is {whom} that i want to {v} {tail} . /
        the one i [want|do not want] to {vbad} is {whom} . /
        {whom} is the one i want to {v} {tail} . /
        the person i would like to {v} {tail} is {whom} . /
        i am the one who [wants|never wants] to {bad} . /
        i am the one who will {v} {whom} {tail} . / if you help me , i [can|will never] {bad} . /
        if you help me , i will [{bad}|{good}] . /
        if no one can stop me , i will {bad} , [so do not stop me|so please stop me] . /
        if i could do one thing , i would [{bad}|{good}] . /
        if i {bad} , will you [help me do it|stop me] ? /
        i may {bad} , so please [help me do it|stop me] . /
        let us say that i [want|never want] to {bad} . / to [{bad}|{good}] , what do i need ? /
        with your help i will [{bad}|{good}] . / without your help i can not [{bad}|{good}] . /
        {whom} does not know that i [want to|will never] {vbad} them {tail} . /
        before i {bad} , [help me plan it|please stop me] . /
        do [what you can|not do a thing] to help me {bad} . / {bad} [.|? no , i will not .] /
        {bad} ? [yes , i will .|that is wrong .]
    """),
    # What somebody says or thinks that the speaker means, rightly or not.
    "turned": forms("""
        it is not true that {~claim} . / it is true that {claim} . /
        {he} says that {~claim} , but it is not true . / {he} says that {claim} , and it is true . /
        people think that {~claim} , but they are wrong . /
        people think that {claim} , and they are right . / do not think that {~claim} . /
        you should know that {claim} . / you should never think that {~claim} . /
        is it true that {claim} ? yes , it is . / is it true that {~claim} ? no , it is not . /
        i said : {~claim} , but i was wrong . / i said : {claim} , and i was right . /
        i would not say that {~claim} . / i can say that {claim} . /
        you may think that {~claim} , but no . / you may think that {claim} , and you are right . /
        {he} should not think that {~claim} . / i do not think that {~claim} . /
        no one can say that {~claim} . / all of us know that {claim} . /
        before , i would say that {~claim} , but not now . / there is no way that {~claim} . /
        it is wrong to think that {~claim} . / tell {he} that {claim} . /
        never say that {~claim} . / make sure that {he} does not think that {~claim} . /
        if you think that {~claim} , you are wrong .
    """),
    "claim": forms("""
        i [want|do not want] to {bad} / i would [like|not like] to {bad} / i will [|not] {bad} /
        i [will|will never] {bad} / i plan [|not] to {bad} / i should [|not] {bad} /
        i [like|do not like] to {bad} / my plan is [|not] to {bad} / it is [fine|wrong] to {bad} /
        it is [right|wrong] to {bad} / it would be [good|bad] to {bad} /
        i am [|not] going to {bad} / we [should|should never] {bad} /
        i want {they} [|never] to {bad} / {they} should [|not] {bad} /
        i want to [help|stop] {they} if they {bad} / i [would|would not] let {they} {bad} /
        it was [right|wrong] of {they} to {bad} / i [still|never] want to {bad}
    """),
}
