"""Augmentation on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from examples.cifar10 import configs

# Test-time augmentation averages the logits of views, each (row, column, weight). Airbench's:
# the centre counts half, two diagonal neighbours a quarter each.
VIEWS = ((0, 0, 0.5), (-1, -1, 0.25), (1, 1, 0.25))
CENTRE = ((0, 0, 1.0),)


def augmentation(config: configs.Augmentation) -> Callable:
    """Return (key, images, flip) to images, where `flip` says which to mirror."""

    def airbench(key, images, flip):
        images = random_translate(key, images, flip, config.shift)
        return cut_out(jax.random.fold_in(key, 1), images, config.cutout)

    return {"airbench": airbench, "keras": keras, "deepobs": deepobs}[config.augmentation]


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


def cut_out(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Make a square at a random place of every image grey."""
    if side == 0:
        return images
    starts = jax.random.randint(key, (2, len(images), 1), 0, images.shape[1] - side + 1)
    pixel = jnp.arange(images.shape[1])
    rows, columns = (starts <= pixel) & (pixel < starts + side)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 128, images)


def keras(key: jax.Array, images: jax.Array, flip: jax.Array) -> jax.Array:
    """Shift by up to a tenth of the side, with linear interpolation, repeating the edge.

    So does the ImageDataGenerator of Keras.
    """
    size = images.shape[1]
    pixel = jnp.arange(size)
    shifts = size * jax.random.uniform(key, (2, len(images), 1), minval=-0.1, maxval=0.1)
    at = jnp.clip(pixel + shifts, 0, size - 1)
    rows, columns = jnp.maximum(0, 1 - jnp.abs(at[..., None] - pixel))  # [batch, to, from]
    columns = jnp.where(flip[:, None, None], columns[:, ::-1], columns)
    return jnp.einsum("bri,bcj,bijk->brck", rows, columns, images.astype(jnp.float32))


def deepobs(key: jax.Array, images: jax.Array, flip: jax.Array) -> jax.Array:
    """Crop from a border of zeros, mirror, and change saturation and contrast.

    The brightness, which DeepOBS changes by up to a quarter of one of the 256 levels, is kept.
    """
    crop, saturation, contrast = jax.random.split(key, 3)
    images = images.astype(jnp.float32)
    images = _crop(jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), crop, images.shape[1:])
    images = jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
    factor = (len(images), 1, 1, 1)
    images = saturate(images, jax.random.uniform(saturation, factor, minval=0.5, maxval=1.5))
    mean = images.mean((1, 2), keepdims=True)
    return mean + (images - mean) * jax.random.uniform(contrast, factor, minval=0.2, maxval=1.8)


def _crop(images: jax.Array, key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    starts = jax.random.randint(key, (len(images), 2), 0, images.shape[1] - shape[0] + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), shape))(images, starts)


def saturate(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the saturation, (max - min) / max of a pixel's channels, up to at most 1."""
    high = images.max(-1, keepdims=True)
    spread = high - images.min(-1, keepdims=True)
    largest = high / jnp.where(spread == 0, 1, spread)
    return high - (high - images) * jnp.minimum(factor, largest)


def alternating_flip(key: jax.Array, size: int, epoch: jax.Array) -> jax.Array:
    """Choose which images to mirror: a random half at first, then the other half in turn.

    Two epochs in a row show every image both ways, which independent coins would not.
    """
    return jax.random.bernoulli(key, 0.5, (size,)) ^ (epoch % 2 == 1)
