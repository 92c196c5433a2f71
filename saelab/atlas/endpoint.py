"""How is a language model asked? Over HTTP, as OpenAI's chat completions; many servers speak it.

Nothing is sent before `Asker.ask` is called, and nothing is asked twice: replies are kept under a
hash of the request. The key is read from an environment variable and never written anywhere.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

from saelab.atlas.explanations import Explanations
from saelab.errors import ConfigError, ModelError

__all__ = ["Asker", "Cost", "CountingAsker", "Endpoint", "HttpAsker", "Messages"]

Messages = list[dict[str, str]]
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which asking again may work."""
BYTES_PER_TOKEN = 4
LONGEST_WAIT = 30.0


@final
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model that can be asked.

    >>> Endpoint(url="http://localhost:8000/v1", model="local").completions
    'http://localhost:8000/v1/chat/completions'
    """

    url: str
    """Base address of the service, ending in its version: http://localhost:11434/v1."""
    model: str
    """What the service calls the model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; none is sent if it is not set."""
    temperature: float = 0.0
    """Randomness of the answers."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    retries: int = 4
    """Times to ask again when the service is busy or does not answer."""

    def __post_init__(self) -> None:
        """Refuse an address that is not of the web."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"Endpoint(url={self.url!r}): it must begin with http:// or https://, such as "
                "http://localhost:11434/v1."
            )
        if not self.model:
            raise ConfigError("Endpoint(model=''): say which model the service should run.")

    @property
    def completions(self) -> str:
        """Where requests go."""
        return f"{self.url.rstrip('/')}/chat/completions"

    def request(self, messages: Messages, max_tokens: int) -> dict[str, Any]:
        """The body of a request."""
        return {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": max_tokens,
        }


@runtime_checkable
class Asker(Protocol):
    """Something that answers messages."""

    endpoint: Endpoint
    """Which model answers."""

    def ask(self, messages: Messages, max_tokens: int) -> str:
        """The answer."""
        ...


@final
@dataclass(kw_only=True)
class Cost:
    """What asking would take."""

    requests: int = 0
    """Requests to send."""
    answered: int = 0
    """Requests answered before, which cost nothing."""
    prompt_tokens: int = 0
    """Tokens to send: about one per 4 bytes."""
    completion_tokens: int = 0
    """Tokens to get back, at most."""

    def describe(self) -> str:
        """One sentence."""
        return (
            f"{self.requests:,} requests: about {self.prompt_tokens:,} tokens to send and at most "
            f"{self.completion_tokens:,} to get back; {self.answered:,} were answered before."
        )


@final
class HttpAsker:
    """Asks over HTTP and keeps what was answered.

    Args:
        endpoint: Which model.
        kept: Where replies are kept.
    """

    def __init__(self, endpoint: Endpoint, kept: Explanations) -> None:
        self.endpoint, self.kept = endpoint, kept

    def ask(self, messages: Messages, max_tokens: int) -> str:
        """The answer, from the file if it was given before.

        Raises:
            ModelError: The service cannot be reached, refuses, or answers something else.
        """
        request = self.endpoint.request(messages, max_tokens)
        key = request_key(self.endpoint, request)
        if (known := self.kept.reply(key)) is not None:
            return known
        answer = self._sent(json.dumps(request).encode())
        try:
            text = answer["choices"][0]["message"]["content"]
            used = answer.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError("the content is not text")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{self.endpoint.completions} did not answer as a chat completion ({error}). Is "
                "this the address of an OpenAI-compatible service?"
            ) from None
        counts = (int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0))
        self.kept.keep_reply(key, text, counts)
        return text

    def _sent(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.endpoint.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        wait, reason = 1.0, ""
        for attempt in range(self.endpoint.retries + 1):
            request = urllib.request.Request(self.endpoint.completions, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.endpoint.timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                asked = error.headers.get("Retry-After", "")
                wait = float(asked) if asked.replace(".", "", 1).isdigit() else wait
                error.close()
                if error.code not in _PASSING:
                    break
            except (OSError, TimeoutError) as error:
                reason = str(getattr(error, "reason", error))
            except ValueError as error:
                raise ModelError(
                    f"{self.endpoint.completions} answered something that is not JSON: {error}."
                ) from None
            if attempt < self.endpoint.retries:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise ModelError(
            f"{self.endpoint.completions} does not answer ({reason}). Replies so far are kept: run "
            f"the same again to go on. The key is read from {self.endpoint.key_variable}."
        )


@final
@dataclass(kw_only=True)
class CountingAsker:
    """Sends nothing: counts what would be sent, and answers with a text of the longest kind."""

    endpoint: Endpoint
    """Which model would be asked."""
    kept: Explanations
    """Replies given before."""
    cost: Cost = field(default_factory=Cost)
    """The count so far."""

    def ask(self, messages: Messages, max_tokens: int) -> str:
        """The answer given before, or a stand-in."""
        request = self.endpoint.request(messages, max_tokens)
        known = self.kept.reply(request_key(self.endpoint, request))
        if known is not None:
            self.cost.answered += 1
            return known
        self.cost.requests += 1
        self.cost.prompt_tokens += estimated_tokens([one["content"] for one in messages])
        self.cost.completion_tokens += max_tokens
        return "x" * (max_tokens * BYTES_PER_TOKEN)


def estimated_tokens(texts: Sequence[str]) -> int:
    """About how many tokens texts have.

    >>> estimated_tokens(["abcdefgh", "ab"])
    3
    """
    return sum(-(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN) for text in texts)


def request_key(endpoint: Endpoint, request: dict[str, Any]) -> str:
    """A hash of what is asked of whom."""
    text = json.dumps([endpoint.url, request], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
