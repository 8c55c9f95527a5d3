# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
