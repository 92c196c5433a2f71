"""The address of a view: what its query parameters say, checked before anything believes them."""

import streamlit as st

from saelab.errors import ConfigError

__all__ = ["integer", "text"]


def text(name: str, default: str = "", longest: int = 20_000) -> str:
    """A parameter as text.

    Raises:
        ConfigError: It is longer than any page writes.
    """
    value = str(st.query_params.get(name, default))
    if len(value) > longest:
        raise ConfigError(f"{name} in the address is {len(value):,} characters long: too many.")
    return value


def integer(name: str, default: int, *, below: int) -> int:
    """A parameter as a number from 0 up to `below`.

    Raises:
        ConfigError: It is not one.
    """
    value = text(name, str(default), longest=20)
    if not value.isdecimal() or int(value) >= below:
        raise ConfigError(
            f"{name}={value!r} in the address is not a number from 0 to {below - 1:,}."
        )
    return int(value)
