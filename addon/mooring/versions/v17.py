# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 17."""

from .common import NamedCaches


class Odoo17(NamedCaches):
    def __init__(self, registry_module, **kwargs):
        super().__init__(registry_module._CACHES_BY_KEY, **kwargs)
