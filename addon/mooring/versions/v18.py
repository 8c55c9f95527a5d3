# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 18: a request reads the sequences with the cursor that it goes on with."""

from .common import NamedCaches


class Odoo18(NamedCaches):
    pass
