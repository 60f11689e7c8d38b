"""The secret that requests must carry."""

from __future__ import annotations

import hmac

from convatlas.errors import InputError
from convatlas.inference.serve.pages import accepts_page


def read_token(token: str | None, where: str = "token") -> str | None:
    """Return a token without the line break at its end, which files and `echo` add; None for no token.

    Raises InputError, which does not contain the token, if no client could send it.
    """
    if token is None:
        return None
    token = token.rstrip("\r\n")
    if not token:
        raise InputError(f"{where}: must not be empty; leave it out to serve without a token")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{where}: must consist of printable ASCII characters without spaces, as headers of HTTP do")
    return token


def has_token(authorization: bytes, token: str) -> bool:
    """Return whether a header is `Bearer` with the token; upper and lower case of the scheme are the same."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


def is_public(path: str, accept: str) -> bool:
    """Return whether a request needs no token: /health, and the pages for browsers, which contain nothing of a model.

    accept: the header of that name.
    """
    return path in ("/health", "/docs") or (path == "/" and accepts_page(accept))
