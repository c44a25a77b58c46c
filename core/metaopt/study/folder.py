"""The run folder: one study at a time, by one process at a time."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaopt.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process; the hold ends with the process, however that ends.

    Raises UserError where it cannot be written, or another process holds it.
    """
    lock, made = folder / ".lock", list[Path]()
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        _remove(made)
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to the run folder {folder} ({reason}); give another with --output") from None
    try:
        _hold(descriptor, folder)
        sweep(folder)
        try:
            yield
        except UserError:
            if made:  # nothing came of it, so nothing is left of it
                lock.unlink(missing_ok=True)
                _remove(made)
            raise
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    if not fcntl:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by forked workers
    except BlockingIOError:
        raise UserError(
            f"another process is running the study in {folder}; wait for it, or give another folder with --output"
        ) from None


def refuse_links(folder: Path) -> None:
    """Raise UserError where a run folder, which may be a stranger's, holds a link: nothing outside of it is touched."""
    for path in _within(folder):
        if path.is_symlink():
            raise UserError(
                f"{path.path} is a symbolic link, and a run folder holds plain files and folders; put a copy of what "
                "it leads to in its place"
            )


def _within(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield all that is in a folder, without a look at each file: a run of ten thousand trials has as many."""
    folders = [str(folder)]
    while folders:
        with suppress(OSError, ValueError), os.scandir(folders.pop()) as found:  # ValueError: a zero byte in a path
            for path in found:
                yield path
                if path.is_dir(follow_symlinks=False):
                    folders.append(path.path)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written; see `metaopt.files.whole`."""
    for litter in list(_within(folder)):
        if (found := re.fullmatch(r"\..+\.(\d+)\.tmp", litter.name)) and not _runs(int(found[1])):
            with suppress(OSError):
                os.unlink(litter.path)


def _runs(process: int) -> bool:
    """Tell whether a process runs; one that has ended and that nobody has asked after does not."""
    try:
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it is somebody else's, or there is no /proc


def _remove(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
