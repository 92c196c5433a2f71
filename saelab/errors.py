"""Every deliberate error saelab raises.

A message says what was asked, what was found and what to do. Each class also derives from the
builtin a Python user would expect to catch.

    SaelabError
    ├── ConfigError      (ValueError)  a setting contradicts another or the data
    ├── ShapeError       (ValueError)  a tensor has the wrong width or rank
    ├── DataError        (ValueError)  activations or text that cannot be used (NaN, empty)
    ├── HookPointError   (KeyError)    a place in the model that does not exist
    ├── ModelError       (ValueError)  a model that cannot be loaded, or is the wrong one
    ├── CorpusError      (ValueError)  a text source that cannot be read
    ├── StoreError       (ValueError)  an activation store that is missing, truncated or altered
    ├── CheckpointError  (ValueError)  a dictionary or checkpoint that is missing or altered
    ├── FormatError      (ValueError)  a foreign format that cannot express, or be read as, this
    ├── FolderBusyError  (OSError)     another process is writing the same run folder
    ├── DiskFullError    (OSError)     the disk refused a write; nothing finished was lost
    └── Interrupted      (Exception)   a signal stopped the work at a point it can resume from
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DataError",
    "DiskFullError",
    "FolderBusyError",
    "FormatError",
    "HookPointError",
    "Interrupted",
    "ModelError",
    "SaelabError",
    "ShapeError",
    "StoreError",
]


class SaelabError(Exception):
    """Base of every deliberate error."""


class ConfigError(SaelabError, ValueError):
    """A setting contradicts another setting, or the data it is used with."""


class ShapeError(SaelabError, ValueError):
    """A tensor has the wrong width or rank."""


class DataError(SaelabError, ValueError):
    """Activations or text that cannot be used: NaN, infinite, empty."""


class HookPointError(SaelabError, KeyError):
    """The model has no such place to read or write."""

    def __str__(self) -> str:
        """Show the message as text; KeyError alone would show its repr."""
        return str(self.args[0]) if self.args else ""


class ModelError(SaelabError, ValueError):
    """A model that cannot be loaded, or is not the one that was recorded."""


class CorpusError(SaelabError, ValueError):
    """A text source that is missing, empty or unreadable."""


class StoreError(SaelabError, ValueError):
    """An activation store that is missing, incomplete, truncated or altered."""


class CheckpointError(SaelabError, ValueError):
    """A dictionary or training checkpoint that is missing, truncated, altered or of another run."""


class FormatError(SaelabError, ValueError):
    """A foreign format that cannot express this dictionary, or cannot be read as one."""


class FolderBusyError(SaelabError, OSError):
    """Another process is writing the same run folder."""


class DiskFullError(SaelabError, OSError):
    """The disk refused a write, or will not have room; everything already finished is kept."""


class Interrupted(SaelabError):
    """A signal asked the work to stop; the state is saved and the message says how to go on."""
