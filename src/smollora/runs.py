"""The run folder: where every stage leaves its files, and how a rerun knows what it may skip.

`runs/NAME/STAGE/` holds the stage's files and, written last, `summary.json` and `.done`. `.done` is
JSON: {"key": ...}, a hash over everything the stage read (recipe section, input files, the keys of
the stages before it, package version). Files are written whole: temporary name in the same folder,
flush, rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError, DataError, SmolloraError

SCHEMA_VERSION = 1


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else works in this run folder meanwhile. The lock, on its file `.lock`, is the
    system's: it ends with the process, however that ends.

    Raises:
        ConfigError: another process works there.
        SmolloraError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another smollora is at work in {folder}",
            "wait until it has ended, or give this run a name of its own: --name NAME",
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place at the end: readers see the old content
    or all of the new.

    Raises:
        SmolloraError: the disk is full or the folder is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            yield Path(temporary)
            os.fsync(handle)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> SmolloraError:
    return SmolloraError(
        f"cannot write {path}: {error.strerror or error}",
        "free some space or choose another folder with --runs; finished stages are kept",
    )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`, which takes its place at the end; nothing is left of it if
    filling fails. What stands at `path` is the caller's to remove, as late as can be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield work
        work.chmod(0o755)
        os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically.

    Raises:
        SmolloraError: as `whole_file`.
    """
    payload = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with whole_file(path) as temporary:
        temporary.write_bytes(payload)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote.

    Raises:
        DataError: absent or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", "run the stage that writes it first") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", "delete its folder and run again"
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file that a stage wrote."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", "run the stage that writes it first") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", "delete its folder and run again"
        ) from error


def hash_of(*parts: Any) -> str:
    """sha256 (hex) over JSON-able parts, stable across runs."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """sha256 (hex) over the modules that turn records into token ids: a prepared set made by other
    code is not the same set.
    """
    root = Path(__file__).parent
    parts = ("types.py", "tokens.py", "render.py", "formats", "templates", "data")
    files = [
        path
        for part in parts
        for path in ([root / part] if part.endswith(".py") else sorted((root / part).rglob("*")))
        if path.suffix in (".py", ".jinja")
    ]
    return hash_of([(str(path.relative_to(root)), hash_file(path)) for path in files])


def is_done(folder: Path, key: str) -> bool:
    """True if the stage in `folder` finished with exactly these inputs."""
    marker = folder / ".done"
    try:
        return bool(json.loads(marker.read_text()).get("key") == key)
    except (OSError, ValueError, AttributeError):
        return False


def mark_done(folder: Path, key: str) -> None:
    """Say that the stage in `folder` is whole; call it last."""
    write_json(folder / ".done", {"key": key})
