"""SAM, the Mamba-2 state-space audio-language model, for Hugging Face transformers.

`import sam_alm` registers the model with transformers' Auto classes and has all public names. `python -m sam_alm` is
the command `sam-alm`.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: each command imports what it needs
    import sys

    from sam_lab.cli import main

    sys.exit(main())

from configuration_sam import (
    CONNECTORS,
    LANGUAGE_MODEL_SIZES,
    SamAudioConfig,
    SamConfig,
    __version__,
    audio_slot_pattern,
    mamba2_config,
)
from modeling_sam import SamAudioModel, SamCache, SamConnector, SamForConditionalGeneration, SamModel
from processing_sam import SamAudioLanguageProcessor, SamDataCollator, SamFeatureExtractor, SamProcessor, load_audio

__all__ = [
    "CONNECTORS",
    "LANGUAGE_MODEL_SIZES",
    "SamAudioConfig",
    "SamAudioLanguageProcessor",
    "SamAudioModel",
    "SamCache",
    "SamConfig",
    "SamConnector",
    "SamDataCollator",
    "SamFeatureExtractor",
    "SamForConditionalGeneration",
    "SamModel",
    "SamProcessor",
    "__version__",
    "audio_slot_pattern",
    "load_audio",
    "mamba2_config",
]
