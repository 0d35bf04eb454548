"""What was written is what is read: artefacts appear whole, and a digest of each file beside them.

A model file that was cut off by a full disk or altered on the way can load without an error and
say other things. So every export and every quantized model lists its files with their bytes and
SHA-256, and loading refuses what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distillkit.errors import UserError
from distillkit.model_files import saving_error, take_place

MANIFEST = "manifest.json"
_FORMAT = "distillkit manifest 1"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, aside; at the end it gets its manifest and takes the target's place.

    An earlier export is replaced. Raises UserError where the target holds anything else, or cannot
    be written; nothing is left behind then.
    """
    if target.is_file():
        raise UserError(f"{target} is a file; expected a folder to export into")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"{target} holds other things than an export: choose another folder")
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield aside
        write_manifest(aside / MANIFEST, sorted(aside.iterdir()))
        aside.chmod(0o755)
        take_place(target, aside)
    except OSError as error:
        raise saving_error(target, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """The same for one file: a path to write to; the manifest is put beside the target.

    A process killed between the two renames leaves a file that its manifest refuses.
    """
    if target.is_dir():
        raise UserError(f"{target} is a folder; expected the name of a file to export to")
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield aside / target.name
        write_manifest(aside / MANIFEST, [aside / target.name])
        os.replace(aside / target.name, target)
        os.replace(aside / MANIFEST, manifest_of(target))
    except OSError as error:
        raise saving_error(target, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def manifest_of(path: Path) -> Path:
    """Where the manifest of an export lies: in its folder, or beside its file."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def write_manifest(manifest: Path, files: Iterable[Path]) -> None:
    """Write down the bytes and the SHA-256 of each file."""
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    content = json.dumps({"format": _FORMAT, "files": listed}, indent=1)
    manifest.write_text(content + "\n", encoding="utf-8")


def check_manifest(path: Path) -> list[str]:
    """Compare a folder or a file with its manifest; the names that this lists.

    Raises UserError, naming the file, when one is missing, cut off or altered, and when there is
    no manifest or it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or file; expected what was saved or exported")
    manifest = manifest_of(path)
    if not manifest.is_file():
        raise UserError(
            f"{path} has no {manifest.name}, so nobody can say whether it is whole: write it with "
            "distillkit.models.save_model or distillkit.export"
        )
    folder = path if path.is_dir() else path.parent
    listed = _listed(manifest)
    for name, wanted in listed.items():
        _check_file(folder / name, wanted)
    return list(listed)


def _listed(manifest: Path) -> dict[str, dict]:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise UserError(
                f"{manifest} has the format {content['format']!r}, expected {_FORMAT!r}"
            )
        files = {str(name): dict(wanted) for name, wanted in content["files"].items()}
        if not files or any({"bytes", "sha256"} - set(wanted) for wanted in files.values()):
            raise KeyError
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{manifest} is damaged: write it anew") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{manifest} is damaged: it is not JSON; write it anew") from error
    return files


def _check_file(file: Path, wanted: dict) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing: copy all of it, or write it anew")
    found = file.stat().st_size
    if found < wanted["bytes"]:
        raise UserError(
            f"{file} is cut off: it has {found:,} bytes of {wanted['bytes']:,}; "
            "copy it or write it anew"
        )
    if found != wanted["bytes"] or _digest(file) != wanted["sha256"]:
        raise UserError(
            f"{file} was altered since it was written: its SHA-256 is not that of the manifest; "
            "copy it or write it anew"
        )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
