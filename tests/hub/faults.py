"""Answers of the loopback hub, and what goes wrong with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

STALL_SECONDS = 30
TRICKLE_SECONDS = 0.2


class Reply(NamedTuple):
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def with_headers(reply: Reply, headers: dict[str, str]) -> Reply:
    """The answer with more headers."""
    return reply._replace(headers=reply.headers | headers)


def refusal(words: Mapping[int, str], fault: str | None) -> Reply | None:
    """The answer to a request that is not carried out: `not STATUS [SECONDS]`."""
    if fault is None or not fault.startswith("not "):
        return None
    status, seconds = [*fault.split()[1:], "0"][:2]
    return Reply(int(status), {"X-Error-Message": words.get(int(status), "busy"), "Retry-After": seconds}, b"{}")


def faulty(fault: str, reply: Reply) -> Reply:
    """An answer to a request that was carried out, as a fault changes it."""
    if fault.isdecimal():
        return Reply(int(fault), {"Retry-After": "0"}, b"busy")
    if fault == "flip" and reply.body:
        body = bytearray(reply.body)
        body[len(body) // 2] ^= 1
        return reply._replace(body=bytes(body))
    if fault == "html":
        return reply._replace(body=b"<!doctype html><title>Just a moment</title>")
    if fault == "json":
        return reply._replace(body=b'[null, {"sha": 5}]')
    if fault == "commit":
        return with_headers(reply, {"X-Repo-Commit": "f" * 40})
    if fault == "range":
        return with_headers(reply, {"Content-Range": "bytes 0-6/7"})
    return reply


def send_body(put: Callable[[bytes], int], body: bytes, fault: str | None) -> int:
    """Send a body, or what a fault leaves of it; a trickle is never silent and never done."""
    if fault not in ("cut", "stall", "length", "trickle"):
        return put(body)
    sent = put(body[: len(body) // 2])
    while fault == "trickle" and sent < len(body) and put(body[sent : sent + 1]):
        sent += 1
        time.sleep(TRICKLE_SECONDS)
    if fault == "stall":
        time.sleep(STALL_SECONDS)
    return sent
