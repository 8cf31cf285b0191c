"""What a Scenario may ask of a model whose config says how long its input is: images, cut into patches, or sound."""

from .architecture import Architecture
from .errors import ConfigError
from .scenario import ALL_LINEAR, Optimizer, Scenario


def check_fixed_input(scenario: Scenario, architecture: Architecture) -> None:
    """Raise ConfigError for another length than the config's, and for what is not built for such a model."""
    length = architecture.input_length
    if length is None:
        return
    if scenario.sequence_length not in (None, length):
        problem = f"should be {length} or left out: {reason_of_length(architecture)}"
        raise ConfigError("sequence_length", scenario.sequence_length, problem)
    if scenario.optimizer is Optimizer.ADAFACTOR:
        raise ConfigError("optimizer", "adafactor", "is not supported yet for a model with convolutions")
    targets = scenario.adapter.target_modules if scenario.adapter else None
    if targets and ALL_LINEAR in targets and architecture.images is not None:
        problem = "takes the classifier, too, of a model without a PEFT task; name the modules instead"
        raise ConfigError("adapter.target_modules", ALL_LINEAR, problem)


def reason_of_length(architecture: Architecture) -> str:
    """Why the input is as long as it is."""
    if architecture.audio is not None:
        return f"the encoder gets {2 * architecture.audio.num_tokens} frames, two for a token; target_length is free"
    assert architecture.images is not None
    height, width = architecture.images.image_size
    return f"of an image of {height} × {width} pixels come {architecture.images.num_patches} patches and a class token"
