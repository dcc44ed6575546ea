"""Fetching from the Hugging Face Hub into its own cache: which files, and what went wrong.

`huggingface_hub` does the work and reads its own environment: HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE. It is imported late: it takes longer than `remerge --help` may.
"""

from __future__ import annotations

import errno
import glob
import json
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from remerge.errors import BadInput, RemergeError, TryAgain
from remerge.sources.checkpoint import INDEX, SINGLE

# Fetched first: small, enough to choose the rest, and where a gated repository says no.
_FIRST = ["config.json", INDEX, "*adapter_config.json", "README.md"]

_SIDE_SUFFIXES = {
    ".json", ".jinja", ".txt", ".md", ".model", ".spm", ".tiktoken", ".vocab", ".bpe", ".merges",
}  # fmt: skip
_SIDE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
# An index of another format would outlive the files that it lists.
_OTHER_INDEX = (".bin.index.json", ".h5.index.json", ".msgpack.index.json")
# Folders in which repositories keep the same weights in other formats, or the training's history.
_OTHER_FORMATS = re.compile(r"original|onnx|openvino|gguf|metal|coreml|runs|checkpoint-\d+|\..*")
_ROOT_WEIGHTS = re.compile(r"(?!adapter_)[^/]+\.safetensors")
# sentence-transformers keeps the layers after the encoder in folders such as 2_Dense.
_MODULE_WEIGHTS = re.compile(r"\d+_\w+/model\.safetensors")
_TORCH_WEIGHTS = re.compile(r"pytorch_model.*\.bin(\.index\.json)?")


@dataclass(frozen=True)
class Listing:
    """One commit of a repository: its files, and the cache's folder for them."""

    repo_id: str
    commit: str
    folder: Path
    names: tuple[str, ...]


def listing(repo_id: str, revision: str | None, *, progress: bool) -> Listing:
    """Resolve `revision` to a commit and list its files; offline, what the cache has of it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _snapshot(repo_id, revision, _FIRST, progress)
    try:
        names = [file.path for file in get_cached_repo_tree(repo_id, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        # Another tool filled the cache file by file: what is there is all that can be known.
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()]
    safe = [name for name in names if ".." not in PurePosixPath(name).parts]
    return Listing(repo_id, folder.name, folder, tuple(sorted(safe)))


def download(files: Listing, wanted: Sequence[str], *, progress: bool) -> None:
    """Bring these files of the commit into the cache; those that it has are not asked for."""
    _snapshot(files.repo_id, files.commit, [glob.escape(name) for name in wanted], progress)


def weights_announced(files: Listing) -> tuple[int, bool]:
    """How many bytes of weights the base has, by the Hub's list, and whether the cache has all of
    its files."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    wanted = base_files(files, copy_code=False)
    try:
        tree = get_cached_repo_tree(files.repo_id, revision=files.commit)
    except CachedRepoTreeNotFoundError:
        tree = []
    sizes = {file.path: file.size for file in tree}
    here = [name for name in wanted if (files.folder / name).is_file()]
    sizes |= {name: (files.folder / name).stat().st_size for name in here}
    weights = [name for name in wanted if name.endswith((".safetensors", ".bin"))]
    return sum(sizes.get(name, 0) for name in weights), len(here) == len(wanted)


def base_files(files: Listing, *, copy_code: bool) -> list[str]:
    """The files of a base: one set of weights, and what lies beside it."""
    names = files.names
    weights = _safetensors(files) or [n for n in names if _TORCH_WEIGHTS.fullmatch(n)]
    if not weights:
        raise _no_weights(files)
    modules = [n for n in names if _MODULE_WEIGHTS.fullmatch(n)]
    side = [n for n in names if _is_side(n) or (copy_code and n.endswith(".py"))]
    return [*weights, *modules, *(n for n in side if n not in weights and not _elsewhere(n))]


# What mlx-lm and torchtune call their weights.
_OTHER_TRAINERS = re.compile(r"adapters\.safetensors|adapter_(model|\d+)\.(pt|safetensors)")


def adapter_files(names: Sequence[str], folder: str) -> list[str]:
    """The files of the adapter in `folder` ("" for the root), and none below it."""
    here = [n for n in names if str(PurePosixPath(n).parent) == (folder or ".")]
    base = {n: PurePosixPath(n).name for n in here}
    weights = [n for n in here if re.fullmatch(r"adapter_model.*\.safetensors", base[n])]
    if not weights:
        weights = [n for n in here if re.fullmatch(r"adapter_model.*\.bin", base[n])]
    # LLaVA's training leaves more weights beside the adapter; they must be seen to be refused.
    weights += [n for n in here if base[n] == "non_lora_trainables.bin"]
    weights += [n for n in here if n not in weights and _OTHER_TRAINERS.fullmatch(base[n])]
    if not weights:
        # Trainers of image models write the weights alone, under any name.
        weights = [n for n in here if n.endswith(".safetensors")]
    return [*weights, *(n for n in here if _is_side(n))]


def _safetensors(files: Listing) -> list[str]:
    """The safetensors at the root that make up the model, without copies in other layouts."""
    at_root = [n for n in files.names if _ROOT_WEIGHTS.fullmatch(n)]
    if SINGLE in at_root:  # transformers prefers it to an index
        return [SINGLE]
    if INDEX in files.names:
        indexed = _indexed(files.folder / INDEX)
        return [INDEX, *(n for n in at_root if n in indexed)] if indexed else [INDEX, *at_root]
    return at_root


def _indexed(index: Path) -> set[str]:
    """File names in a safetensors index; none when it is malformed, which the merge will say."""
    try:
        content: Any = json.loads(index.read_bytes())
        return {str(name) for name in content["weight_map"].values()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()


def _is_side(name: str) -> bool:
    path = PurePosixPath(name)
    known = path.suffix in _SIDE_SUFFIXES or path.name.upper().startswith(_SIDE_NAMES)
    return known and not name.endswith(_OTHER_INDEX)


def _elsewhere(name: str) -> bool:
    return any(_OTHER_FORMATS.fullmatch(part) for part in PurePosixPath(name).parts[:-1])


def _no_weights(files: Listing) -> BadInput:
    what = f"{files.repo_id} holds no safetensors and no pytorch_model*.bin at its root."
    if "adapter_config.json" in files.names:
        return BadInput(what, why="It is an adapter.", hint="BASE and ADAPTER may be swapped.")
    if any(name.endswith(".gguf") for name in files.names):
        return BadInput(
            what, why="It holds GGUF files.", hint="Give the model that they came from."
        )
    return BadInput(what, hint="Give a repository of a model in safetensors format.")


def _snapshot(repo_id: str, revision: str | None, patterns: list[str], progress: bool) -> Path:
    # Its annotations leave type arguments open.
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.utils import disable_progress_bars

    # One of its bars is drawn without a terminal too.
    with nullcontext() if progress and sys.stderr.isatty() else disable_progress_bars():
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


# --- what went wrong -----------------------------------------------------------------------------


@contextmanager
def explained(repo_id: str, revision: str | None) -> Generator[None]:
    """Turn the Hub's failures into ours, which say what to do."""
    try:
        yield
    except RemergeError:
        raise
    except Exception as error:  # httpx, hf_xet and the file system each raise their own kinds
        raise _explanation(error, repo_id, revision or "main") from error


def _explanation(error: Exception, repo_id: str, revision: str) -> RemergeError:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    if constants.is_offline_mode() and isinstance(error, errors.LocalEntryNotFoundError):
        return BadInput(
            f"{repo_id}@{revision} is not, or only in part, in the cache "
            f"{constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set.",
            hint="Unset HF_HUB_OFFLINE, or download it first: "
            f"hf download {repo_id} --revision {revision}",
        )
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache either" hides why the Hub did not answer
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return BadInput(
            f"{repo_id} is gated: its files are given only to accounts that accepted its terms.",
            hint=f"Accept them at {page}, then log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return BadInput(
            f"There is no directory {repo_id}, and no repository of that name at "
            f"{constants.ENDPOINT} that this account may see.",
            hint="Check the spelling; if it is private, `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(
            f"{repo_id} has no revision {revision!r}.",
            hint=f"Its branches, tags and commits are at {page}/commits/main",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return BadInput(f"A file of {repo_id}@{revision} cannot be found: {_line(error)}")
    if status == 401:
        return BadInput(
            f"{constants.ENDPOINT} does not accept the token sent for {repo_id}.",
            hint="Log in again with `hf auth login`, or set HF_TOKEN to a valid token.",
        )
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return BadInput(f"{constants.ENDPOINT} refuses {repo_id}@{revision}: {_line(error)}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TryAgain(
            f"No space left for {repo_id} in the cache {constants.HF_HUB_CACHE}.",
            hint="Free some (`hf cache prune`), or set HF_HOME to a larger disk.",
        )
    return TryAgain(
        f"{repo_id}@{revision} could not be downloaded from {constants.ENDPOINT}: "
        f"{type(error).__name__}: {_line(error).rstrip('.')}.",
        hint="Check the network and try again; what has arrived is kept.",
    )


def _status(error: Exception) -> int | None:
    """The HTTP status of the Hub's answer, if it gave one."""
    response = cast(Any, getattr(error, "response", None))
    return None if response is None else int(response.status_code)


def _line(error: Exception) -> str:
    """The error's message on one line, without the library's advice after it."""
    return " ".join(str(error).split())[:300]
