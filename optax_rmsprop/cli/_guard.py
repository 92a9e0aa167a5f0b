"""What is refused before it is read, and files that are written whole or not at all.

A checkpoint comes from somebody else. No pickle is executed, no link is followed, nothing is
extracted to a disk, and no array is made that is much larger than its file.
"""

import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import pathlib
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

import numpy as np

# A file of constants, such as fresh accumulators, is compressed by much; one of weights is not.
LARGEST_RATIO = 100
HARMLESS = 64 * 2**20  # bytes that are never too many
MOST_VALUES, DEEPEST = 2**24, 64  # in containers, and how deep

EXTRA = "pip install 'optax-rmsprop[cli]', or '.[cli]' in a clone"
_PACKAGES = {
    "h5py": EXTRA,
    "orbax.checkpoint": EXTRA,
    "safetensors": EXTRA,
    "torch": "pip install torch",
    "tensorflow": "pip install tensorflow",
}


class Refused(ValueError):
    """A file that is not read, or a request that cannot be met."""


def needed(module: str, what: str) -> Any:
    """A module that only some files need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        name = module.partition(".")[0]
        raise Refused(
            f"{what} needs {name}, which is not installed: {_PACKAGES[module]}"
        ) from error


@contextlib.contextmanager
def silent() -> Generator[None]:
    """Nothing goes to the standard error, not even from libraries in C."""
    try:
        kept = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def one_line(error: BaseException | str) -> str:
    """A message without line breaks, and without what a terminal would obey."""
    text = str(error) or type(error).__name__
    return printable(" ".join(text.split())[:600])


def printable(text: str) -> str:
    """A name from a file, fit for a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def regular_file(path: pathlib.Path) -> pathlib.Path:
    """`path`, if it is a file and no link to one."""
    if path.is_symlink():
        raise Refused(f"{path} is a symbolic link: give the file that it leads to")
    if not path.exists():
        raise Refused(f"{path} does not exist")
    if not path.is_file():
        raise Refused(f"{path} is no file")
    return path


def folder_without_links(path: pathlib.Path) -> int:
    """The size of a folder's files in bytes, if nothing in it leads out of it."""
    if path.is_symlink():
        raise Refused(f"{path} is a symbolic link: give the folder that it leads to")
    size = 0
    for parent, folders, files in os.walk(path):
        for name in (*folders, *files):
            if not stat.S_ISDIR(mode := os.lstat(inside := pathlib.Path(parent) / name).st_mode):
                if not stat.S_ISREG(mode):
                    raise Refused(f"{inside} is no regular file: a checkpoint has no links")
                size += inside.stat().st_size
    return size


def check_nesting(where: str, x: Any) -> None:
    """Refuse containers that hold each other so often that to walk through them has no end."""
    _size(where, x, 0, {})


def _size(where: str, x: Any, depth: int, known: dict[int, int]) -> int:
    """How many values there are in a container, however often it is the same one."""
    if not isinstance(x, dict | list | tuple | set | frozenset):
        return 1
    if id(cast(Any, x)) not in known:
        items = cast("Iterable[Any]", x.items() if isinstance(x, dict) else x)
        inside = items if depth < DEEPEST else ()
        size = 1 + sum(_size(where, item, depth + 1, known) for item in inside)
        known[id(cast(Any, x))] = size
        if depth == DEEPEST or size > MOST_VALUES:
            raise Refused(f"{where} has containers within each other that are never read to an end")
    return known[id(cast(Any, x))]


def check_size(where: str, declared: int, actual: int) -> None:
    """Refuse what would be far larger in memory than it is in its file."""
    if declared > max(HARMLESS, LARGEST_RATIO * actual):
        raise Refused(
            f"{where} says that it holds {declared:,} bytes in a file of {actual:,}: a bomb?"
        )


@contextlib.contextmanager
def archive(source: pathlib.Path | io.BytesIO, where: str) -> Generator[zipfile.ZipFile]:
    """A zip archive whose members have plain names and sizes that fit it."""
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    try:
        with zipfile.ZipFile(source) as opened:
            members = opened.infolist()
            for member in members:
                _check_member(where, member)
            names = [member.filename for member in members]
            if len({*names}) < len(names):
                raise Refused(f"{where} has two members of one name")
            check_size(where, sum(member.file_size for member in members), size)
            yield opened
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise Refused(f"{where} is no whole zip archive: {error}") from error


def _check_member(where: str, member: zipfile.ZipInfo) -> None:
    # What zipfile corrects silently, such as what follows a null, is in `orig_filename`.
    name = member.orig_filename
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise Refused(f"{where} has a member outside of it: {name!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Refused(f"{where} has a member that is a link: {name!r}")
    if member.flag_bits & 1:
        raise Refused(f"{where} has an encrypted member: {name!r}")


def member(opened: zipfile.ZipFile, name: str, where: str) -> bytes:
    """A member of an archive, whole and with the right checksum."""
    try:
        return opened.read(name)
    except KeyError as error:
        raise Refused(f"{where} has no {name}") from error
    except Exception as error:  # of each kind of compression, when it is cut off
        raise Refused(f"{where}: {name} cannot be read: {error}") from error


def rewrite(source: pathlib.Path, path: pathlib.Path, new: Mapping[str, bytes]) -> None:
    """Write an archive like another one, in which some members are new."""
    with archive(source, str(source)) as old, zipfile.ZipFile(path, "w") as made:
        for name in old.namelist():
            made.writestr(name, new[name] if name in new else member(old, name, str(source)))


def json_of(text: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"{where} is no JSON object")
    return cast("dict[str, Any]", found)


def npz(path: pathlib.Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a NumPy archive; none of Python objects, which would be pickles."""
    with archive(path, str(path)) as opened:
        names = opened.namelist()
        if strange := [name for name in names if not name.endswith(".npy")]:
            raise Refused(f"{path} has a member that is no array: {strange[0]!r}")
        return {
            name.removesuffix(".npy"): _npy(member(opened, name, str(path)), f"{path}: {name}")
            for name in names
        }


def _npy(data: bytes, where: str) -> np.ndarray[Any, Any]:
    stream = io.BytesIO(data)
    try:
        found = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise Refused(f"{where} is no array of numbers, without pickles: {error}") from error
    if stream.read(1):
        raise Refused(f"{where} has more bytes than its shape {found.shape} of {found.dtype}")
    return found


@contextlib.contextmanager
def hdf5(source: pathlib.Path | io.BytesIO, where: str) -> Generator[Any]:
    """An HDF5 file all of whose data are in it."""
    h5py = needed("h5py", where)
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    try:
        with h5py.File(source, "r") as opened:
            check_size(where, _declared(h5py, opened, where), size)
            yield opened
    except (OSError, RuntimeError, KeyError) as error:  # h5py's, of a file that is cut off
        raise Refused(f"{where} is no whole HDF5 file: {error}") from error


def _declared(h5py: Any, opened: Any, where: str) -> int:
    """The bytes of all arrays of a file; it is a tree, without links."""
    total, left, seen = 0, [opened], set[int]()
    while left:
        group = left.pop()
        for name in group:
            at = f"{where}: {group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"{at} is a link to somewhere else")
            x = group[name]
            address = h5py.h5o.get_info(x.id).addr
            if address in seen:
                raise Refused(f"{at} is reached by two ways")
            seen.add(address)
            if isinstance(x, h5py.Group):
                left.append(x)
            elif not isinstance(x, h5py.Dataset) or x.external or x.is_virtual:
                raise Refused(f"{at} has its data in another file")
            elif x.dtype.hasobject:
                raise Refused(f"{at} is no array of numbers, but of {x.dtype}")
            else:
                total += math.prod(x.shape or ()) * x.dtype.itemsize
    return total


def finite(x: Any) -> Any:
    """What JSON can say: no number that is not finite."""
    if isinstance(x, (np.generic, np.ndarray)):
        x = cast(Any, x).tolist()
    if isinstance(x, float) and not math.isfinite(x):
        return None
    if isinstance(x, Mapping):
        return {str(key): finite(y) for key, y in cast("Mapping[Any, Any]", x).items()}
    if isinstance(x, Iterable) and not isinstance(x, (str, bytes)):
        return [finite(y) for y in cast("Iterable[Any]", x)]
    return x


def digests(files: Mapping[str, pathlib.Path]) -> dict[str, str]:
    """The SHA-256 of files."""
    found = dict[str, str]()
    for name, path in files.items():
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def written(
    path: pathlib.Path, force: bool, replaceable: bool = True
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A temporary name beside `path`, which takes its place at the end, or leaves nothing.

    What forbids it is told by the call, and nothing is there before the `with`.
    """
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent}")
    if os.path.lexists(path) and not force:
        raise Refused(f"{path} exists: --force overwrites it")
    if os.path.lexists(path) and (path.is_symlink() or not replaceable):
        raise Refused(f"{path} exists and is no file of this kind: remove it yourself")
    return _written(path)


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Generator[pathlib.Path]:
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = scratch / path.name
        yield new
        if not path.is_dir():
            new.replace(path)
            return
        path.rename(old := scratch / f"old-{path.name}")
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
