"""Mask passwords in texts that are printed, logged or stored."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"
_SEPARATOR = r"(?::|%3A)(?:/|%2F){2}"
_URL = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]{{0,40}}){_SEPARATOR}(?P<rest>[^\s'\"<>]*)", re.I)
# Everything up to the last @: a password may hold any character, whatever the standard says.
_USER_INFO = re.compile(
    r"(?P<user>(?:(?!:|%3A|@|%40|/).)*)(?P<password>(?::|%3A).*)(?=@|%40)", re.I
)
_USER_ALONE = re.compile(r"[^/?#@]+(?=@)")
# Spaces, quotes and angle brackets end an address in prose, but not inside a password. What follows
# the colon is no port.
_ODD_PASSWORD = re.compile(
    r"(?P<start>[a-z][a-z0-9+.-]{0,40}://[^\s:/@?#'\"<>\[]{0,200}:)(?!\s|\d+(?:\W|$))[^\s@]{0,200}[\s'\"<>][^\n@]{0,200}(?=@)",
    re.I,
)
# ODBC's connection string in a query, percent-encoded.
_ENCODED_FIELD = re.compile(r"((?:pwd|password)%3D)(?:(?!%3B)[^\s&'\"])+", re.I)
# A colon without quotes is prose: "wrong password: access denied".
_FIELD = re.compile(
    r"(?<![\w.%-])(?P<name>[\w.%-]+)(?P<equals>['\"]\s?[=:]\s?|\s?=\s?)"
    r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s&;,'\")}\]]+)"
)
_SECRET = re.compile(
    r"pass(word|wd|phrase|$)|pwd$|token$|secret|credential|signature|(^|\W)sig$"
    r"|(api|access|account|private)[_-]?key$",
    re.I,
)
_HEADER = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)[^\s'\",]+", re.I
)


def mask_passwords(text: str) -> str:
    """Replace passwords and tokens in a text by ``***``.

    Found are ``scheme://user:password@host``, also percent-encoded and with ``@``, ``:`` or ``/``
    in the password; a user name alone in an HTTP address, which is usually a token; fields such
    as ``password=...`` and ``token=...`` in queries and connection strings; quoted fields of
    mappings; and the header ``Authorization``. Rather too much is masked than too little.
    """
    text = _ODD_PASSWORD.sub(rf"\g<start>{MASK}", text)
    text = _FIELD.sub(_mask_field, _URL.sub(_mask_url, text))
    text = _ENCODED_FIELD.sub(rf"\g<1>{MASK}", text)
    return _HEADER.sub(rf"\g<1>{MASK}", text)


def _mask_url(url: re.Match[str]) -> str:
    head, rest = url.group()[: url.start("rest") - url.start()], url.group("rest")
    if found := _USER_INFO.match(rest):
        colon = ":" if found.group("password").startswith(":") else "%3A"
        return f"{head}{found.group('user')}{colon}{MASK}{rest[found.end() :]}"
    if "http" in url.group("scheme").lower() and (alone := _USER_ALONE.match(rest)):
        return f"{head}{MASK}{rest[alone.end() :]}"
    return url.group()


def _mask_field(field: re.Match[str]) -> str:
    name, equals, value = field.group("name", "equals", "value")
    if not _SECRET.search(unquote(name)):
        return field.group()
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{equals}{quote}{MASK}{quote}"
