"""A model to compute with: the same layers and variables, faster, same bits on more CPUs."""

import keras
import tensorflow as tf
from keras import layers


class FusedBatchNormalization(layers.Layer):  # type: ignore[misc] # Keras has no types
    """Computes a BatchNormalization over the last axis in one operation instead of a dozen.

    It has no variables of its own. Stock Keras does without that operation on TensorFlow: it is a
    tenth slower for it on this network, and takes square roots with an instruction that
    approximates, to other bits on each make of CPU.
    """

    def __init__(self, norm: layers.BatchNormalization) -> None:
        super().__init__(name=f"{norm.name}_fused", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, training: bool = False, mask: None = None) -> tf.Tensor:
        """Normalise (..., C): by its own mean and variance to train, else by the moving ones."""
        norm = self.norm
        if mask is not None:
            return norm(x, training=training, mask=mask)
        own = training and norm.trainable
        mean, variance = map(tf.convert_to_tensor, (norm.moving_mean, norm.moving_variance))
        # The operation wants (N, H, W, C).
        pixels = x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=pixels,
            scale=tf.convert_to_tensor(norm.gamma) if norm.scale else tf.ones_like(mean),
            offset=tf.convert_to_tensor(norm.beta) if norm.center else tf.zeros_like(mean),
            mean=[] if own else mean,
            variance=[] if own else variance,
            epsilon=norm.epsilon,
            is_training=own,
        )
        if own:
            count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
            # The operation gives a sample's variance (n - 1), Keras keeps the population's (n).
            variance *= (count - 1) / count
            for moving, batch in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
                moving.assign(moving * norm.momentum + batch * (1 - norm.momentum))
        return tf.reshape(y, tf.shape(x))


def training_model(model: keras.Model) -> keras.Model:
    """Return a faster model over the layers, and so the variables, of `model`, not compiled.

    The same function, gradients and moving statistics, in training and out of it.
    """
    # Compiled, clone_model would make a second optimizer, and refuse a loss of the user's own.
    bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.models.clone_model(bare, clone_function=_fused, recursive=True)


def _fused(layer: layers.Layer) -> layers.Layer:
    if type(layer) is not layers.BatchNormalization or layer.renorm or layer.synchronized:
        return layer
    over_last = layer.axis in (-1, layer.input_spec.ndim - 1)
    return FusedBatchNormalization(layer) if over_last else layer
