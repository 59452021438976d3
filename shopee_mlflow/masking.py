"""Mask passwords in texts that are printed, logged or stored."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"
_SEPARATOR = r"(?::|%3A)(?:/|%2F){1,3}"
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
# An address without its scheme. Digests and addresses of mail programs are none.
_NO_SCHEME = re.compile(
    r"(?<![\w./:@%+~\\-])(?P<user>(?://)?(?!(?:mailto|sips?|xmpp|models|runs):)[a-z0-9_][\w.%+-]{0,100}:)"
    r"(?![/\s])[^\s'\"<>,;]{1,200}(?=@(?!sha256:)[\w\[])",
    re.I,
)
# Header lines, environment variables, lines of YAML and options, none of which are prose.
_LINE = re.compile(
    r"(?P<name>(?<![\w-])--?[\w-]+(?=\s)|^[ \t]*(?:- )?\w{1,60}(?=[ \t]?:)"
    r"|(?<!\w)\w{1,60}[_-][\w-]{1,60}(?=:))(?P<between>[ \t]?:?[ \t]+)"
    r"(?P<value>[^\s'\"-][^\s'\"]*)",
    re.M,
)
# Tokens that are known by their form: Hugging Face, GitHub, GitLab, Databricks, JSON Web Tokens,
# npm, Slack, Google, OpenAI.
_TOKEN = re.compile(
    r"\b(?:(?:hf_|gh[pousr]_|github_pat_|dapi(?=[0-9a-f]{30})|eyJ[\w-]{10,}\.|AIza)[\w.-]{20,}"
    # Products have names that begin like these: such a token has a digit, or a capital as well.
    r"|npm_[A-Za-z0-9]{36}\b|(?:glpat-|xox[abeprs]-(?=\S*\d)|sk-(?=\S*\d)(?=\S*[A-Z]))[\w-]{16,})"
)
_PRIVATE_KEY = re.compile(
    r"(?P<start>-----BEGIN (?:\w+ )*PRIVATE KEY-----).*?(?P<end>-----END|\Z)", re.S
)
# Command lines of other programs, whose options for passwords have one letter.
_COMMAND = re.compile(
    r"(?P<start>\b(?:(?:mysql\w*|mariadb)\b[^\n|;]{0,300}?\s-p"
    r"|sshpass\b[^\n|;]{0,300}?\s-p ?|redis-cli\b[^\n|;]{0,300}?\s-a "
    r"|(?:curl|wget)\b[^\n|;]{0,300}?\s(?:-u ?|-U ?|--(?:proxy-)?user[ =])[^\s:'\"]{1,100}:))"
    r"(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"]+)"
)
_QUOTED_PAIR = re.compile(
    r"(?P<start>\b(?:curl|wget)\b[^\n|;]{0,300}?\s(?:-u ?|-U ?|--(?:proxy-)?user[ =])"
    r"(?P<quote>['\"])[^\s:'\"]{1,100}:)(?P<value>(?:(?!(?P=quote)).)+)"
)
# Tuples of requests and httpx: auth=("ann", "password").
_PAIR = re.compile(
    r"(?P<start>auth['\"]?\s?[=:]\s?[\[(]\s?['\"][^'\"\n]*['\"],\s?)(?P<value>'[^'\n]*'|\"[^\"\n]*\")",
    re.I,
)
# An address in the query of another one, percent-encoded.
_ENCODED_URL = re.compile(
    r"(%3A(?:%2F){1,3}(?:(?!%3A|%2F|%40)[^\s&'\"])*%3A)(?:(?!%40)[^\s&'\"])+(?=%40)", re.I
)
# ODBC's connection string in a query, percent-encoded.
_ENCODED_FIELD = re.compile(r"((?:pwd|password)%3D)(?:(?!%3B)[^\s&'\"])+", re.I)
# A colon without quotes is prose: "wrong password: access denied".
_FIELD = re.compile(
    r"(?<![\w.%-])(?P<name>[\w.%-]+)(?P<equals>['\"]\]?\s?(?:=>?|:)\s?|\s?=>?\s?)"
    r"(?P<prefix>(?:[bru]{1,2}(?=['\"]))?)(?P<value>"
    r"'(?:\\.|[^'\\])*'|'[^']*'|\"(?:\\.|[^\"\\])*\"|\"[^\"]*\"|[^\s&;,'\")}\]]+)"
)
_SECRET = re.compile(
    r"pass(word|wd|phrase|$)|pwd$|(^|[\W_])ps?w$|token$|secret|credential|signature|(^|\W)sig$"
    r"|(api|access|account|private)[_-]?key$",
    re.I,
)
_HEADER = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token|apikey)\s+)?|\bbearer\s+)"
    r"(?:digest\s[^\n]*|[^\s'\",]+)",
    re.I,
)
_COOKIES = re.compile(r"(cookie['\"]?\s*:\s*['\"]?)[^\s'\"][^\n'\"]*", re.I)


def mask_passwords(text: str) -> str:
    """Replace passwords and tokens in a text by ``***``.

    Found are ``scheme://user:password@host``, also percent-encoded and with ``@``, ``:`` or ``/``
    in the password, or without a scheme; a user name alone in an HTTP address, which is usually a
    token; fields such as ``password=...`` and ``token=...`` in queries and connection strings;
    quoted fields of mappings; ``auth`` pairs; lines such as ``password: ...``; options such as
    ``--password ...``, and one-letter options of ``mysql``, ``sshpass``, ``redis-cli`` and
    ``curl``; private keys; tokens that are known by their form; and the headers ``Authorization``
    and ``Cookie``. Rather too much is masked than too little.
    """
    text = _PRIVATE_KEY.sub(rf"\g<start>{MASK}\g<end>", text)
    for quoted in (_QUOTED_PAIR, _COMMAND, _PAIR):
        text = quoted.sub(lambda found: found["start"] + _masked(found["value"]), text)
    text = _ODD_PASSWORD.sub(rf"\g<start>{MASK}", text)
    text = _FIELD.sub(_mask_field, _URL.sub(_mask_url, text))
    text = _NO_SCHEME.sub(rf"\g<user>{MASK}", text)
    text = _TOKEN.sub(MASK, _LINE.sub(_mask_line, text))
    text = _ENCODED_URL.sub(rf"\g<1>{MASK}", text)
    text = _ENCODED_FIELD.sub(rf"\g<1>{MASK}", text)
    return _COOKIES.sub(rf"\g<1>{MASK}", _HEADER.sub(rf"\g<1>{MASK}", text))


def _mask_url(url: re.Match[str]) -> str:
    head, rest = url.group()[: url.start("rest") - url.start()], url.group("rest")
    if found := _USER_INFO.match(rest):
        colon = ":" if found.group("password").startswith(":") else "%3A"
        return f"{head}{found.group('user')}{colon}{MASK}{rest[found.end() :]}"
    if "http" in url.group("scheme").lower() and (alone := _USER_ALONE.match(rest)):
        return f"{head}{MASK}{rest[alone.end() :]}"
    return url.group()


def _mask_field(field: re.Match[str]) -> str:
    name, equals, prefix, value = field.group("name", "equals", "prefix", "value")
    if not _SECRET.search(unquote(name)):
        return field.group()
    return f"{name}{equals}{prefix}{_masked(value)}"


def _masked(value: str) -> str:
    quote = value[0] if value[0] in "'\"" else ""
    return f"{quote}{MASK}{quote}"


def _mask_line(line: re.Match[str]) -> str:
    name, between, value = line.group("name", "between", "value")
    if not _SECRET.search(name):
        return line.group()
    # Prose may follow the name: "password: access denied".
    rest = line.string[line.end() :].split("\n", 1)[0].strip()
    if rest and not name.startswith("-") and not re.search("[_-]", name):
        return line.group()
    return f"{name}{between}{MASK}" if value != MASK else line.group()
