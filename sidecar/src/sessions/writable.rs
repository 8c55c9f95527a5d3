//! Whether sessions can be written to a directory: by this process at all, and right now.

use std::{
    io::{ErrorKind, Result, Write},
    os::fd::OwnedFd,
};

use rustix::fs::{AtFlags, unlinkat};

use super::disk::temporary_name;
use crate::files::{self, Root};

/// What a session takes on most disks.
const ONE_SESSION: usize = 4096;

/// Whether the sessions of a directory can be carried by this process: it must write files that Odoo can read.
///
/// # Errors
/// If not, or the directory is not there.
pub(crate) fn check(directory: &Root) -> Result<()> {
    write(&directory.open()?, &[])
}

/// Whether Odoo can write a session there now.
///
/// # Errors
/// If not: the disk is full, or broken. A directory that is not there yet is fine; one that this process must
/// leave alone says nothing of Odoo.
pub(crate) fn has_room(directory: &Root) -> Result<()> {
    match directory.open() {
        Ok(root) => write(&root, &[0; ONE_SESSION]),
        Err(error) if error.kind() == ErrorKind::NotFound || files::is_refused(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes a file and removes it.
fn write(root: &OwnedFd, content: &[u8]) -> Result<()> {
    let name = temporary_name();
    let written = files::create(root, &name)?.write_all(content);
    unlinkat(root, &name, AtFlags::empty())?;
    written
}
