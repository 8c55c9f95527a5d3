# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo 19: keys begin with the model's name and the method, and changes are kept by the transaction."""

import configparser

from .v18 import Odoo18


class Odoo19(Odoo18):

    @staticmethod
    def settings(config):
        # It leaves out all sections but its own.
        file = configparser.RawConfigParser()
        file.read(config['config'])
        return dict(file['mooring']) if file.has_section('mooring') else {}

    def arguments(self, cache, args, kwargs):
        return cache.key(*args, **kwargs)[2:]

    def unwritten(self, model):
        transaction = model.env.transaction
        return transaction.field_dirty or transaction.tocompute
