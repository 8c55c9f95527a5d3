//! A replicated directory on this disk. It is not trusted, and neither are names from the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, RenameFlags, Stat, fstat, renameat, renameat_with, statat, unlinkat},
    io::Errno,
};

use super::{
    decide::State,
    name::{DEEPEST, Name, is_temporary},
};
use crate::files::{self, Found, Root};

/// The most entries of a directory, with those of its folders.
pub(super) const MOST: usize = 10_000;
/// What nobody but its owner gets to do is no part of a mode.
const MODE: u32 = 0o666;

/// What tells that a file is as it was, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    inode: u64,
    size: i64,
    modified: (i64, i64),
    /// Cannot be set by anybody.
    changed: (i64, i64),
}

impl Sight {
    fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether it is so old that a change after it would show: times are counted in milliseconds.
    pub(super) fn is_settled(&self, now_ns: i64) -> bool {
        now_ns.saturating_sub(self.changed.0.saturating_mul(1_000_000_000)) > 3_000_000_000
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) mode: u32,
    pub(super) modified_ns: i64,
    pub(super) content: Vec<u8>,
}

impl File {
    pub(super) fn state(&self) -> State {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.mode.to_le_bytes()).update(&self.modified_ns.to_le_bytes()).update(&self.content);
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        State { modified_ns: self.modified_ns, digest }
    }
}

/// What there is in a directory.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) files: BTreeMap<Name, Sight>,
    /// What is there and is not carried, temporary files aside.
    pub(super) left: BTreeSet<String>,
    /// Whether there is more than may be.
    pub(super) over: bool,
    /// Which directory it is.
    pub(super) root: (u64, u64),
    entries: usize,
}

impl Look {
    /// Whether a file, or a folder that it would be in, is there and is not carried.
    pub(super) fn leaves(&self, name: &Name) -> bool {
        let path = name.as_str();
        let folders = path.match_indices('/').filter_map(|(end, _)| path.get(..end));
        folders.chain([path]).any(|path| self.left.contains(path))
    }

    /// Whether there is no room for another file.
    pub(super) fn is_full(&self) -> bool {
        self.entries >= MOST
    }
}

/// A directory.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: Root,
}

impl Folder {
    pub(super) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Looks at all of it.
    ///
    /// # Errors
    /// If some of it cannot be read: then nothing is known of what is missing.
    pub(super) fn look(&self) -> io::Result<Look> {
        let root = self.open()?;
        let stat = fstat(&root)?;
        let mut look = Look { root: (stat.st_dev, stat.st_ino), ..Look::default() };
        look_into(&root, "", 0, &mut look)?;
        Ok(look)
    }

    /// A file as it is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(&self, name: &Name) -> io::Result<Found<(File, Sight)>> {
        let (folders, last) = name.parts();
        self.descend(folders)?.and_then(|folder| read_in(&folder, last))
    }

    /// Makes a file what it is elsewhere, if it is still as it was `seen`. Returns whether that was done.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, name: &Name, file: &File, seen: Option<&State>) -> io::Result<bool> {
        let (folders, last) = name.parts();
        let mut folder = self.open()?;
        for part in folders {
            folder = files::make_folder(&folder, part)?;
        }
        let there = match read_in(&folder, last)? {
            Found::There((there, _)) => Some(there.state()),
            Found::Absent => None,
            Found::LeftAlone(_) => return Ok(false),
        };
        if there.as_ref() != seen {
            return Ok(false);
        }
        let temporary = format!("mooring-{:016x}.tmp", rand::random::<u64>());
        let (new, mode) = (files::create(&folder, &temporary)?, Mode::from_raw_mode(file.mode & MODE));
        let filled = files::fill(new, &file.content, mode, file.modified_ns);
        let written = filled.and_then(|()| {
            // What came into being meanwhile, or is no plain file, is not replaced.
            let flags = if seen.is_none() { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            match renameat_with(&folder, &temporary, &folder, last, flags) {
                Ok(()) => Ok(true),
                // A file system that knows no such flag, as NFS.
                Err(Errno::INVAL | Errno::NOSYS)
                    if statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW).is_err() =>
                {
                    Ok(renameat(&folder, &temporary, &folder, last).map(|()| true)?)
                }
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(error.into()),
            }
        });
        if !matches!(written, Ok(true)) {
            let _ = unlinkat(&folder, &temporary, AtFlags::empty());
        }
        written
    }

    /// Removes a file, if it is still as it was `seen`. Returns whether it is gone.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(super) fn remove(&self, name: &Name, seen: Option<&State>) -> io::Result<bool> {
        let (folders, last) = name.parts();
        let folder = match self.descend(folders)? {
            Found::There(folder) => folder,
            Found::Absent => return Ok(true),
            Found::LeftAlone(_) => return Ok(false),
        };
        match read_in(&folder, last)? {
            Found::Absent => Ok(seen.is_none()),
            Found::There((there, _)) if Some(&there.state()) == seen => {
                match unlinkat(&folder, last, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(true),
                    Err(error) => Err(error.into()),
                }
            }
            Found::There(_) | Found::LeftAlone(_) => Ok(false),
        }
    }

    fn open(&self) -> io::Result<OwnedFd> {
        self.root.open()
    }

    fn descend<'n>(&self, folders: impl Iterator<Item = &'n str>) -> io::Result<Found<OwnedFd>> {
        let mut found = Found::There(self.open()?);
        for part in folders {
            found = found.and_then(|folder| files::open_folder(&folder, part))?;
        }
        Ok(found)
    }
}

fn look_into(folder: &OwnedFd, path: &str, depth: usize, look: &mut Look) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let bytes = entry.file_name();
        let text = bytes.to_string_lossy();
        if ["", ".", ".."].contains(&text.as_ref()) || is_temporary(&text) {
            continue;
        }
        look.entries += 1;
        if look.entries > MOST {
            look.over = true;
            return Ok(());
        }
        let inside = format!("{path}{text}");
        let stat = match statat(folder, bytes, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth < DEEPEST => match files::open_folder(folder, bytes)? {
                Found::There(next) => {
                    look_into(&next, &format!("{inside}/"), depth + 1, look)?;
                    continue;
                }
                Found::Absent => continue,
                Found::LeftAlone(_) => {}
            },
            FileType::RegularFile if files::left_alone(&stat).is_none() && bytes.to_str().is_ok() => {
                if let Some(name) = Name::new(&inside) {
                    look.files.insert(name, Sight::of(&stat));
                    continue;
                }
            }
            _ => {}
        }
        look.left.insert(inside);
    }
    Ok(())
}

fn read_in(folder: &OwnedFd, name: &str) -> io::Result<Found<(File, Sight)>> {
    files::read(folder, name)?.and_then(|plain| {
        let (mode, modified_ns) = (plain.stat.st_mode & MODE, plain.modified_ns());
        let sight = Sight::of(&plain.stat);
        Ok(Found::There((File { mode, modified_ns, content: plain.content }, sight)))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use rustix::fs::CWD;

    use super::*;
    use crate::files::LARGEST;

    fn file(content: &str) -> File {
        File { mode: 0o640, modified_ns: 1_234_567_890_123_456_789, content: content.into() }
    }

    fn name(path: &str) -> Name {
        Name::new(path).unwrap()
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::new(Root::new(directory.path().to_owned()));
        (directory, folder)
    }

    #[test]
    fn what_is_written_is_read_with_its_time_and_mode_if_nothing_came_between() {
        let (directory, folder) = folder();
        let (one, two) = (file("one"), file("two"));
        for path in ["a", "1/2/3/4/b"] {
            let name = name(path);
            assert!(folder.write(&name, &one, None).unwrap());
            assert_eq!(folder.read(&name).unwrap().carried().unwrap().0, one);
            let meta = fs::metadata(directory.path().join(path)).unwrap();
            assert_eq!((meta.mtime(), meta.permissions().mode() & 0o7777), (1_234_567_890, 0o640));
            for seen in [None, Some(&two.state())] {
                assert!(!folder.write(&name, &two, seen).unwrap(), "something else is there");
                assert!(!folder.remove(&name, seen).unwrap());
            }
            assert!(folder.write(&name, &two, Some(&one.state())).unwrap());
            let look = folder.look().unwrap();
            assert_eq!(look.files.keys().collect::<Vec<_>>(), [&name]);
            assert!(look.left.is_empty() && !look.over);
            assert!(folder.remove(&name, Some(&two.state())).unwrap());
            assert!(folder.look().unwrap().files.is_empty());
        }
        // Nobody gets to run what others may only read and write.
        assert!(folder.write(&name("x"), &File { mode: 0o4777, ..one }, None).unwrap());
        let mode = fs::metadata(directory.path().join("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o666);
    }

    #[test]
    fn links_pipes_giants_and_depths_are_left_alone() {
        let (directory, folder) = folder();
        let at = |path: &str| directory.path().join(path);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        symlink(outside.path().join("secret"), at("link")).unwrap();
        symlink(outside.path(), at("out")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::File::create(at("giant")).unwrap().set_len(LARGEST + 1).unwrap();
        fs::File::create(at("large")).unwrap().set_len(LARGEST).unwrap();
        fs::create_dir_all(at("1/2/3/4/5")).unwrap();
        fs::write(at("1/2/3/4/5/deep"), "").unwrap();
        fs::write(at("mooring-1.tmp"), "").unwrap();
        let look = folder.look().unwrap();
        assert_eq!(look.files.keys().map(Name::as_str).collect::<Vec<_>>(), ["large"]);
        let left: Vec<&str> = look.left.iter().map(String::as_str).collect();
        assert_eq!(left, ["1/2/3/4/5", "giant", "link", "out", "pipe"]);
        assert!(look.leaves(&name("out/new")) && look.leaves(&name("link")) && !look.leaves(&name("new")));
        for path in ["link", "giant", "pipe"] {
            assert!(matches!(folder.read(&name(path)).unwrap(), Found::LeftAlone(_)));
            assert!(!folder.write(&name(path), &file("bad"), None).unwrap(), "{path}");
        }
        assert!(folder.write(&name("out/new"), &file("bad"), None).is_err());
        assert!(!folder.remove(&name("out/secret"), Some(&file("secret").state())).unwrap());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 7, "a temporary file is left");
    }
}
