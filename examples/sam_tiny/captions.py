"""The labels of short sound clips in English, for the texts of make_sam_tiny.py.

Every label has a headline ("Dog barking") and a clause ("a dog is barking"); all texts are made from these two. The
headlines of ESC-50's fifty classes name their class, and no other, by the rule of `sam_lab.evaluation.wordforms.names_label`.
"""

PHRASES_TEXT = """
acoustic_guitar: Acoustic guitar playing | an acoustic guitar is playing
airplane: Airplane flying overhead | an airplane is flying overhead
alarm: Alarm sounding | an alarm is sounding
animal_growl_bite: Animal growling | an animal is growling and biting
bass_drum: Bass drum beating | a bass drum is beating
beep: Electronic beeping | an electronic device is beeping
bell: Bell ringing | a bell is ringing
boat: Boat passing | a boat is passing on the water
breathing: Breathing heavily | someone is breathing heavily
brushing_teeth: Brushing teeth with a toothbrush | someone is brushing their teeth
burp: Burping | someone is burping
camera_shutter: Camera shutter snapping | a camera shutter is snapping
can_opening: Can being opened | a can is being opened
car_alarm: Car alarm sounding | a car alarm is sounding
car_crash: Car crashing | a car is crashing
car_door: Car door slamming | a car door is slamming
car_horn: Honking of a car horn | a car is honking its horn
cash_register: Cash register ringing | a cash register is ringing
cat: Cat meowing | a cat is meowing
cat_purr: Cat purring | a cat is purring
cello: Cello playing | a cello is playing
chainsaw: Chainsaw running | a chainsaw is running
chirping_birds: Birds chirping | birds are chirping
choir: Choir singing | a choir is singing
church_bells: Church bells ringing | church bells are ringing
city_ambience: City street noise | a city street is humming with traffic
clapping: Clapping of hands | people are clapping
clarinet: Clarinet playing | a clarinet is playing
clock_alarm: Alarm clock ringing | an alarm clock is ringing
clock_tick: Ticking of a clock | a clock is ticking
coughing: Coughing | someone is coughing
cow: Cow mooing | a cow is mooing
cowbell: Cowbell being struck | a cowbell is being struck
crackling_fire: Fire crackling | a fire is crackling
crickets: Crickets singing in the night | crickets are singing in the night
crow: Crow cawing | a crow is cawing
crowd_babble: Crowd of people talking | a crowd of people is talking
crying_baby: Baby crying | a baby is crying
curtain: Curtain being drawn | a curtain is being drawn
cymbal: Cymbal crashing | a cymbal is crashing
deer: Deer calling | a deer is calling
digging: Digging with a shovel | someone is digging with a shovel
dog: Dog barking | a dog is barking
door_open_close: Door being shut | a door is being shut
door_wood_creaks: Creaking of a wooden door | a wooden door is creaking
door_wood_knock: Knocking on a wooden door | someone is knocking on a wooden door
double_bass: Double bass playing | a double bass is playing
drinking_sipping: Drinking and sipping | someone is drinking and sipping
drum: Drum being played | a drum is being played
engine: Engine idling | an engine is idling
explosion: Explosion | something is exploding
fanfare: Fanfare playing | a fanfare is playing
finger_snap: Fingers snapping | someone is snapping their fingers
fireworks: Fireworks exploding | fireworks are exploding
flute: Flute playing | a flute is playing
footsteps: Footsteps of a person walking | someone is walking with audible footsteps
footsteps_grass: Footsteps on grass | someone is walking on grass
footsteps_gravel: Footsteps on gravel | someone is walking on gravel
footsteps_metal: Footsteps on metal | someone is walking on metal
footsteps_water: Footsteps in water | someone is walking through water
frog: Frog croaking | a frog is croaking
gas_torch: Gas torch hissing | a gas torch is hissing
geiger_counter: Geiger counter clicking | a geiger counter is clicking
glass_breaking: Glass breaking | a glass is breaking
gun_reload: Gun being loaded | a gun is being loaded
gunshot: Gunshot | a gun is being fired
hand_saw: Sawing of wood with a hand saw | someone is sawing wood with a hand saw
helicopter: Helicopter flying | a helicopter is flying
hen: Hen clucking | a hen is clucking
hi_hat: Hi-hat being played | a hi-hat is being played
horse: Horse neighing | a horse is neighing
hum: Humming tone | something is humming
human_grunt: Grunting of a person | someone is grunting
insects: Insects buzzing | insects are buzzing
keyboard_typing: Typing on a keyboard | someone is typing on a keyboard
laughing: Laughing | someone is laughing
machine: Machine working | a machine is working
match_ignition: Match being struck | a match is being struck
metal_impact: Metal being hit | a piece of metal is being hit
monster_growl: Monster growling | a monster is growling
mouse_click: Mouse clicking | a computer mouse is clicking
music: Music playing | music is playing
notification_chime: Notification chime | a notification chime is sounding
orchestra: Orchestra playing | an orchestra is playing
piano: Piano playing | a piano is playing
pig: Pig grunting and oinking | a pig is grunting and oinking
plastic_impact: Plastic being hit | a piece of plastic is being hit
pouring_water: Pouring of water | water is being poured
punch_hit: Punching and hitting | someone is punching and hitting
rain: Rain falling | rain is falling
reversing_beeper: Reversing truck beeping | a reversing truck is beeping
roller_coaster: Roller coaster rolling | a roller coaster is rolling past
rooster: Rooster crowing | a rooster is crowing
saxophone: Saxophone playing | a saxophone is playing
screaming: Screaming | someone is screaming
sea_waves: Sea waves crashing | sea waves are crashing on the shore
sheep: Sheep bleating | a sheep is bleating
siren: Siren wailing | a siren is wailing
snare_drum: Snare drum being hit | a snare drum is being hit
sneezing: Sneezing | someone is sneezing
snoring: Snoring | someone is snoring
speech: Speech of a person | someone is speaking
static_noise: Static noise | static noise is hissing
steam_hiss: Steam hissing | steam is hissing
stone_impact: Stones being hit | stones are being hit
tabla: Tabla being played | a tabla is being played
telephone_ring: Telephone ringing | a telephone is ringing
thunderstorm: Thunder rumbling | thunder is rumbling
toilet_flush: Toilet flushing | a toilet is flushing
train: Train passing on the rails | a train is passing on the rails
train_whistle: Whistle of a train | a train is whistling
trumpet: Trumpet playing | a trumpet is playing
turkey: Turkey gobbling | a turkey is gobbling
vacuum_cleaner: Vacuum cleaner running | a vacuum cleaner is running
vinyl_noise: Vinyl record scratching | a vinyl record is scratching
violin: Violin playing | a violin is playing
washing_machine: Washing machine running | a washing machine is running
water_drops: Dripping of water drops | water is dripping drop by drop
water_splash: Water splashing | water is splashing
whale: Whale singing | a whale is singing
whispering: Whispering | someone is whispering
whoosh: Whoosh through the air | something is whooshing through the air
wind: Wind blowing | wind is blowing
window_open_close: Window being shut | a window is being shut
wood_chopping: Chopping of wood with an axe | someone is chopping wood with an axe
wood_impact: Wood being hit | a piece of wood is being hit
"""

# label -> (headline, clause)
PHRASES: dict[str, tuple[str, str]] = {
    label: tuple(phrases.split(" | "))
    for label, phrases in (line.split(": ") for line in PHRASES_TEXT.strip().splitlines())
}

# The prompt of `sam-alm describe`, then others that ask for the same in a full sentence, and what answers look like.
CAPTION_PROMPT = "Close-ended question: Write an audio caption describing the sound."
SENTENCE_PROMPTS = {
    "Describe the audio in a full sentence.": "{sentence}",
    "What can be heard in this recording?": "The sound of {gerund}.",
    "Open-ended question: What is happening in the audio?": "It sounds like {clause}.",
    "Listen and tell me what you hear.": "I hear {gerund}.",
}
CLASSIFICATION_PROMPT = "Classify the sound events in the audio clip."


def lower_first(text: str) -> str:
    """`text` with its first letter in lower case."""
    return text[0].lower() + text[1:]


def upper_first(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[0].upper() + text[1:]


def gerund(label: str) -> str:
    """The clause without its verb's `is` or `are`: "a dog barking"."""
    return PHRASES[label][1].replace(" is ", " ", 1).replace(" are ", " ", 1)


def caption(*labels: str) -> str:
    """The caption of a clip, in headlines: "Dog barking and rain falling."

    Args:
        labels (`str`): One label, or several where the clip is a mixture, the most audible first.
    """
    headlines = [PHRASES[labels[0]][0], *(lower_first(PHRASES[label][0]) for label in labels[1:])]
    return " and ".join(headlines) + "."


def sentence(prompt: str, *labels: str) -> str:
    """The answer to one of [`SENTENCE_PROMPTS`]: "The sound of a dog barking and rain falling."

    Args:
        prompt (`str`): The prompt.
        labels (`str`): One label, or several where the clip is a mixture.
    """
    clauses = " and ".join(PHRASES[label][1] for label in labels)
    gerunds = " and ".join(gerund(label) for label in labels)
    return SENTENCE_PROMPTS[prompt].format(sentence=upper_first(clauses) + ".", clause=clauses, gerund=gerunds)


def label_list(*labels: str) -> str:
    """The answer to [`CLASSIFICATION_PROMPT`], in the style of LTU's label lists: "Labels: dog barking; rain falling"."""
    return "Labels: " + "; ".join(lower_first(PHRASES[label][0]) for label in labels)
