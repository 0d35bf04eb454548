"""What the desk says: the patterns of each act, with their probabilities (weight 1/rank)."""

_ASK = "(|Of course. |Certainly. |Sure. )"
_MORE = "(Anything else?|What else can I do for you?|Is there something else?)"
_SUITS = "(Would you like that one?|Does that suit you?|Shall we take it?)"
_WHICH = "(Which one would you like?|Which do you prefer?|Does one of them suit you?)"
_FOUND = "(I have found|You could try|I can suggest)"
_PLACE = "{{name{0}}} at {{cost{0}}} pounds, rated {{rating{0}}}"
_TRAIN = "{{name{0}}} at {{leaves{0}}} for {{cost{0}}} pounds"


def _offer(row: str, count: int) -> str:
    rows = [row.format(number) for number in range(1, count + 1)]
    if count == 1:
        return f"{_FOUND} {rows[0]}. {_SUITS}"
    return f"{_FOUND}, first, {rows[0]}, and, second, {rows[1]}. {_WHICH}"


PATTERNS: dict[str, str] = {
    "hello": "(Hello, welcome|Welcome|Good day)(| to the front desk). "
    "(How can I help?|What can I do for you?|How may I help you?)",
    "chat.feeling": "(I am fine, thank you|Very well, thanks|Never better). (How can I help?|And you?)",
    "chat.weather": "(The sky changes quickly here|Bring a coat just in case). (How can I help?|"
    "What may I look up for you?)",
    "chat.name": "(I am the front desk assistant|Just call me the desk). (How can I help?|"
    "Nice to meet you.)",
    "chat.robot": "(I am a small language model|Yes, a small one at that|A program, not a person). "
    "(How can I help?|I still try my best.)",
    "chat.town": "(It is a lovely town|People enjoy it here), (with a harbour and a river|"
    "especially the museums). (How can I help?|What may I look up for you?)",
    "chat.joke": "(Why did the train blush? It saw the station change.|"
    "I would tell one about the hotel, but I have reservations.)",
    "chat.praise": "(That is kind of you|Thank you, you are too kind). (How can I help?|Anything else?)",
    "chat.mood": "(I understand|I see), (travelling does that|that happens to many). "
    "(How can I help?|What can I do for you?)",
    "decline": "(I am afraid|I am sorry, but) (I cannot help with that|that is beyond this desk). "
    "(I know about restaurants, hotels, museums and trains.|Ask me about places to eat, stay and visit.)",
    "ask.area": f"{_ASK}(Which area|What part of town) (would you like|do you prefer|should it be in)?",
    "ask.food": f"{_ASK}(What kind of food|Which cuisine) (would you like|do you fancy|do you prefer)?",
    "ask.price": f"{_ASK}(What price range|How expensive) (would you like|should it be|did you have "
    "in mind)?",
    "ask.extra": f"{_ASK}(Do you need anything special there|Which comfort matters most|"
    "What should it offer)?",
    "ask.kind": f"{_ASK}(What are you interested in|What should it be about|Which subject do you like)?",
    "ask.city": f"{_ASK}(Where are you going|Which city are you travelling to|What is the destination)?",
    "ask.day": f"{_ASK}(On which day|For what day|Which day should it be)?",
    "ask.part": f"{_ASK}(What time of day suits you|When would you like to leave|Morning, afternoon "
    "or evening)?",
    "ask.time": f"{_ASK}(At what time|What time would you like|When will you arrive)?",
    "ask.people": f"{_ASK}(For how many people|How many of you will there be|How many guests)?",
    "ask.nights": f"{_ASK}(For how many nights|How long will you stay|How many nights)?",
    "offer.1": _offer(_PLACE, 1),
    "offer.2": _offer(_PLACE, 2),
    "offer.train.1": _offer(_TRAIN, 1),
    "offer.train.2": _offer(_TRAIN, 2),
    "nothing_found": "(I am sorry, |Unfortunately, |I am afraid )"
    "(there is nothing like that|I cannot find one|nothing matches). "
    "(Could you change something?|Would something else do?|What could we change?)",
    "chosen": "{name}(, good choice|, certainly| it is). "
    "(Shall I book it?|Would you like a booking or some details?)",
    "booked": "(It is booked|All done|That is arranged). "
    "(Your reference is {reference}|The booking code is {reference}). " + _MORE,
    "taken.time": "(I am sorry, |Unfortunately ){time} is (taken|not free), but {instead} is free. "
    "(Would that do?|Shall I book that?|Is that fine?)",
    "taken.day": "(I am sorry, |Unfortunately )they are (full|fully booked) on {day}, but {instead} is "
    "free. (Would that do?|Shall I book that?|Is that fine?)",
    "tell.phone": "(The phone number of|The number to call for) {name} is {phone}. " + _MORE,
    "tell.street": "{name} is (at|found at|located at) {street}. " + _MORE,
    "tell.hours": "{name} opens (at|from) {hours}. " + _MORE,
    "tell.platform": "{name} (leaves from|departs from|goes from) platform {platform}. " + _MORE,
    "tell.duration": "(The ride takes|It takes|You will travel for) {duration}. " + _MORE,
    "recall.reference": "(The reference|The booking code) for the {domain} (is|was) {reference}. "
    + _MORE,
    "recall.name": "(The {domain} is|The {domain} is called|It was) {name}. " + _MORE,
    "more": "(Certainly. |Of course. |With pleasure. )" + _MORE,
    "pardon": "(I am sorry, |Pardon, )(I did not understand that|could you put it another way)"
    "(.| please.)",
    "goodbye": "(Goodbye|Have a nice day|You are welcome|Enjoy your stay)(.|!| and see you soon.)",
}
