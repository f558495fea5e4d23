"""The class names of the benchmarks, in the order of LTU's label files (`src/ltu/eval/labels` of its repository).

Each name is spelled as in the benchmark's own ground truth. LTU's files replace the commas of VGGSound by `_`, and
omit the commas of DCASE2017 and the underscores of TUT2017. Sources: the ground truth of ESC-50, DCASE2017 task 4,
VocalSound, TUT Acoustic Scenes 2017, VGGSound and FSD50K, LTU's English names of the four Beijing Opera instruments,
and AudioSet's `class_labels_indices.csv`. In the texts below semicolons separate names; a line break is a space.
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(";"))


ESC50 = _names("""
dog; rooster; pig; cow; frog; cat; hen; insects; sheep; crow; rain; sea_waves; crackling_fire; crickets;
chirping_birds; water_drops; wind; pouring_water; toilet_flush; thunderstorm; crying_baby; sneezing; clapping;
breathing; coughing; footsteps; laughing; brushing_teeth; snoring; drinking_sipping; door_wood_knock; mouse_click;
keyboard_typing; door_wood_creaks; can_opening; washing_machine; vacuum_cleaner; clock_alarm; clock_tick;
glass_breaking; helicopter; chainsaw; siren; car_horn; engine; train; church_bells; airplane; fireworks; hand_saw
""")

DCASE2017 = _names("""
Train horn; Air horn, truck horn; Car alarm; Reversing beeps; Ambulance (siren); Police car (siren); Fire engine, fire
truck (siren); Civil defense siren; Screaming; Bicycle; Skateboard; Car; Car passing by; Bus; Truck; Motorcycle; Train
""")

VOCALSOUND = _names("""
Laughter; Sigh; Cough; Throat clearing; Sneeze; Sniff
""")

TUT2017 = _names("""
bus; cafe/restaurant; car; city_center; forest_path; grocery_store; home; beach; library; metro_station; office;
residential_area; train; tram; park
""")

BEIJING_OPERA = _names("""
small gong; Large gong; Clapper-drum; Cymbals
""")

VGGSOUND = _names("""
ambulance siren; basketball bounce; bird chirping, tweeting; chainsawing trees; chicken crowing; child speech, kid
speaking; driving buses; driving motorcycle; engine accelerating, revving, vroom; female singing; female speech, woman
speaking; fireworks banging; helicopter; male singing; male speech, man speaking; motorboat, speedboat acceleration;
orchestra; people booing; people crowd; pigeon, dove cooing; playing accordion; playing acoustic guitar; playing banjo;
playing bass guitar; playing bassoon; playing cello; playing cymbal; playing didgeridoo; playing drum kit; playing
electric guitar; playing flute; playing harp; playing marimba, xylophone; playing piano; playing saxophone; playing
trombone; playing violin, fiddle; police car (siren); race car, auto racing; railroad car, train wagon; rowboat, canoe,
kayak rowing; singing bowl; tap dancing; toilet flushing; vehicle horn, car horn, honking; people burping; playing
clarinet; playing hammond organ; playing squash; playing table tennis; playing tabla; playing glockenspiel; playing
harpsichord; frog croaking; vacuum cleaner cleaning floors; playing theremin; playing badminton; slot machine; subway,
metro, underground; beat boxing; child singing; crow cawing; playing volleyball; car engine knocking; playing snare
drum; machine gun shooting; ocean burbling; skiing; civil defense siren; missile launch; playing erhu; tractor digging;
bowling impact; rope skipping; airplane flyby; lions roaring; scuba diving; yodelling; playing bagpipes; fire truck
siren; police radio chatter; pheasant crowing; arc welding; dog howling; playing steel guitar, slide guitar; wind
noise; playing bongo; skateboarding; playing synthesizer; electric shaver, electric razor shaving; playing ukulele;
skidding; cap gun shooting; people clapping; playing cornet; people sniggering; playing vibraphone; mynah bird singing;
people whistling; horse clip-clop; baby laughter; printer printing; playing french horn; playing bass drum; cat
purring; playing sitar; lathe spinning; lawn mowing; lighting firecrackers; volcano explosion; playing electronic
organ; playing trumpet; dog growling; playing harmonica; playing mandolin; people marching; planing timber; playing
tambourine; playing double bass; church bell ringing; gibbon howling; goose honking; tapping guitar; sharpen knife;
train horning; dog barking; singing choir; heart sounds, heartbeat; owl hooting; people whispering; typing on
typewriter; woodpecker pecking tree; cattle mooing; people screaming; hail; canary calling; people cheering; cricket
chirping; stream burbling; people sneezing; wood thrush calling; roller coaster running; ice cream truck, ice cream
van; people shuffling; baby crying; mouse clicking; francolin calling; turkey gobbling; cattle, bovinae cowbell;
rapping; dinosaurs bellowing; playing timpani; dog bow-wow; using sewing machines; chicken clucking; splashing water;
hammering nails; train whistling; driving snowmobile; duck quacking; lions growling; baby babbling; car passing by;
parrot talking; sailing; cat meowing; horse neighing; people babbling; playing timbales; sliding door; swimming; wind
rustling leaves; people slurping; typing on computer keyboard; people eating noodle; ripping paper; elk bugling;
playing gong; playing darts; people farting; bee, wasp, etc. buzzing; playing oboe; playing zither; eating with
cutlery; bouncing on trampoline; people belly laughing; sheep bleating; waterfall burbling; airplane; playing steelpan;
fire crackling; car engine starting; coyote howling; reversing beeps; people sobbing; playing guiro; chimpanzee
pant-hooting; raining; playing congas; playing tympani; dog whimpering; opening or closing car doors; opening or
closing drawers; people coughing; black capped chickadee calling; pig oinking; people eating crisps; playing bugle;
donkey, ass braying; mosquito buzzing; squishing water; mouse pattering; playing djembe; magpie calling; electric
grinder grinding; people running; barn swallow calling; underwater bubbling; firing muskets; dog baying; cheetah
chirrup; playing hockey; striking pool; people hiccup; people humming; playing tennis; wind chime; cat growling; car
engine idling; ice cracking; otter growling; alligators, crocodiles hissing; fox barking; people eating apple; tornado
roaring; bird squawking; hair dryer drying; firing cannon; train wheels squealing; alarm clock ringing; cupboard
opening or closing; striking bowling; thunder; bull bellowing; cat hissing; penguins braying; running electric fan;
elephant trumpeting; golf driving; people battle cry; snake hissing; playing lacrosse; writing on blackboard with
chalk; spraying water; sloshing water; people giggling; cutting hair with electric trimmers; lip smacking; forging
swords; plastic bottle crushing; warbler chirping; chipmunk chirping; bird wings flapping; chopping wood; popping
popcorn; eagle screaming; footsteps on snow; hedge trimmer running; blowtorch igniting; sea waves; goat bleating; air
conditioning noise; mouse squeaking; ferret dooking; cat caterwauling; strike lighter; people nose blowing; people
eating; shot football; people gargling; smoke detector beeping; cuckoo bird calling; foghorn; eletric blender running;
chinchilla barking; people slapping; sea lion barking; opening or closing car electric windows; children shouting;
baltimore oriole calling; bathroom ventilation fan running; cell phone buzzing; chopping food; disc scratching; door
slamming; fly, housefly buzzing; metronome; people finger snapping; playing shofar; playing tuning fork; playing
washboard; telephone bell ringing; whale calling; cow lowing; playing castanets; pumping water; snake rattling; zebra
braying; air horn
""")

FSD50K = _names("""
Accelerating_and_revving_and_vroom; Accordion; Acoustic_guitar; Aircraft; Alarm; Animal; Applause; Bark; Bass_drum;
Bass_guitar; Bathtub_(filling_or_washing); Bell; Bicycle; Bicycle_bell; Bird;
Bird_vocalization_and_bird_call_and_bird_song; Boat_and_Water_vehicle; Boiling; Boom; Bowed_string_instrument;
Brass_instrument; Breathing; Burping_and_eructation; Bus; Buzz; Camera; Car; Car_passing_by; Cat; Chatter; Cheering;
Chewing_and_mastication; Chicken_and_rooster; Child_speech_and_kid_speaking; Chime; Chink_and_clink; Chirp_and_tweet;
Chuckle_and_chortle; Church_bell; Clapping; Clock; Coin_(dropping); Computer_keyboard; Conversation; Cough; Cowbell;
Crack; Crackle; Crash_cymbal; Cricket; Crow; Crowd; Crumpling_and_crinkling; Crushing; Crying_and_sobbing;
Cupboard_open_or_close; Cutlery_and_silverware; Cymbal; Dishes_and_pots_and_pans; Dog; Domestic_animals_and_pets;
Domestic_sounds_and_home_sounds; Door; Doorbell; Drawer_open_or_close; Drill; Drip; Drum; Drum_kit; Electric_guitar;
Engine; Engine_starting; Explosion; Fart; Female_singing; Female_speech_and_woman_speaking; Fill_(with_liquid);
Finger_snapping; Fire; Fireworks; Fixed-wing_aircraft_and_airplane; Fowl; Frog; Frying_(food); Gasp; Giggle; Glass;
Glockenspiel; Gong; Growling; Guitar; Gull_and_seagull; Gunshot_and_gunfire; Gurgling; Hammer; Hands; Harmonica; Harp;
Hi-hat; Hiss; Human_group_actions; Human_voice; Idling; Insect; Keyboard_(musical); Keys_jangling; Knock; Laughter;
Liquid; Livestock_and_farm_animals_and_working_animals; Male_singing; Male_speech_and_man_speaking; Mallet_percussion;
Marimba_and_xylophone; Mechanical_fan; Mechanisms; Meow; Microwave_oven; Motor_vehicle_(road); Motorcycle; Music;
Musical_instrument; Ocean; Organ; Packing_tape_and_duct_tape; Percussion; Piano; Plucked_string_instrument; Pour;
Power_tool; Printer; Purr; Race_car_and_auto_racing; Rail_transport; Rain; Raindrop; Ratchet_and_pawl; Rattle;
Rattle_(instrument); Respiratory_sounds; Ringtone; Run; Sawing; Scissors; Scratching_(performance_technique);
Screaming; Screech; Shatter; Shout; Sigh; Singing; Sink_(filling_or_washing); Siren; Skateboard; Slam; Sliding_door;
Snare_drum; Sneeze; Speech; Speech_synthesizer; Splash_and_splatter; Squeak; Stream; Strum;
Subway_and_metro_and_underground; Tabla; Tambourine; Tap; Tearing; Telephone; Thump_and_thud; Thunder; Thunderstorm;
Tick; Tick-tock; Toilet_flush; Tools; Traffic_noise_and_roadway_noise; Train; Trickle_and_dribble; Truck; Trumpet;
Typewriter; Typing; Vehicle; Vehicle_horn_and_car_horn_and_honking; Walk_and_footsteps; Water; Water_tap_and_faucet;
Waves_and_surf; Whispering; Whoosh_and_swoosh_and_swish; Wild_animals; Wind; Wind_chime;
Wind_instrument_and_woodwind_instrument; Wood; Writing; Yell; Zipper_(clothing)
""")

# Class identifier and display name: AudioSet's own segment files contain identifiers.
AUDIOSET_NAMES = dict(
    name.split(" ", 1)
    for name in _names("""
/m/09x0r Speech; /m/05zppz Male speech, man speaking; /m/02zsn Female speech, woman speaking; /m/0ytgt Child speech,
kid speaking; /m/01h8n0 Conversation; /m/02qldy Narration, monologue; /m/0261r1 Babbling; /m/0brhx Speech synthesizer;
/m/07p6fty Shout; /m/07q4ntr Bellow; /m/07rwj3x Whoop; /m/07sr1lc Yell; /m/04gy_2 Battle cry; /t/dd00135 Children
shouting; /m/03qc9zr Screaming; /m/02rtxlg Whispering; /m/01j3sz Laughter; /t/dd00001 Baby laughter; /m/07r660_ Giggle;
/m/07s04w4 Snicker; /m/07sq110 Belly laugh; /m/07rgt08 Chuckle, chortle; /m/0463cq4 Crying, sobbing; /t/dd00002 Baby
cry, infant cry; /m/07qz6j3 Whimper; /m/07qw_06 Wail, moan; /m/07plz5l Sigh; /m/015lz1 Singing; /m/0l14jd Choir;
/m/01swy6 Yodeling; /m/02bk07 Chant; /m/01c194 Mantra; /t/dd00003 Male singing; /t/dd00004 Female singing; /t/dd00005
Child singing; /t/dd00006 Synthetic singing; /m/06bxc Rapping; /m/02fxyj Humming; /m/07s2xch Groan; /m/07r4k75 Grunt;
/m/01w250 Whistling; /m/0lyf6 Breathing; /m/07mzm6 Wheeze; /m/01d3sd Snoring; /m/07s0dtb Gasp; /m/07pyy8b Pant;
/m/07q0yl5 Snort; /m/01b_21 Cough; /m/0dl9sf8 Throat clearing; /m/01hsr_ Sneeze; /m/07ppn3j Sniff; /m/06h7j Run;
/m/07qv_x_ Shuffle; /m/07pbtc8 Walk, footsteps; /m/03cczk Chewing, mastication; /m/07pdhp0 Biting; /m/0939n_ Gargling;
/m/01g90h Stomach rumble; /m/03q5_w Burping, eructation; /m/02p3nc Hiccup; /m/02_nn Fart; /m/0k65p Hands; /m/025_jnm
Finger snapping; /m/0l15bq Clapping; /m/01jg02 Heart sounds, heartbeat; /m/01jg1z Heart murmur; /m/053hz1 Cheering;
/m/028ght Applause; /m/07rkbfh Chatter; /m/03qtwd Crowd; /m/07qfr4h Hubbub, speech noise, speech babble; /t/dd00013
Children playing; /m/0jbk Animal; /m/068hy Domestic animals, pets; /m/0bt9lr Dog; /m/05tny_ Bark; /m/07r_k2n Yip;
/m/07qf0zm Howl; /m/07rc7d9 Bow-wow; /m/0ghcn6 Growling; /t/dd00136 Whimper (dog); /m/01yrx Cat; /m/02yds9 Purr;
/m/07qrkrw Meow; /m/07rjwbb Hiss; /m/07r81j2 Caterwaul; /m/0ch8v Livestock, farm animals, working animals; /m/03k3r
Horse; /m/07rv9rh Clip-clop; /m/07q5rw0 Neigh, whinny; /m/01xq0k1 Cattle, bovinae; /m/07rpkh9 Moo; /m/0239kh Cowbell;
/m/068zj Pig; /t/dd00018 Oink; /m/03fwl Goat; /m/07q0h5t Bleat; /m/07bgp Sheep; /m/025rv6n Fowl; /m/09b5t Chicken,
rooster; /m/07st89h Cluck; /m/07qn5dc Crowing, cock-a-doodle-doo; /m/01rd7k Turkey; /m/07svc2k Gobble; /m/09ddx Duck;
/m/07qdb04 Quack; /m/0dbvp Goose; /m/07qwf61 Honk; /m/01280g Wild animals; /m/0cdnk Roaring cats (lions, tigers);
/m/04cvmfc Roar; /m/015p6 Bird; /m/020bb7 Bird vocalization, bird call, bird song; /m/07pggtn Chirp, tweet; /m/07sx8x_
Squawk; /m/0h0rv Pigeon, dove; /m/07r_25d Coo; /m/04s8yn Crow; /m/07r5c2p Caw; /m/09d5_ Owl; /m/07r_80w Hoot; /m/05_wcq
Bird flight, flapping wings; /m/01z5f Canidae, dogs, wolves; /m/06hps Rodents, rats, mice; /m/04rmv Mouse; /m/07r4gkf
Patter; /m/03vt0 Insect; /m/09xqv Cricket; /m/09f96 Mosquito; /m/0h2mp Fly, housefly; /m/07pjwq1 Buzz; /m/01h3n Bee,
wasp, etc.; /m/09ld4 Frog; /m/07st88b Croak; /m/078jl Snake; /m/07qn4z3 Rattle; /m/032n05 Whale vocalization; /m/04rlf
Music; /m/04szw Musical instrument; /m/0fx80y Plucked string instrument; /m/0342h Guitar; /m/02sgy Electric guitar;
/m/018vs Bass guitar; /m/042v_gx Acoustic guitar; /m/06w87 Steel guitar, slide guitar; /m/01glhc Tapping (guitar
technique); /m/07s0s5r Strum; /m/018j2 Banjo; /m/0jtg0 Sitar; /m/04rzd Mandolin; /m/01bns_ Zither; /m/07xzm Ukulele;
/m/05148p4 Keyboard (musical); /m/05r5c Piano; /m/01s0ps Electric piano; /m/013y1f Organ; /m/03xq_f Electronic organ;
/m/03gvt Hammond organ; /m/0l14qv Synthesizer; /m/01v1d8 Sampler; /m/03q5t Harpsichord; /m/0l14md Percussion; /m/02hnl
Drum kit; /m/0cfdd Drum machine; /m/026t6 Drum; /m/06rvn Snare drum; /m/03t3fj Rimshot; /m/02k_mr Drum roll; /m/0bm02
Bass drum; /m/011k_j Timpani; /m/01p970 Tabla; /m/01qbl Cymbal; /m/03qtq Hi-hat; /m/01sm1g Wood block; /m/07brj
Tambourine; /m/05r5wn Rattle (instrument); /m/0xzly Maraca; /m/0mbct Gong; /m/016622 Tubular bells; /m/0j45pbj Mallet
percussion; /m/0dwsp Marimba, xylophone; /m/0dwtp Glockenspiel; /m/0dwt5 Vibraphone; /m/0l156b Steelpan; /m/05pd6
Orchestra; /m/01kcd Brass instrument; /m/0319l French horn; /m/07gql Trumpet; /m/07c6l Trombone; /m/0l14_3 Bowed string
instrument; /m/02qmj0d String section; /m/07y_7 Violin, fiddle; /m/0d8_n Pizzicato; /m/01xqw Cello; /m/02fsn Double
bass; /m/085jw Wind instrument, woodwind instrument; /m/0l14j_ Flute; /m/06ncr Saxophone; /m/01wy6 Clarinet; /m/03m5k
Harp; /m/0395lw Bell; /m/03w41f Church bell; /m/027m70_ Jingle bell; /m/0gy1t2s Bicycle bell; /m/07n_g Tuning fork;
/m/0f8s22 Chime; /m/026fgl Wind chime; /m/0150b9 Change ringing (campanology); /m/03qjg Harmonica; /m/0mkg Accordion;
/m/0192l Bagpipes; /m/02bxd Didgeridoo; /m/0l14l2 Shofar; /m/07kc_ Theremin; /m/0l14t7 Singing bowl; /m/01hgjl
Scratching (performance technique); /m/064t9 Pop music; /m/0glt670 Hip hop music; /m/02cz_7 Beatboxing; /m/06by7 Rock
music; /m/03lty Heavy metal; /m/05r6t Punk rock; /m/0dls3 Grunge; /m/0dl5d Progressive rock; /m/07sbbz2 Rock and roll;
/m/05w3f Psychedelic rock; /m/06j6l Rhythm and blues; /m/0gywn Soul music; /m/06cqb Reggae; /m/01lyv Country; /m/015y_n
Swing music; /m/0gg8l Bluegrass; /m/02x8m Funk; /m/02w4v Folk music; /m/06j64v Middle Eastern music; /m/03_d0 Jazz;
/m/026z9 Disco; /m/0ggq0m Classical music; /m/05lls Opera; /m/02lkt Electronic music; /m/03mb9 House music; /m/07gxw
Techno; /m/07s72n Dubstep; /m/0283d Drum and bass; /m/0m0jc Electronica; /m/08cyft Electronic dance music; /m/0fd3y
Ambient music; /m/07lnk Trance music; /m/0g293 Music of Latin America; /m/0ln16 Salsa music; /m/0326g Flamenco;
/m/0155w Blues; /m/05fw6t Music for children; /m/02v2lh New-age music; /m/0y4f8 Vocal music; /m/0z9c A capella;
/m/0164x2 Music of Africa; /m/0145m Afrobeat; /m/02mscn Christian music; /m/016cjb Gospel music; /m/028sqc Music of
Asia; /m/015vgc Carnatic music; /m/0dq0md Music of Bollywood; /m/06rqw Ska; /m/02p0sh1 Traditional music; /m/05rwpb
Independent music; /m/074ft Song; /m/025td0t Background music; /m/02cjck Theme music; /m/03r5q_ Jingle (music);
/m/0l14gg Soundtrack music; /m/07pkxdp Lullaby; /m/01z7dr Video game music; /m/0140xf Christmas music; /m/0ggx5q Dance
music; /m/04wptg Wedding music; /t/dd00031 Happy music; /t/dd00032 Funny music; /t/dd00033 Sad music; /t/dd00034 Tender
music; /t/dd00035 Exciting music; /t/dd00036 Angry music; /t/dd00037 Scary music; /m/03m9d0z Wind; /m/09t49 Rustling
leaves; /t/dd00092 Wind noise (microphone); /m/0jb2l Thunderstorm; /m/0ngt1 Thunder; /m/0838f Water; /m/06mb1 Rain;
/m/07r10fb Raindrop; /t/dd00038 Rain on surface; /m/0j6m2 Stream; /m/0j2kx Waterfall; /m/05kq4 Ocean; /m/034srq Waves,
surf; /m/06wzb Steam; /m/07swgks Gurgling; /m/02_41 Fire; /m/07pzfmf Crackle; /m/07yv9 Vehicle; /m/019jd Boat, Water
vehicle; /m/0hsrw Sailboat, sailing ship; /m/056ks2 Rowboat, canoe, kayak; /m/02rlv9 Motorboat, speedboat; /m/06q74
Ship; /m/012f08 Motor vehicle (road); /m/0k4j Car; /m/0912c9 Vehicle horn, car horn, honking; /m/07qv_d5 Toot;
/m/02mfyn Car alarm; /m/04gxbd Power windows, electric windows; /m/07rknqz Skidding; /m/0h9mv Tire squeal; /t/dd00134
Car passing by; /m/0ltv Race car, auto racing; /m/07r04 Truck; /m/0gvgw0 Air brake; /m/05x_td Air horn, truck horn;
/m/02rhddq Reversing beeps; /m/03cl9h Ice cream truck, ice cream van; /m/01bjv Bus; /m/03j1ly Emergency vehicle;
/m/04qvtq Police car (siren); /m/012n7d Ambulance (siren); /m/012ndj Fire engine, fire truck (siren); /m/04_sv
Motorcycle; /m/0btp2 Traffic noise, roadway noise; /m/06d_3 Rail transport; /m/07jdr Train; /m/04zmvq Train whistle;
/m/0284vy3 Train horn; /m/01g50p Railroad car, train wagon; /t/dd00048 Train wheels squealing; /m/0195fx Subway, metro,
underground; /m/0k5j Aircraft; /m/014yck Aircraft engine; /m/04229 Jet engine; /m/02l6bg Propeller, airscrew; /m/09ct_
Helicopter; /m/0cmf2 Fixed-wing aircraft, airplane; /m/0199g Bicycle; /m/06_fw Skateboard; /m/02mk9 Engine; /t/dd00065
Light engine (high frequency); /m/08j51y Dental drill, dentist's drill; /m/01yg9g Lawn mower; /m/01j4z9 Chainsaw;
/t/dd00066 Medium engine (mid frequency); /t/dd00067 Heavy engine (low frequency); /m/01h82_ Engine knocking;
/t/dd00130 Engine starting; /m/07pb8fc Idling; /m/07q2z82 Accelerating, revving, vroom; /m/02dgv Door; /m/03wwcy
Doorbell; /m/07r67yg Ding-dong; /m/02y_763 Sliding door; /m/07rjzl8 Slam; /m/07r4wb8 Knock; /m/07qcpgn Tap; /m/07q6cd_
Squeak; /m/0642b4 Cupboard open or close; /m/0fqfqc Drawer open or close; /m/04brg2 Dishes, pots, and pans; /m/023pjk
Cutlery, silverware; /m/07pn_8q Chopping (food); /m/0dxrf Frying (food); /m/0fx9l Microwave oven; /m/02pjr4 Blender;
/m/02jz0l Water tap, faucet; /m/0130jx Sink (filling or washing); /m/03dnzn Bathtub (filling or washing); /m/03wvsk
Hair dryer; /m/01jt3m Toilet flush; /m/012xff Toothbrush; /m/04fgwm Electric toothbrush; /m/0d31p Vacuum cleaner;
/m/01s0vc Zipper (clothing); /m/03v3yw Keys jangling; /m/0242l Coin (dropping); /m/01lsmm Scissors; /m/02g901 Electric
shaver, electric razor; /m/05rj2 Shuffling cards; /m/0316dw Typing; /m/0c2wf Typewriter; /m/01m2v Computer keyboard;
/m/081rb Writing; /m/07pp_mv Alarm; /m/07cx4 Telephone; /m/07pp8cl Telephone bell ringing; /m/01hnzm Ringtone; /m/02c8p
Telephone dialing, DTMF; /m/015jpf Dial tone; /m/01z47d Busy signal; /m/046dlr Alarm clock; /m/03kmc9 Siren; /m/0dgbq
Civil defense siren; /m/030rvx Buzzer; /m/01y3hg Smoke detector, smoke alarm; /m/0c3f7m Fire alarm; /m/04fq5q Foghorn;
/m/0l156k Whistle; /m/06hck5 Steam whistle; /t/dd00077 Mechanisms; /m/02bm9n Ratchet, pawl; /m/01x3z Clock; /m/07qjznt
Tick; /m/07qjznl Tick-tock; /m/0l7xg Gears; /m/05zc1 Pulleys; /m/0llzx Sewing machine; /m/02x984l Mechanical fan;
/m/025wky1 Air conditioning; /m/024dl Cash register; /m/01m4t Printer; /m/0dv5r Camera; /m/07bjf Single-lens reflex
camera; /m/07k1x Tools; /m/03l9g Hammer; /m/03p19w Jackhammer; /m/01b82r Sawing; /m/02p01q Filing (rasp); /m/023vsd
Sanding; /m/0_ksk Power tool; /m/01d380 Drill; /m/014zdl Explosion; /m/032s66 Gunshot, gunfire; /m/04zjc Machine gun;
/m/02z32qm Fusillade; /m/0_1c Artillery fire; /m/073cg4 Cap gun; /m/0g6b5 Fireworks; /g/122z_qxw Firecracker;
/m/07qsvvw Burst, pop; /m/07pxg6y Eruption; /m/07qqyl4 Boom; /m/083vt Wood; /m/07pczhz Chop; /m/07pl1bw Splinter;
/m/07qs1cx Crack; /m/039jq Glass; /m/07q7njn Chink, clink; /m/07rn7sz Shatter; /m/04k94 Liquid; /m/07rrlb6 Splash,
splatter; /m/07p6mqd Slosh; /m/07qlwh6 Squish; /m/07r5v4s Drip; /m/07prgkl Pour; /m/07pqc89 Trickle, dribble;
/t/dd00088 Gush; /m/07p7b8y Fill (with liquid); /m/07qlf79 Spray; /m/07ptzwd Pump (liquid); /m/07ptfmf Stir; /m/0dv3j
Boiling; /m/0790c Sonar; /m/0dl83 Arrow; /m/07rqsjt Whoosh, swoosh, swish; /m/07qnq_y Thump, thud; /m/07rrh0c Thunk;
/m/0b_fwt Electronic tuner; /m/02rr_ Effects unit; /m/07m2kt Chorus effect; /m/018w8 Basketball bounce; /m/07pws3f
Bang; /m/07ryjzk Slap, smack; /m/07rdhzs Whack, thwack; /m/07pjjrj Smash, crash; /m/07pc8lb Breaking; /m/07pqn27
Bouncing; /m/07rbp7_ Whip; /m/07pyf11 Flap; /m/07qb_dv Scratch; /m/07qv4k0 Scrape; /m/07pdjhy Rub; /m/07s8j8t Roll;
/m/07plct2 Crushing; /t/dd00112 Crumpling, crinkling; /m/07qcx4z Tearing; /m/02fs_r Beep, bleep; /m/07qwdck Ping;
/m/07phxs1 Ding; /m/07rv4dm Clang; /m/07s02z0 Squeal; /m/07qh7jl Creak; /m/07qwyj0 Rustle; /m/07s34ls Whir; /m/07qmpdm
Clatter; /m/07p9k1k Sizzle; /m/07qc9xj Clicking; /m/07rwm0c Clickety-clack; /m/07phhsh Rumble; /m/07qyrcz Plop;
/m/07qfgpx Jingle, tinkle; /m/07rcgpl Hum; /m/07p78v5 Zing; /t/dd00121 Boing; /m/07s12q4 Crunch; /m/028v0c Silence;
/m/01v_m0 Sine wave; /m/0b9m1 Harmonic; /m/0hdsk Chirp tone; /m/0c1dj Sound effect; /m/07pt_g0 Pulse; /t/dd00125
Inside, small room; /t/dd00126 Inside, large room or hall; /t/dd00127 Inside, public space; /t/dd00128 Outside, urban
or manmade; /t/dd00129 Outside, rural or natural; /m/01b9nn Reverberation; /m/01jnbd Echo; /m/096m7z Noise; /m/06_y0by
Environmental noise; /m/07rgkc5 Static; /m/06xkwv Mains hum; /m/0g12c5 Distortion; /m/08p9q4 Sidetone; /m/07szfh9
Cacophony; /m/0chx_ White noise; /m/0cj0r Pink noise; /m/07p_0gm Throbbing; /m/01jwx6 Vibration; /m/07c52 Television;
/m/06bz3 Radio; /m/07hvw1 Field recording
""")
)
AUDIOSET = tuple(AUDIOSET_NAMES.values())
