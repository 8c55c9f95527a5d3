//! Against a real Odoo.
