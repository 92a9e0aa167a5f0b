"""The data sets, whole, as uint8 arrays in the host's memory."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples.cifar10 import download
from examples.cifar10.configs import Options, UserError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

CIFAR10_FILES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images [n, height, width, 3] in uint8, labels [n] in uint8, and what to know of them."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    epochs: int  # what training needs, unless told
    mirror: bool  # whether the mirror image of a member of a class is one too
    split: str = "test"  # what test_images are
    unverified: tuple[str, ...] = ()  # files that are not the official ones

    @property
    def sha256(self) -> str:
        """What tells these images and labels from others."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """The name that every result carries."""
        if self.unverified:
            return f"{self.name} (not the official files: {', '.join(self.unverified)})"
        return self.name


def load(options: Options, say: Callable[[str], None]) -> Dataset:
    """Load the data set that the options ask for; `say` shows a line to the user."""
    if options.dataset == "digits":
        data = digits()
    elif options.dataset == "synthetic":
        data = synthetic()
    else:
        try:
            data = cifar10(options)
        except download.NoAnswerError as error:
            if options.dataset == "cifar10":
                raise
            say(f"{error}: training on scikit-learn's handwritten digits instead of CIFAR-10.")
            data = digits()
    data = hold_out(data) if options.recipe.validation else data
    count = options.recipe.train_images
    if count is None:
        return data
    return dataclasses.replace(
        data, train_images=data.train_images[:count], train_labels=data.train_labels[:count]
    )


def hold_out(data: Dataset) -> Dataset:
    """Replace the test images by a fixed random tenth of the training images."""
    order = np.random.default_rng(0).permutation(len(data.train_images))
    held, kept = np.split(order, [len(order) // 10])
    return dataclasses.replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
        split="validation",
    )


def cifar10(options: Options) -> Dataset:
    """Read CIFAR-10 from `--data-dir` or from the cache, which is filled at the first use."""
    folder = options.data_dir
    if folder is None:
        import platformdirs  # Only the cache needs it.

        folder = platformdirs.user_cache_path("optax_rmsprop") / "cifar-10-batches-bin"
        if not folder.is_dir():
            if options.offline:
                raise download.NoAnswerError("CIFAR-10 is not in the cache and --offline is given")
            download.archive((*options.mirrors, download.URL), download.SHA256, folder)
    elif not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    elif (folder / "data_batch_1").exists():
        raise UserError(
            f"--data-dir {folder} holds the Python version of CIFAR-10, and what is read here is "
            f"the binary one: unpack {download.URL}, or leave --data-dir out"
        )
    batches = {name: _read(folder / name) for name in CIFAR10_FILES}
    unverified = tuple(
        name
        for name, digest in CIFAR10_FILES.items()
        if hashlib.sha256(batches[name]).hexdigest() != digest
    )
    if unverified and not (options.data_dir and options.accept_unverified):
        raise UserError(
            f"{', '.join(unverified)} in {folder} is not the official file (its SHA-256 differs). "
            + (
                "Give --accept-unverified to use it all the same; every result will say so."
                if options.data_dir
                else "Delete the folder to download it again."
            )
        )
    *train, test = (_decode(name, batch) for name, batch in batches.items())
    return Dataset(
        "CIFAR-10",
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        *test,
        classes=CIFAR10_CLASSES,
        epochs=10,
        mirror=True,
        unverified=unverified,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _decode(name: str, batch: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Split records of one label byte and three 32 x 32 planes."""
    if not batch or len(batch) % 3073:
        raise UserError(f"{name} has {len(batch)} bytes, which are not whole records of 3073")
    records = np.frombuffer(batch, np.uint8).reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise UserError(f"{name} has the label {records[:, 0].max()}; CIFAR-10 has 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].copy()


def digits() -> Dataset:
    """The 1,797 handwritten digits that come with scikit-learn, enlarged to 32 x 32 x 3.

    A fixed random fifth is held out as the test set.
    """
    from sklearn.datasets import load_digits  # Takes a second, and only this needs it.

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(images.repeat(4, 1).repeat(4, 2)[..., None], 3, axis=-1)
    test, train = np.split(np.random.default_rng(0).permutation(len(images)), [len(images) // 5])
    labels = bunch.target.astype(np.uint8)
    return Dataset(
        "scikit-learn digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        classes=tuple("0123456789"),
        epochs=8,
        mirror=False,
    )


def synthetic(train: int = 512, test: int = 128) -> Dataset:
    """Made-up images, for tests: every class is a random pattern, seen through noise."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(64, 192, (10, 32, 32, 3))
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    noise = rng.normal(0, 32, (train + test, 32, 32, 3))
    images = (patterns[labels] + noise).clip(0, 255).astype(np.uint8)
    return Dataset(
        "synthetic",
        images[:train],
        labels[:train],
        images[train:],
        labels[train:],
        classes=tuple("0123456789"),
        epochs=2,
        mirror=True,
    )
