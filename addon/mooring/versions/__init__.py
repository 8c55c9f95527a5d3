# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What differs between the versions of Odoo."""

from .v16 import Odoo16
from .v17 import Odoo17
from .v18 import Odoo18
from .v19 import Odoo19

VERSIONS = {16: Odoo16, 17: Odoo17, 18: Odoo18, 19: Odoo19}
