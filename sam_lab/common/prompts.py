"""The prompts that several rooms share, without the template, which the processor adds."""

# LTU's prompts of evaluation (inference_batch.py), in its spelling; its training data has "Closed-ended question: ".
DEFAULT_PROMPT = "Close-ended question: Write an audio caption describing the sound."
AUDIOCAPS_PROMPT = "Close-ended question: Write an audio caption describing the sound, in AudioCaps style."
CLOTHO_PROMPT = "Close-ended question: Create a caption for audio, in Clotho style."
CLASSIFICATION_PROMPT = "Classify the sound events in the audio clip."  # of LTU's training data
