"""Checkpoints: a training that was killed goes on from its last one, to the same bits."""

import hashlib
import json
import shutil
from collections.abc import Iterator

import keras
import tensorflow as tf

from stages.common import paths
from stages.common.errors import StageError
from stages.model.training import Row


class _History(tf.train.experimental.PythonState):  # type: ignore[misc]
    """The rows of the history so far, saved with the model that they led to."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def serialize(self) -> str:
        return json.dumps(self.rows)

    def deserialize(self, string: str) -> None:
        self.rows = [Row(*row) for row in json.loads(string)]


def present() -> str:
    """Return the names of all files of checkpoints that are here."""
    return " ".join(sorted(str(file) for file in paths.CHECKPOINTS.rglob("*")))


class Checkpoints:
    """The checkpoints of one training, in a folder of its own. Only the last one is kept.

    `versions` are those of all that decides its result: a checkpoint of others is never used.
    `every` is the steps from one checkpoint to the next, or 0 for none.
    """

    def __init__(self, model: keras.Model, versions: dict[str, str], every: int) -> None:
        name = hashlib.sha256(" ".join(versions.values()).encode()).hexdigest()[:16]
        self._folder = paths.CHECKPOINTS / name
        self._every = every
        self._history = _History()
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model, optimizer=model.optimizer, history=self._history),
            str(self._folder),
            max_to_keep=1,
        )

    def restore(self) -> list[Row]:
        """Put the model where the last checkpoint left it; return the history until then."""
        if self._every and self._manager.latest_checkpoint:
            try:
                status = self._manager.checkpoint.restore(self._manager.latest_checkpoint)
                status.assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
                raise StageError(
                    f"{self._folder}: the checkpoint is damaged: {error}; "
                    "delete the folder to train from the start"
                ) from None
        return self._history.rows

    def save(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Pass the rows on, and save a checkpoint whenever `every` more steps are done."""
        for row in rows:
            before = self._history.rows[-1].step if self._history.rows else 0
            self._history.rows.append(row)
            if self._every and row.step // self._every > before // self._every:
                self._manager.save(row.step)
            yield row

    def remove(self) -> None:
        """Remove the checkpoints of a training that is done."""
        shutil.rmtree(self._folder, ignore_errors=True)
