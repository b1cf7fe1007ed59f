"""Addresses of served models, "MODEL@http://host:port/v1", and the keys of their hosts, which no other host receives."""

import ipaddress
import json
import os
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from plo.errors import PloError

PROVIDER = "https://api.openai.com/v1"
NO_SECRET = 6  # characters: shorter keys ("none", "EMPTY") are not secret, and may occur in ordinary answers
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
_LIKE_ADDRESS = re.compile(r"\w*://|[\w.-]+:\d{2,5}(/|$)|\[[\da-fA-F:]+\]")
_AS_NAME = {".": "_", "-": "__", "_": "___", ":": "____"}  # so that no two hosts share a variable


class EndpointError(PloError, ValueError):
    """An address cannot be used. The message names it, the fault and the remedy."""


@dataclass(frozen=True)
class Endpoint:
    """A served model.

    Attributes:
        model: name of the model on the server.
        url: base address of the server's OpenAI-compatible interface.
        key_name: environment variable with the host's key: OPENAI_API_KEY for the default provider, else PLO_KEY_<HOST>.
        key: value of that variable; None if it is not set.
    """

    model: str
    url: str
    key_name: str
    key: str | None = field(repr=False)

    @property
    def is_provider(self) -> bool:
        """True if this is the default provider."""
        return self.key_name == "OPENAI_API_KEY"

    def redacted(self, text: str) -> str:
        """Return `text` with the key, which a server may echo, replaced by the name of its variable."""
        if self.key is None or len(self.key) < NO_SECRET:
            return text
        for written in (self.key, json.dumps(self.key)[1:-1]):
            text = text.replace(written, f"[{self.key_name}]")
        return text


def read_endpoint(spec: str, kind: str, default: str | None = None) -> Endpoint:
    """Return the endpoint of `spec`, which is "MODEL@ADDRESS", or "MODEL" if there is a `default` address.

    An address without a scheme is http if its host is this machine or in a private network. For other hosts the scheme is
    required, since it decides whether the key is sent unencrypted.

    Args:
        kind: text before the colon, for messages: "openai" or "server".

    Raises:
        EndpointError: no model is named, or the address is missing or malformed.
    """
    written, example = f"{kind}:{spec}", f"{kind}:MODEL@http://HOST:PORT/v1"
    if full := re.fullmatch(r"(.*?)@(\w*://.*)", spec, re.DOTALL):
        model, address = full.groups()
    else:
        model, at, address = spec.rpartition("@")
        if not at:
            model, address = spec, default
    if "@" not in spec and _LIKE_ADDRESS.match(spec):  # else the default provider would receive the texts and the key
        raise EndpointError(f"{written!r} has an address in place of the model's name: write {example}.")
    if not model:
        raise EndpointError(f"{written!r} names no model: write {example}.")
    if address is None:
        raise EndpointError(f"{written!r} names no server: write {example}.")
    try:
        url, parts = _checked(address)
    except ValueError as error:
        raise EndpointError(
            f"The address {address!r} of {written!r} cannot be used: {error}. Write {example}."
        ) from None
    name = _key_name(parts)
    return Endpoint(model, url, name, os.environ.get(name) or None)


def _checked(address: str) -> tuple[str, SplitResult]:
    """Return the address with its scheme, and its parts; raise a ValueError that says what is wrong with it."""
    if re.search(r"\s", address):
        raise ValueError("it has white space in it")
    bare = "://" not in address
    parts = urlsplit(f"http://{address}" if bare else address)
    host, port = parts.hostname or "", parts.port  # a port that is not a number is a ValueError
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme}:// is neither http:// nor https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a key is not part of an address but belongs in the environment")
    if parts.netloc.endswith(":"):
        raise ValueError("no port follows its colon")
    if parts.query or parts.fragment or "//" in parts.path or set("()") & set(parts.path):
        raise ValueError("only a path may follow the port, /v1 on most servers")
    if not _is_address(host) and (not _HOST.fullmatch(host) or host.replace(".", "").isdigit()):
        raise ValueError(f"{host!r} is not a host" if host else "it names no host")
    if bare:
        if not _is_local(host):
            raise ValueError(f"say whether {host} speaks https:// or http://")
        if host != "localhost" and port is None and not parts.path:
            raise ValueError("a host without port and path looks like a part of the model's name")
    return f"http://{address}" if bare else address, parts


def _key_name(parts: SplitResult) -> str:
    if parts.scheme == "https" and parts.hostname == urlsplit(PROVIDER).hostname and parts.port in (None, 443):
        return "OPENAI_API_KEY"
    host = (parts.hostname or "").rstrip(".")
    return "PLO_KEY_" + "".join(_AS_NAME.get(letter, letter) for letter in host).upper()


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _is_local(host: str) -> bool:
    """Return whether the host is this machine or in a private network."""
    if _is_address(host):
        return ipaddress.ip_address(host).is_private
    return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))
