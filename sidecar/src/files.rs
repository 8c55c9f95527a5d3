//! Plain files in folders that are not trusted: links are not followed, what is no plain file is not opened for
//! long, and what is too large is left alone.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod,
        fchown, fstat, futimens, mkdirat, openat, statat,
    },
    io::Errno,
    process::geteuid,
};

/// The largest file that is read. Sessions and what lies beside them have under 1 KB.
pub(crate) const LARGEST: u64 = 256 << 10;

/// A file that was read.
pub(crate) struct Plain {
    pub(crate) stat: Stat,
    pub(crate) content: Vec<u8>,
}

impl Plain {
    /// When it was modified, in nanoseconds since 1970.
    pub(crate) fn modified_ns(&self) -> i64 {
        self.stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(self.stat.st_mtime_nsec as i64)
    }
}

/// Opens a directory by its path, which is trusted.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a folder in a folder, if it is there.
///
/// # Errors
/// If it cannot be opened, or is something else.
pub(crate) fn open_folder(folder: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a folder in a folder; makes it, for `owner`, if it is not there.
///
/// # Errors
/// If it cannot be made or opened.
pub(crate) fn make_folder(folder: &OwnedFd, name: &str, owner: &Stat) -> io::Result<OwnedFd> {
    let made = mkdirat(folder, name, Mode::from_raw_mode(0o755));
    let opened = open_folder(folder, name)?.ok_or(io::ErrorKind::NotFound)?;
    match made {
        Ok(()) => give(&opened, owner)?,
        // Somebody may have been quicker.
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(opened)
}

/// Whether a file is one that is read.
pub(crate) fn is_carried(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size).is_ok_and(|size| size <= LARGEST)
}

/// Reads a file, if it is there and a plain one that is not too large.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read(folder: &OwnedFd, name: &str) -> io::Result<Option<Plain>> {
    // A device is not even opened: that alone may do something.
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_carried(&stat) => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Without NONBLOCK a pipe would hold up whoever opens it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&file)?;
    if !is_carried(&stat) {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(LARGEST).read_to_end(&mut content)?;
    Ok(Some(Plain { stat, content }))
}

/// Makes a file that nobody else can read yet.
///
/// # Errors
/// If it cannot be made, or is there.
pub(crate) fn create(folder: &OwnedFd, name: &str) -> io::Result<fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a new file its content, owner, mode and time.
///
/// # Errors
/// If one of them cannot be set.
pub(crate) fn fill(
    mut file: fs::File,
    content: &[u8],
    owner: &Stat,
    mode: Mode,
    modified_ns: i64,
) -> io::Result<()> {
    file.write_all(content)?;
    give(&file, owner)?;
    fchmod(&file, mode)?;
    let last_modification = Timespec {
        tv_sec: modified_ns.div_euclid(1_000_000_000),
        tv_nsec: modified_ns.rem_euclid(1_000_000_000),
    };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Ok(futimens(&file, &Timestamps { last_access, last_modification })?)
}

/// Gives a file to whom the directory belongs, if this process may.
fn give(file: impl AsFd, owner: &Stat) -> io::Result<()> {
    if geteuid().is_root() {
        fchown(file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
    }
    Ok(())
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
