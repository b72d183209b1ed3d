"""The recipe: what the training loop reads of the section `train` of params.yaml."""

from typing import Literal

from pydantic import Field

from stages.common import params


class Recipe(params.Section):
    """How to train; comments in params.yaml say what each of them does."""

    seed: int = Field(ge=0, lt=2**32)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)  # on all devices together
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: int = Field(ge=0, le=8)
    distortion: float = Field(ge=0, le=0.5)
    precision: Literal["float32", "mixed_bfloat16"]
