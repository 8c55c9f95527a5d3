# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 16: one cache, one sequence."""

from .common import Version

CACHE = 'default'


class Odoo16(Version):
    def __init__(self, registry_module=None, **kwargs):
        super().__init__(**kwargs)

    def sequences(self, registry):
        return registry.registry_sequence, registry.cache_sequence

    def clearing(self, sequences, cache_name):
        return sequences if cache_name == CACHE else None

    def cache_of(self, method):
        return getattr(getattr(method, 'clear_cache', None), '__self__', None)

    def cache_name(self, cache):
        return CACHE

    def hook(self, registry_class):
        check_signaling = registry_class.check_signaling

        def checking(registry, *args, **kwargs):
            checked = check_signaling(registry, *args, **kwargs)
            # It reads them with a cursor of its own, before the request has one.
            self.note(checked, self.sequences(checked))
            return checked

        registry_class.check_signaling = checking
