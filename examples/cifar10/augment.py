"""Augmentation on the device: translation and flip as one gather."""

import jax
import jax.numpy as jnp

# Views of an image, each (row, column, weight), whose logits are averaged. Airbench's: the centre
# counts half, two diagonal neighbours a quarter each.
VIEWS = ((0, 0, 0.5), (-1, -1, 0.25), (1, 1, 0.25))
CENTRE = ((0, 0, 1.0),)


def translate(images: jax.Array, rows: jax.Array, columns: jax.Array, flip: jax.Array) -> jax.Array:
    """Shift every image by its rows and columns, reflecting at the edge, then mirror some.

    Args:
      images: [batch, height, width, channels], of any dtype.
      rows: [batch] integers; pixel (0, 0) of the result is pixel (rows, columns) of the image.
      columns: [batch] integers.
      flip: [batch] booleans; where true, the result is mirrored left to right.
    """
    batch, height, width, _ = images.shape
    row = _reflect(jnp.arange(height) + rows[:, None], height)
    column = jnp.where(flip[:, None], width - 1 - jnp.arange(width), jnp.arange(width))
    column = _reflect(column + columns[:, None], width)
    return images[jnp.arange(batch)[:, None, None], row[:, :, None], column[:, None, :]]


def _reflect(index: jax.Array, size: int) -> jax.Array:
    return size - 1 - jnp.abs(size - 1 - jnp.abs(index))


def random_translate(key: jax.Array, images: jax.Array, flip: jax.Array, shift: int) -> jax.Array:
    """Translate every image by up to `shift` pixels both ways, and mirror where told."""
    rows, columns = jax.random.randint(key, (2, len(images)), -shift, shift + 1)
    return translate(images, rows, columns, flip)


def alternating_flip(key: jax.Array, size: int, epoch: jax.Array) -> jax.Array:
    """Choose which images to mirror: a random half at first, then the other half in turn.

    Two epochs in a row show every image both ways, which independent coins would not.
    """
    return jax.random.bernoulli(key, 0.5, (size,)) ^ (epoch % 2 == 1)
