"""Fetching weights from the model hub, into its standard cache (`HF_HOME`).

What goes wrong is said in one sentence (`PullFailed`), because a person without internet meets it at the first start:
the hub has `answer_within_s` to answer, name lookup included; the disk is asked before the first byte.

The bytes are fetched here and not by `hf_hub_download`, because that (huggingface_hub 2.4) throws a partial file away:
a download that stopped goes on from its last byte, in this process or the next. A part lies beside the hub's blobs;
when it is whole and its SHA-256 is right it becomes one, and the hub's library only links it.
"""

import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .models import Weights

_DISK_MARGIN = 500_000_000
"""Bytes that a download leaves free."""
_TIMEOUTS = httpx.Timeout(connect=10.0, read=30.0, write=10.0, pool=10.0)
_MOST_FAILURES = 5
"""Connections in a row that may break without a new byte, a second apart."""
_PIECE = 1 << 20


class PullFailed(Exception):
    """The weights could not be fetched; the message is one sentence for the person who waits for them."""


class HubUnreachable(PullFailed):
    """The hub does not answer: other weights need not be tried."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size_bytes: int


def pull(weights: Weights, *, answer_within_s: float, console: Console | None = None) -> None:
    """Fetches what is not here of `weights`, with a progress bar. Raises PullFailed; KeyboardInterrupt passes."""
    files = _wanted(weights, _remote_files(weights.repository, answer_within_s))
    absent = [file for file in files if not _is_cached(weights.repository, file)]
    size_bytes = sum(file.size_bytes for file in absent)
    _check_disk(weights.repository, size_bytes)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console or Console(stderr=True)) as progress:
        bar = progress.add_task(weights.repository, total=size_bytes)
        for file in absent:
            _fetch(weights.repository, file, answer_within_s, progress, bar)


def _remote_files(repository: str, answer_within_s: float) -> list[RemoteFile]:
    """What the hub has of `repository`. The thread bounds what no HTTP timeout does: the lookup of the hub's name."""
    answers: queue.SimpleQueue[list[RemoteFile] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(repository, files_metadata=True, timeout=answer_within_s)
        except Exception as error:  # said in one sentence below, whatever the hub's HTTP library raises
            answers.put(error)
        else:
            answers.put([RemoteFile(file.rfilename, file.size or 0) for file in info.siblings or ()])

    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        answer = answers.get(timeout=answer_within_s)
    except queue.Empty:
        raise HubUnreachable(f"The model hub did not answer within {answer_within_s:g} s.") from None
    if isinstance(answer, Exception):
        raise _failure(repository, answer) from answer
    return answer


def _failure(repository: str, error: Exception) -> PullFailed:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return PullFailed(f"{repository} is not on the model hub, or needs a login there.")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return PullFailed(f"The model hub answered {error.response.status_code} for {repository}.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable("The model hub is switched off by HF_HUB_OFFLINE.")
    return HubUnreachable(
        f"The model hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__})."
    )


def _wanted(weights: Weights, remote: Iterable[RemoteFile]) -> list[RemoteFile]:
    remote = list(remote)
    for pattern in weights.files:
        if not any(fnmatch(file.name, pattern) for file in remote):
            raise PullFailed(f"{weights.repository} has no file {pattern}.")
    patterns = (*weights.files, *weights.extras)
    return [file for file in remote if any(fnmatch(file.name, pattern) for pattern in patterns)]


def _is_cached(repository: str, file: RemoteFile) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file.name), str)


def _check_disk(repository: str, size_bytes: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    needed = size_bytes - sum(part.stat().st_size for part in _blobs(repository).glob("*.part"))
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size_bytes and free < needed + _DISK_MARGIN:
        have, need = free / 1e9, (needed + _DISK_MARGIN) / 1e9
        raise PullFailed(f"{repository} needs {need:.1f} GB of disk, and {existing} has {have:.1f} GB free.")


def _blobs(repository: str) -> Path:
    """Where the hub's cache keeps the content of files, by their hash."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"


def _fetch(
    repository: str, file: RemoteFile, answer_within_s: float, progress: Progress, bar: TaskID
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repository, file.name)
    try:
        etag = get_hf_file_metadata(url, timeout=answer_within_s).etag
    except Exception as error:  # the exceptions of the HTTP library that this version of the hub's uses
        raise _failure(repository, error) from error
    if etag is None:
        raise PullFailed(f"The model hub gives no hash for {file.name} of {repository}.")
    blob = _blobs(repository) / etag
    if not blob.exists():
        part = blob.with_name(f"{etag}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part, file, progress, bar)
        _check_content(part, file, etag)
        part.rename(blob)
    try:
        hf_hub_download(repository, file.name, etag_timeout=answer_within_s)
    except Exception as error:  # as above
        raise _failure(repository, error) from error


def _download(url: str, part: Path, file: RemoteFile, progress: Progress, bar: TaskID) -> None:
    """Fetches the rest of `part`. Connections that break are taken up again as long as they bring something."""
    part.touch()
    done = part.stat().st_size
    progress.advance(bar, done)
    failures = 0
    while done < file.size_bytes:
        try:
            _append(url, part, progress, bar)
        except httpx.HTTPStatusError as error:
            raise PullFailed(
                f"The model hub answered {error.response.status_code} for {file.name}."
            ) from error
        except httpx.TransportError as error:
            failures = failures + 1 if part.stat().st_size == done else 0
            if failures == _MOST_FAILURES:
                message = (
                    f"The download of {file.name} broke off ({type(error).__name__}): pull again to go on."
                )
                raise PullFailed(message) from error
            time.sleep(1.0)
        done = part.stat().st_size


def _append(url: str, part: Path, progress: Progress, bar: TaskID) -> None:
    from huggingface_hub import get_token

    with part.open("ab") as content:
        done = content.tell()
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={done}-"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUTS, follow_redirects=True) as response:
            response.raise_for_status()
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                # The server knows no ranges: what was there comes again.
                content.truncate(0)
                progress.advance(bar, -done)
            for piece in response.iter_bytes(_PIECE):
                content.write(piece)
                progress.advance(bar, len(piece))


def _check_content(part: Path, file: RemoteFile, etag: str) -> None:
    """Compares with the hub's SHA-256, which is the etag of a large file; of a small one only the size is known."""
    is_right = part.stat().st_size == file.size_bytes
    if is_right and len(etag) == hashlib.sha256().digest_size * 2:
        with part.open("rb") as content:
            is_right = hashlib.file_digest(content, "sha256").hexdigest() == etag
    if not is_right:
        part.unlink()
        raise PullFailed(f"{file.name} arrived damaged and was deleted: pull again.")
