# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 18: a request reads the sequences with the cursor that it goes on with."""

from .v17 import Odoo17


class Odoo18(Odoo17):
    pass
