//! Plain files in folders that are not trusted: links are not followed, what is no plain file is not opened for
//! long, and what is too large or somebody else's is left alone.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat, futimens,
        mkdirat, openat, statat,
    },
    io::Errno,
};

mod root;

pub(crate) use root::{Root, check_way, is_refused};

/// The largest file that is read. Sessions and what lies beside them have under 1 KB.
pub(crate) const LARGEST: u64 = 256 << 10;

/// A file that was read.
#[derive(Debug)]
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

/// What is under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    Absent,
    /// Something that is not carried. Nobody knows what it says, so it ends nothing, and nothing takes its place.
    LeftAlone(Reason),
    There(T),
}

impl<T> Found<T> {
    pub(crate) fn and_then<U>(self, next: impl FnOnce(T) -> io::Result<Found<U>>) -> io::Result<Found<U>> {
        match self {
            Self::Absent => Ok(Found::Absent),
            Self::LeftAlone(reason) => Ok(Found::LeftAlone(reason)),
            Self::There(found) => next(found),
        }
    }

    /// What is there, if it is carried.
    pub(crate) fn carried(self) -> Option<T> {
        match self {
            Self::There(found) => Some(found),
            Self::Absent | Self::LeftAlone(_) => None,
        }
    }
}

/// Why something is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    TooLarge,
    /// A link, a pipe, a folder in the place of a file, or the like.
    OtherKind,
    Foreign,
    /// It may be somebody else's file under a second name.
    SeveralNames,
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "larger than {} KB", LARGEST >> 10),
            Self::OtherKind => f.write_str("a link or something else that is no plain file"),
            Self::Foreign => f.write_str("another user's"),
            Self::SeveralNames => f.write_str("one with several names (hard links)"),
            Self::Unreadable => f.write_str("one that the sidecar may not read"),
        }
    }
}

/// Opens a folder in a folder.
///
/// # Errors
/// If that fails.
pub(crate) fn open_folder(folder: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<Found<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match openat(folder, name, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(error) => return not_opened(error),
    };
    // By its own name: one that can be listed and not entered is of no use.
    match statat(&folder, ".", AtFlags::empty()) {
        Ok(stat) if root::is_own(&stat) => Ok(Found::There(folder)),
        Ok(_) => Ok(Found::LeftAlone(Reason::Foreign)),
        Err(error) => not_opened(error),
    }
}

/// Opens a folder in a folder; makes it if it is not there.
///
/// # Errors
/// If it cannot be made or opened.
pub(crate) fn make_folder(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(folder, name, Mode::from_raw_mode(0o755)) {
        // Somebody may have been quicker.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match open_folder(folder, name)? {
        Found::There(folder) => Ok(folder),
        Found::Absent => Err(io::ErrorKind::NotFound.into()),
        Found::LeftAlone(reason) => Err(io::Error::other(format!("a folder is {reason}"))),
    }
}

/// Why a file is left alone, if it is.
pub(crate) fn left_alone(stat: &Stat) -> Option<Reason> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        Some(Reason::OtherKind)
    } else if !root::is_own(stat) {
        Some(Reason::Foreign)
    } else if stat.st_nlink > 1 {
        Some(Reason::SeveralNames)
    } else if u64::try_from(stat.st_size).is_ok_and(|size| size <= LARGEST) {
        None
    } else {
        Some(Reason::TooLarge)
    }
}

/// What is to be thought of something that cannot be opened.
fn not_opened<T>(error: Errno) -> io::Result<Found<T>> {
    match error {
        Errno::NOENT => Ok(Found::Absent),
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => Ok(Found::LeftAlone(Reason::OtherKind)),
        Errno::ACCESS | Errno::PERM => Ok(Found::LeftAlone(Reason::Unreadable)),
        _ => Err(error.into()),
    }
}

/// Reads a file.
///
/// # Errors
/// If that fails.
pub(crate) fn read(folder: &OwnedFd, name: &str) -> io::Result<Found<Plain>> {
    // A device is not even opened: that alone may do something.
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| left_alone(&stat)) {
        Ok(None) => {}
        Ok(Some(reason)) => return Ok(Found::LeftAlone(reason)),
        Err(error) => return not_opened(error),
    }
    // Without NONBLOCK a pipe would hold up whoever opens it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(error) => return not_opened(error),
    };
    let stat = fstat(&file)?;
    if let Some(reason) = left_alone(&stat) {
        return Ok(Found::LeftAlone(reason));
    }
    let mut content = Vec::new();
    // It may grow meanwhile: a part of it is nothing.
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        return Ok(Found::LeftAlone(Reason::TooLarge));
    }
    Ok(Found::There(Plain { stat, content }))
}

/// Makes a file that nobody else can read yet.
///
/// # Errors
/// If it cannot be made, or is there.
pub(crate) fn create(folder: &OwnedFd, name: &str) -> io::Result<fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a new file its content, mode and time.
///
/// # Errors
/// If one of them cannot be set.
pub(crate) fn fill(mut file: fs::File, content: &[u8], mode: Mode, modified_ns: i64) -> io::Result<()> {
    file.write_all(content)?;
    fchmod(&file, mode)?;
    let last_modification = Timespec {
        tv_sec: modified_ns.div_euclid(1_000_000_000),
        tv_nsec: modified_ns.rem_euclid(1_000_000_000),
    };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Ok(futimens(&file, &Timestamps { last_access, last_modification })?)
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
