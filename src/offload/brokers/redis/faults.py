"""What error replies mean: which pass, and for which a person must act."""

from __future__ import annotations

import re

from offload.brokers.redis.address import Address
from offload.errors import BrokerError, BrokerUnusable


class Refusal(Exception):
    """An error reply of the server. `code` is its first word, or the word inside that tells more, such as OOM or NOSCRIPT."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        word = text.partition(" ")[0]
        inner = _INNER.search(text) if word == "ERR" else None  # Redis 6.2 wraps what a script's command was refused for
        self.code: str = inner[0] if inner else word


_INNER = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|LOADING|BUSY|NOPERM|WRONGTYPE|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b")

MOVED = frozenset({"MOVED", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "UNBLOCKED"})
"""The codes after which the primary is looked for again: it may be another server now."""

PASSING = {
    "LOADING": "the server is starting and still loads its data",
    "MASTERDOWN": "the server is a replica that has lost its primary",
    "CLUSTERDOWN": "the cluster does not serve this part of its keys now; a failover may be under way",
    "MOVED": "the cluster has moved these keys to another node",
    "ASK": "the cluster is moving these keys to another node; they are served again when that is done",
    "TRYAGAIN": "the cluster is moving these keys to another node; they are served again when that is done",
    "UNBLOCKED": "the server has changed its role while it was waited for",
    "READONLY": "the server has become a replica, which takes no writes; a failover may be under way",
    "BUSY": "the server is busy with a script that takes too long",
    "OOM": "the server is out of memory: raise maxmemory, or remove what else lies there",
    "MISCONF": "the server cannot save to its disk and takes no writes until it can: see its log, and whether the disk is full",
    "NOREPLICAS": "the server has too few good replicas and takes no writes (min-replicas-to-write)",
}
"""What a code says that may pass by itself, or is a trouble of the server which others will see to."""

LASTING = {
    "WRONGPASS": "user name or password are wrong",
    "NOAUTH": "the server asks for a password; write it into the URL: redis://:password@host, or redis://user:password@host",
    "NOPERM": "this user may not do what Offload needs; allow it: ACL SETUSER <user> ~{key}* +@all -@dangerous +info +client|unblock",
    "WRONGTYPE": "a key under this prefix holds something that is not Offload's; keep jobs under another ?prefix=, or remove the key",
    "DENIED": "the server is in protected mode, which lets no other machine in",
}
"""What a code says that stays until a person acts."""

TEXTS = (
    (re.compile("without any password configured|no password is set"), "the URL has a password, but the server asks for none"),
    (re.compile("invalid password"), "the password is wrong"),
    (re.compile("DB index is out of range|invalid DB index"), "the server has no database of that number"),
    (re.compile("SELECT is not allowed in cluster mode"), "the server belongs to a cluster; use redis+cluster://"),
    (re.compile("This instance has cluster support disabled"), "the server belongs to no cluster; use redis://"),
    (re.compile("can't run this command|user executing the script"), LASTING["NOPERM"]),
    (re.compile("^ERR unknown command .?SENTINEL"), "this is no sentinel; use redis://"),
    (
        re.compile("^ERR unknown command"),
        "the server does not know a command that Offload needs: it is too old, or has it renamed",
    ),
    (re.compile("No such master with that name"), "the sentinels know no primary of that name"),
)
"""What error replies without a code of their own say; lasting as well."""


def fault(address: Address, refusal: Refusal) -> BrokerError:
    """The error to raise for an error reply of the server at `address`; the reply belongs to it as its cause."""
    if refusal.code in PASSING:
        return BrokerError(f"{address}: {PASSING[refusal.code]} ({refusal.text})")
    lasting = LASTING.get(refusal.code) or next((meaning for pattern, meaning in TEXTS if pattern.search(refusal.text)), None)
    if lasting is not None:
        return BrokerUnusable(f"{address}: {lasting.replace('{key}', address.key)} ({refusal.text})")
    return BrokerError(f"{address}: the server answered: {refusal.text}")
