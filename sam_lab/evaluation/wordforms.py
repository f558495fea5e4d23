"""The words by which a description names a class of ESC-50, and the rule by which it is correct."""

import re

# The 50 classes of ESC-50 and the words that name them. A line has the format `label: form; form`; a form is one or
# more slots joined by `+`, a slot is words joined by `|`. A text names a label if, for one of its forms, the text
# contains a word of every slot. Single forms are loose on purpose ("a motor" names `engine`), but a text that names
# two of the fifty classes is wrong.
ESC50_FORMS_TEXT = """
airplane: airplane|airplanes|aeroplane|aeroplanes|plane|planes|aircraft|jet
breathing: breath|breaths|breathe|breathes|breathing
brushing_teeth: brush|brushes|brushing + tooth|teeth; toothbrush|toothbrushing
can_opening: can|cans|tin + open|opens|opening|opened
car_horn: horn|horns; honk|honks|honking
cat: cat|cats|kitten; meow|meows|meowing|mew
chainsaw: chainsaw|chainsaws
chirping_birds: bird|birds; chirp|chirps|chirping|tweet|tweets|tweeting + bird|birds|sparrow|sparrows
church_bells: bell|bells; church
clapping: clap|claps|clapping; applause|applaud|applauds|applauding
clock_alarm: alarm|alarms
clock_tick: tick|ticks|ticking
coughing: cough|coughs|coughing
cow: cow|cows|cattle; moo|moos|mooing
crackling_fire: fire|fires|campfire|fireplace; crackle|crackles|crackling|crackled
crickets: cricket|crickets
crow: crow|caw|caws|cawing
crying_baby: baby|babies|infant|infants + cry|cries|crying|cried|wail|wails|wailing
dog: dog|dogs|puppy; bark|barks|barking
door_wood_creaks: creak|creaks|creaking|creaky
door_wood_knock: knock|knocks|knocking
drinking_sipping: drink|drinks|drinking; sip|sips|sipping
engine: engine|engines|motor|motors
fireworks: firework|fireworks
footsteps: footstep|footsteps; step|steps|walk|walks|walking
frog: frog|frogs; croak|croaks|croaking
glass_breaking: glass|glasses + break|breaks|breaking|shatter|shatters|shattering|smash|smashes|smashing
hand_saw: handsaw|handsaws; saw|saws|sawing
helicopter: helicopter|helicopters|chopper
hen: hen|hens; cluck|clucks|clucking
insects: insect|insects; buzz|buzzes|buzzing; bee|bees|mosquito|mosquitoes
keyboard_typing: keyboard; type|types|typing|typed
laughing: laugh|laughs|laughing|laughter
mouse_click: mouse + click|clicks|clicking
pig: pig|pigs; oink|oinks|oinking
pouring_water: pour|pours|pouring|poured
rain: rain|rains|raining|rainfall
rooster: rooster|roosters|cockerel
sea_waves: wave|waves; sea|ocean
sheep: sheep|lamb|lambs; bleat|bleats|bleating
siren: siren|sirens
sneezing: sneeze|sneezes|sneezing
snoring: snore|snores|snoring
thunderstorm: thunder|thunders|thunderstorm|thunderstorms
toilet_flush: toilet; flush|flushes|flushing
train: train|trains
vacuum_cleaner: vacuum|vacuums|vacuuming
washing_machine: washing + machine
water_drops: drip|drips|dripping; drop|drops|droplet|droplets
wind: wind|winds|windy
"""


def _parse_forms(text: str) -> dict[str, list[list[frozenset[str]]]]:
    forms = {}
    for line in text.strip().splitlines():
        label, alternatives = line.split(": ")
        forms[label] = [
            [frozenset(slot.strip().split("|")) for slot in form.split(" + ")] for form in alternatives.split("; ")
        ]
    return forms


# label -> forms -> slots -> words
ESC50_FORMS = _parse_forms(ESC50_FORMS_TEXT)

MAX_WORDS = 25


def named_labels(text: str) -> set[str]:
    """The ESC-50 labels that a text names.

    The text is case-folded and split into words `[a-z]+`; a label is named if, for one of its forms in
    [`ESC50_FORMS`], the text contains a word of every slot, in any order.

    Args:
        text (`str`): A description, of any length.
    """
    words = set(re.findall("[a-z]+", text.casefold()))
    return {label for label, forms in ESC50_FORMS.items() if any(all(slot & words for slot in form) for form in forms)}


def names_label(text: str, label: str) -> bool:
    """Whether a description of a clip of ESC-50 is correct.

    A correct description has at most 25 words and names the true label (see [`named_labels`]) and no other of the
    fifty. A text that lists several classes is wrong, so guessing has no advantage.

    Args:
        text (`str`): The model's description.
        label (`str`): The clip's class as ESC-50 spells it, such as `"door_wood_knock"`.

    Raises:
        ValueError: `label` is not one of ESC-50's fifty classes.
    """
    if label not in ESC50_FORMS:
        raise ValueError(f"label: got {label!r}, expected one of ESC-50's 50 classes, such as 'dog' or 'rain'.")
    return len(re.findall("[a-z]+", text.casefold())) <= MAX_WORDS and named_labels(text) == {label}
