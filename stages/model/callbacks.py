"""What watches a training: your own callbacks, and those of the pipeline."""

import json
import math
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
from tqdm import tqdm

from stages.common import files
from stages.common.errors import StageError

Logs: TypeAlias = dict[str, Any]

# Columns of history.csv, and what Keras calls them.
FIGURES = {
    "loss": "cross_entropy",
    "accuracy": "accuracy",
    "learning_rate": "learning_rate",
    "validation_loss": "val_cross_entropy",
    "validation_accuracy": "val_accuracy",
}


def callbacks() -> list[keras.callbacks.Callback]:
    """Return your own callbacks: any of Keras' or your own. docs/scale.md says more."""
    return [
        # keras.callbacks.TensorBoard("data/logs", update_freq=100),
        # keras.callbacks.ModelCheckpoint("data/best.keras", "val_accuracy", save_best_only=True),
    ]


def patience(epochs: int) -> list[keras.callbacks.Callback]:
    """Return what stops after so many epochs without a better one, and restores it; 0: nothing."""
    best = {"mode": "min", "patience": epochs, "restore_best_weights": True}
    return [keras.callbacks.EarlyStopping("val_cross_entropy", **best)] if epochs else []


def steps_done(model: keras.Model) -> int:
    """Return how many steps the model has been trained."""
    return int(model.optimizer.iterations.numpy())


class FiniteLoss(keras.callbacks.Callback):  # type: ignore[misc] # Keras has no types
    """Ends a training whose loss is no finite number: nothing good comes after that."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise StageError(
                f"the loss became {loss} by step {steps_done(self.model)}; "
                "try a lower train.learning_rate"
            )


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Moves a bar of images, which whoever made it closes."""

    def __init__(self, bar: "tqdm[Any]", batch_size: int) -> None:
        super().__init__()
        self._bar, self._batch_size = bar, batch_size

    def on_train_begin(self, logs: Logs) -> None:
        self._bar.initial = self._bar.n = steps_done(self.model) * self._batch_size

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        figures = {name: f"{logs[name]:.4f}" for name in ("loss", "accuracy")}
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(steps_done(self.model) * self._batch_size - self._bar.n)


class History(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes history.csv, a row a call, while the training goes on.

    A row has the means over the steps since the row before, in the same epoch; the last row of an
    epoch has the figures of validation, too. Its losses are cross-entropies in nats, without label
    smoothing: what Keras calls `loss` has it.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._path, self._batch_size = path, batch_size

    def on_train_begin(self, logs: Logs) -> None:
        self.rewrite([])

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Make these the rows so far, in the file too."""
        self.rows = rows
        header = ("step", "epoch", "images_seen", *FIGURES)
        with files.replacing(self._path) as path:
            lines = [_line(header), *(_line(row.values()) for row in self.rows)]
            path.write_text("".join(lines), encoding="utf-8", newline="\n")

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        step = steps_done(self.model)
        epoch = (step - 1) // self.params["steps"] + 1
        place = {"step": step, "epoch": epoch, "images_seen": step * self._batch_size}
        self.rows.append(place | {ours: logs.get(name) for ours, name in FIGURES.items()})
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(self.rows[-1].values()))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        validation = ("validation_loss", "validation_accuracy")
        self.rows[-1] |= {name: logs.get(FIGURES[name]) for name in validation}
        self.rewrite(self.rows)

    def summary(self, epoch: int) -> dict[str, dict[str, float]]:
        """Return accuracy and loss of an epoch, of which the first is 1, by split.

        Those of training are means over the epoch, of images as they were trained on, shifted,
        while the network still learnt: they may be worse than those of validation.
        """
        own = [row for row in self.rows if row["epoch"] == epoch]
        steps = np.diff([(epoch - 1) * self.params["steps"], *(row["step"] for row in own)])
        training = {
            name: float(np.average([row[name] for row in own], weights=steps))
            for name in ("accuracy", "loss")
        }
        validation = {name: own[-1][f"validation_{name}"] for name in training}
        if validation["loss"] is None:
            return {"training": training}
        return {"training": training, "validation": validation}


def _line(values: Iterable[Any]) -> str:
    """Return a line of CSV: six significant digits, nothing where there is no figure."""
    texts = (f"{v:.6g}" if isinstance(v, float) else "" if v is None else str(v) for v in values)
    return ",".join(texts) + "\n"


def epoch_kept(watching: list[keras.callbacks.Callback], history: History) -> int:
    """Return the epoch that a training ended with: the last, or the best if that was restored."""
    for callback in watching:
        if isinstance(callback, keras.callbacks.EarlyStopping) and callback.best_weights:
            return int(callback.best_epoch) + 1
    return int(history.rows[-1]["epoch"])


class Checkpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the training every so many steps, and goes on from there after it was killed.

    `file` holds the variables of the model and its optimizer, the rows of the history, and what
    those of Keras' callbacks know that stop early. It is replaced by the next one. `every` is the
    steps between two, a multiple of those in a call, or 0 for none. Raises StageError if `file` is
    damaged, OSError if it cannot be written.
    """

    STOPPING = ("wait", "best", "best_epoch", "stopped_epoch")

    def __init__(
        self,
        file: Path,
        every: int,
        history: History,
        others: list[keras.callbacks.Callback],
        saves: bool = True,  # or else only restores, as all workers but the first do
    ) -> None:
        super().__init__()
        self._file, self._every, self._history, self._saves = file, every, history, saves
        self._stopping = [c for c in others if isinstance(c, keras.callbacks.EarlyStopping)]

    def on_train_begin(self, logs: Logs) -> None:
        if not self._every or not self._file.exists():
            return
        try:
            with np.load(self._file) as saved:
                state = json.loads(str(saved["state"]))
                for name, variable in self._variables().items():
                    variable.assign(saved[name])
                for number, stopping in enumerate(self._stopping):
                    vars(stopping).update(state["stopping"][number])
                    weights = [saved[name] for name in saved if name.startswith(f"best{number}.")]
                    stopping.best_weights = weights or None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise StageError(
                f"{self._file}: the checkpoint is damaged: {error}; "
                "delete it to train from the start"
            ) from None
        if self._saves:
            self._history.rewrite(state["rows"])
        step = steps_done(self.model)
        print(f"train: resumes from the checkpoint after step {step}", file=sys.stderr)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if batch + 1 < self.params["steps"]:  # at the end of an epoch validation comes first
            self._save()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if not self.model.stop_training:  # or else it would go on after it was killed
            self._save()

    def _save(self) -> None:
        if not self._saves or not self._every or steps_done(self.model) % self._every:
            return
        stopping = [{name: getattr(s, name) for name in self.STOPPING} for s in self._stopping]
        state = json.dumps({"rows": self._history.rows, "stopping": stopping})
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        for number, callback in enumerate(self._stopping):
            for index, weight in enumerate(callback.best_weights or []):
                arrays[f"best{number}.{index:06}"] = weight
        with files.replacing(self._file) as path:
            np.savez(path, state=state, **arrays)

    def _variables(self) -> dict[str, keras.Variable]:
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return {f"variable{index}": variable for index, variable in enumerate(variables)}
