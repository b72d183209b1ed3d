"""Where everything is, from the root of the repository, which is where the stages run."""

from pathlib import Path

PARAMS = Path("params.yaml")
CATALOGUE = Path("data/datasets.yaml")

RAW = Path("data/raw")
TENSORS = Path("data/tensors")
MANIFEST = TENSORS / "manifest.json"
MODEL = Path("data/model/model.keras")
CHECKPOINTS = Path("data/checkpoints")

HISTORY = Path("metrics/history.csv")
TRAINING = Path("metrics/training.json")
METRICS = Path("metrics/metrics.json")
PER_CLASS = Path("metrics/per_class.csv")
PREDICTIONS = Path("metrics/predictions.csv")
CONFUSION = Path("metrics/confusion.csv")
FIGURES = Path("metrics/figures")
