//! Whether sessions can be written to a directory: by this process at all, and right now.

use std::{
    io::{Error, ErrorKind, Result, Write},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, fstat, unlinkat},
    process::geteuid,
};

use super::disk::{Disk, temporary_name};
use crate::files;

/// What a session takes on most disks.
const ONE_SESSION: usize = 4096;

/// Whether the sessions of a directory can be carried by this process: it must write files that Odoo can read.
///
/// # Errors
/// If not, or the directory is not there.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let root = Disk::new(directory.to_owned()).open()?;
    let owner = fstat(&root)?.st_uid;
    if !geteuid().is_root() && geteuid().as_raw() != owner {
        let problem =
            format!("it belongs to user {owner}: run the sidecar as that user, who is Odoo's, or as root");
        return Err(Error::new(ErrorKind::PermissionDenied, problem));
    }
    write(&root, &[])
}

/// Whether Odoo can write a session there now.
///
/// # Errors
/// If not: the disk is full, or broken. A directory that is not there yet is fine.
pub(crate) fn has_room(directory: &Path) -> Result<()> {
    match Disk::new(directory.to_owned()).open() {
        Ok(root) => write(&root, &[0; ONE_SESSION]),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
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
