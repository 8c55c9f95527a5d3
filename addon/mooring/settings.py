# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What is set under [mooring] in odoo.conf."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Every setting, with its default."""

    #: The sidecar's --cache-socket; empty: nothing is shared.
    cache_socket: str = '/run/mooring/cache.sock'
    #: How long an answer may take, in milliseconds.
    timeout_ms: float = 10
    #: How long to wait for somebody else who computes a value, in milliseconds.
    wait_ms: float = 1000
    #: Values that took less to compute are not shared, in milliseconds.
    threshold_ms: float = 2
    #: What the code is called; empty: a digest of it is made at the start. The same code, the same name.
    code_version: str = ''
    #: Further methods, as module:Class.method, separated by commas.
    methods: str = ''

    @classmethod
    def read(cls, given):
        """Takes settings from a mapping of strings.

        :raise ValueError: if one is unknown or wrong
        """
        known = {field.name: field.type for field in fields(cls)}
        taken = {}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f'[mooring] {name}: there is no such setting')
            try:
                taken[name] = known[name](value or '')
            except ValueError as problem:
                raise ValueError(f'[mooring] {name}: expected a number') from problem
        return cls(**taken)

    def more_methods(self):
        return frozenset(name.strip() for name in self.methods.split(',') if name.strip())
