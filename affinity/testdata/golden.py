#!/usr/bin/env python3
"""Writes golden.json: what keys and rankings must be, from an implementation of its own.

    pip install blake3 && python3 golden.py > golden.json

It shares nothing with the Rust code but the definitions, so an error in either shows.
"""
import ipaddress
import json
import math
import random

from blake3 import blake3

MASK = (1 << 64) - 1


def sid_key(sid: bytes) -> str:
    return blake3(sid[:42] if len(sid) >= 84 else sid).digest()[:16].hex()


def address_key(text: str, prefix: int) -> str:
    address = ipaddress.ip_address(text)
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.version == 6:
        raw = (int(address) >> (128 - prefix) << (128 - prefix)).to_bytes(16, "big")
    else:
        raw = address.packed + bytes(12)
    return blake3(b"\0" + raw).digest()[:16].hex()


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def ranking(key: str, nodes: list) -> list:
    high, low = int(key[:16], 16), int(key[16:], 16)

    def score(node):
        seed = int.from_bytes(blake3(node["id"].encode()).digest()[:8], "big")
        uniform = ((mix(mix(high ^ seed) ^ low) >> 11) + 0.5) / (1 << 53)
        return node["weight"] / -math.log(uniform)

    return [node["id"] for node in sorted(nodes, key=lambda node: (-score(node), node["id"]))]


def main():
    rng = random.Random(19)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
    sids = [
        b"x", b"-" * 84, b"\xff\xfe", b"0" * 40, b"a" * 83, b"a" * 84, b"a" * 86, b"a" * 4096,
        *("".join(rng.choices("0123456789abcdef", k=40)).encode() for _ in range(6)),
        *("".join(rng.choices(letters, k=84)).encode() for _ in range(12)),
    ]
    addresses = [
        ("192.0.2.7", 64), ("::ffff:192.0.2.7", 64), ("2001:db8:1:2::1", 64), ("2001:db8:1:2:3::9", 64),
        ("2001:db8:1:2::1", 128), ("2001:db8:1:2::1", 48), ("2001:db8:1:2::1", 0), ("::1", 61),
    ]
    clusters = [
        [{"id": "odoo-1", "weight": 1}],
        [{"id": f"odoo-{n}", "weight": 1} for n in range(1, 4)],
        [{"id": "big", "weight": 4}, {"id": "middle", "weight": 2}, {"id": "small", "weight": 1}],
        [{"id": f"node.{n:02}", "weight": 1 + n % 5} for n in range(20)],
    ]
    keys = [sid_key(sid) for sid in sids]
    print(json.dumps({
        "session_keys": [{"sid_hex": sid.hex(), "key": key} for sid, key in zip(sids, keys)],
        "address_keys": [
            {"address": text, "ipv6_prefix": prefix, "key": address_key(text, prefix)}
            for text, prefix in addresses
        ],
        "rankings": [
            {"key": key, "nodes": nodes, "ranking": ranking(key, nodes)}
            for nodes in clusters for key in keys[-12:]
        ],
    }, indent=1))


if __name__ == "__main__":
    main()
