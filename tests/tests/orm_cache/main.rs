//! The ORM cache: its socket under good and bad clients, sidecars that share, and the Odoo module.

mod hostile;
mod module;
mod real;
mod sharing;
