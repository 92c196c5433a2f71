"""How does a dictionary come from a model hub, and go to one?

Everything goes through huggingface_hub, which knows caches, tokens and mirrors: HF_ENDPOINT names
another hub, HF_HUB_OFFLINE=1 uses nothing but what was downloaded before.
"""

from collections.abc import Sequence
from pathlib import Path

from saelab.errors import CheckpointError, FormatError
from saelab.files import write_bytes
from saelab.formats.registry import KnownDictionary
from saelab.sae import SAE

__all__ = ["download", "upload", "write_card"]

_CARD = """---
library_name: {library}
tags:
- sparse-autoencoder
---

# {title}

{summary}

| | |
|---|---|
| reads | {hook} |
| writes | {hook_out} |
| model | {model} |
| width in, latents, width out | {d_in}, {d_sae}, {d_out} |
| activation function | {activation} |
| files | {format} |

Open it with `saelab.formats.read(folder)`{theirs}.
"""


def download(known: KnownDictionary, revision: str | None = None) -> Path:
    """Fetch the files of one dictionary, or find them where they were fetched before.

    Args:
        known: What to fetch.
        revision: Branch, tag or commit; the main branch if not given.

    Returns:
        The folder or file that `saelab.formats.read` takes.

    Raises:
        CheckpointError: There is no network, no such repository, or no right to read it; the
            message says which.
    """
    from huggingface_hub import snapshot_download

    try:
        root = snapshot_download(known.repo_id, revision=revision, allow_patterns=known.files)
    except Exception as error:  # whatever the network does, it is not our bug
        raise _no_answer(f"download {known.release}/{known.sae_id}", known.repo_id, error) from None
    path = Path(root) / known.path
    if not path.exists():
        raise CheckpointError(
            f"{known.repo_id} was reached, and has no {known.path} (looked for "
            f"{', '.join(known.files)}). The registry's entry for {known.release}/{known.sae_id} "
            "may be out of date."
        )
    return path


def upload(folder: str | Path, repo_id: str, *, path: str = "", private: bool = False) -> str:
    """Put an exported folder into a repository, which is made if there is none.

    Args:
        folder: What `saelab.export` wrote.
        repo_id: "you/your-dictionaries".
        path: Folder in the repository; its root if not given.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: There is no network, or no right to write.
        FormatError: The folder is empty.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FormatError(f"There is nothing to upload in {folder}.")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=path or None,
            commit_message=f"Upload {path or 'a dictionary'} with saelab",
        )
    except Exception as error:  # as above
        raise _no_answer(f"upload {folder}", repo_id, error) from None
    return str(done.commit_url)


def write_card(folder: str | Path, sae: SAE, format: str) -> None:
    """Write README.md, which hubs show: what the dictionary reads, and how to open it."""
    folder = Path(folder)
    model = (sae.metadata.get("model") or {}).get("name")
    card = _CARD.format(
        library="saelens" if format == "saelens" else "saelab",
        title=f"Sparse dictionary of {sae.hook or 'an unnamed hook point'}",
        summary="A transcoder." if sae.is_transcoder else "A sparse autoencoder.",
        hook=sae.hook or "not recorded",
        hook_out=sae.hook_out or "the same",
        model=model or "not recorded",
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        d_out=sae.d_out,
        activation=sae.activation,
        format=format,
        theirs=", or `sae_lens.SAE.load_from_disk(folder)`" if format == "saelens" else "",
    )
    write_bytes(folder / "README.md", card.encode())


def _no_answer(what: str, repo_id: str, error: Exception) -> CheckpointError:
    kind, text = type(error).__name__, " ".join(str(error).split())[:240]
    reasons: Sequence[tuple[tuple[str, ...], str]] = (
        (
            ("GatedRepoError",),
            "its owner grants access on request: ask there, then `hf auth login`",
        ),
        (("RepositoryNotFoundError",), "there is no such repository, or it is private"),
        (("RevisionNotFoundError",), "it has no such revision"),
        (
            (
                *("OfflineModeIsEnabled", "LocalEntryNotFoundError", "IncompleteSnapshotError"),
                *("ConnectionError", "ConnectError", "ConnectTimeout"),
            ),
            "the hub cannot be reached from here (no network, or HF_HUB_OFFLINE is set) and the "
            "files were not downloaded before. Download them where there is a network and import "
            "the folder",
        ),
    )
    reason = next(
        (why for kinds, why in reasons if kind in kinds), "the hub did not answer as expected"
    )
    return CheckpointError(f"Cannot {what}: {repo_id}: {reason}. ({kind}: {text})")
