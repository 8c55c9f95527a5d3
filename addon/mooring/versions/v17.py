# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 17: a cache is an attribute of the method that is decorated with it."""

from .common import NamedCaches


class Odoo17(NamedCaches):
    def cache_of(self, method):
        return getattr(method, 'cache', None)
