"""What belongs to a run: the text that was held out, and which store and model it came from.

    STORE/tokens/held_out/      tokens no dictionary was trained on
    STORE/tokens/source.json    the model and text that were asked for
    RUN/sources.json            the store a run was trained on, relative to the run

With these, `evaluate` needs nothing but the run folder.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from saelab.errors import CheckpointError, CorpusError, StoreError
from saelab.files import read_json, write_json
from saelab.sae import SAE
from saelab.tokens import Tokens

__all__ = ["HarvestSource", "dictionary_of", "held_out_of", "record_store", "store_of"]


@final
@dataclass(frozen=True, kw_only=True)
class HarvestSource:
    """What a harvest was asked to read."""

    model: str
    """As given to `load_model`."""
    text: list[str]
    """Corpora and paths, as given to `tokens.from_text`."""

    @classmethod
    def asked(cls, model: str, text: Sequence[str | Path]) -> "HarvestSource":
        """What was asked, with paths made absolute, so that it holds wherever it is read."""
        here = Path(model).expanduser()
        model = str(here.absolute()) if here.exists() else model
        return cls(model=model, text=[t if isinstance(t, str) else str(t.absolute()) for t in text])

    def save(self, store: Path) -> None:
        """Write it beside the store's tokens."""
        write_json(store / "tokens" / "source.json", asdict(self))

    @classmethod
    def of(cls, store: Path) -> "HarvestSource":
        """Read what `save` wrote.

        Raises:
            StoreError: The store was made by other means and has no such file.
        """
        found = read_json(store / "tokens" / "source.json", "a harvest's source", StoreError)
        try:
            return cls(**found)
        except TypeError as error:
            raise StoreError(f"{store / 'tokens' / 'source.json'} was altered: {error}.") from None


def record_store(run: str | Path, store: str | Path) -> None:
    """Note in a run folder which store it is trained on; `train` does it for stores on disk."""
    relative = os.path.relpath(Path(store).absolute(), Path(run).absolute())
    write_json(Path(run) / "sources.json", {"store": Path(relative).as_posix()})


def store_of(run: str | Path) -> Path:
    """The store a run was trained on.

    Raises:
        CheckpointError: It was not recorded, or is no longer there.
    """
    run = Path(run)
    recorded = read_json(run / "sources.json", "record of the store a run was trained on")
    store = Path(os.path.normpath(run.absolute() / str(recorded.get("store"))))
    if not store.is_dir():
        raise CheckpointError(
            f"{run} was trained on the store {store}, which is no longer there. Put it back, or "
            "name a model and a text to evaluate with."
        )
    return store


def held_out_of(store: str | Path) -> Tokens:
    """The tokens that were kept out of a store.

    Raises:
        CorpusError: None were kept out.
    """
    folder = Path(store) / "tokens" / "held_out"
    if not folder.is_dir():
        raise CorpusError(
            f"{store} has no held-out text: it was harvested from all of it. Harvest with "
            "--held-out 0.1, or evaluate on another text."
        )
    return Tokens.load(folder)


def dictionary_of(run: str | Path, device: str = "cpu") -> SAE:
    """The dictionary of a run folder, or of a folder that is a dictionary itself.

    Raises:
        CheckpointError: There is none, or training is not finished.
    """
    run = Path(run)
    if (run / "saelab.json").exists():
        return SAE.load(run, device)
    if (run / "run.json").exists() and not (run / "sae" / "saelab.json").exists():
        raise CheckpointError(
            f"The run in {run} is not finished, so it has no dictionary yet. Run the same training "
            "command again to finish it."
        )
    return SAE.load(run / "sae" if (run / "sae").is_dir() else run, device)
