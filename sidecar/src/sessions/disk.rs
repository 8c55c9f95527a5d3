//! One node's sessions directory.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use affinity::SessionKey;
use rustix::{
    fs::{AtFlags, Dir, Mode, RenameFlags, fstat, renameat, renameat_with, unlinkat},
    io::Errno,
};

use super::{
    layout::{Layout, Sid, is_folder},
    snapshot::{File, Snapshot},
};
use crate::files;

/// A sessions directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

/// Where a session's files are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) layout: Layout,
    /// Any of its ids.
    pub(crate) sid: Sid,
}

impl Disk {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What a path below the directory is: a session's file, by its name.
    pub(crate) fn place(&self, path: &Path) -> Option<Place> {
        let mut parts = path.strip_prefix(&self.root).ok()?.iter().map(|part| part.to_str());
        let (layout, sid) = match (parts.next()??, parts.next(), parts.next()) {
            (folder, Some(name), None) => Layout::read(Some(folder), name?)?,
            (name, None, None) => Layout::read(None, name)?,
            _ => return None,
        };
        Some(Place { layout, sid })
    }

    /// Whether a path is a folder in which session files lie.
    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        let name = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
        name.is_some_and(is_folder) && path.is_dir()
    }

    /// The files of a session; none if there are none.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn read(&self, place: &Place) -> io::Result<Option<Snapshot>> {
        let Some(folder) = self.folder(place.layout, &place.sid)? else { return Ok(None) };
        let mut files = Vec::new();
        match place.sid.stable_part() {
            None => files.extend(read_file(&folder, place.layout, place.sid.clone())?),
            Some(stable) => {
                for entry in Dir::read_from(&folder)? {
                    let entry = entry?;
                    let sid = entry.file_name().to_str().ok().filter(|name| name.starts_with(stable));
                    if let Some(sid) = sid.and_then(Sid::new).filter(|sid| sid.key() == place.sid.key()) {
                        files.extend(read_file(&folder, place.layout, sid)?);
                    }
                }
            }
        }
        Ok(Snapshot::new(place.layout, files))
    }

    /// Makes a session's files what a snapshot says: writes what differs and removes what is not in it.
    /// Only if they are still as they were `seen`: Odoo may have been quicker. Returns whether it was done.
    ///
    /// # Errors
    /// If a file cannot be written; those before it are.
    pub(crate) fn write(&self, snapshot: &Snapshot, seen: Option<&Snapshot>) -> io::Result<bool> {
        let Some(place) = place_of(snapshot) else { return Ok(true) };
        let present = self.read(&place)?;
        if present.as_ref() != seen {
            return Ok(false);
        }
        let present = present.iter().flat_map(Snapshot::files).collect::<Vec<_>>();
        for file in snapshot.files() {
            let there = present.iter().find(|there| there.sid == file.sid);
            if there.is_none_or(|there| there.content != file.content)
                && !self.write_file(snapshot.layout, file, there.is_none())?
            {
                return Ok(false);
            }
        }
        for there in present {
            if !snapshot.files().iter().any(|file| file.sid == there.sid) {
                self.remove_file(snapshot.layout, &there.sid)?;
            }
        }
        Ok(true)
    }

    /// Removes a session's files.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(crate) fn remove(&self, place: &Place) -> io::Result<()> {
        for file in self.read(place)?.iter().flat_map(Snapshot::files) {
            self.remove_file(place.layout, &file.sid)?;
        }
        Ok(())
    }

    /// Whether the folder of a session's files is there.
    pub(crate) fn has_folder(&self, place: &Place) -> bool {
        self.folder(place.layout, &place.sid).is_ok_and(|folder| folder.is_some())
    }

    /// Every session, each at least once, as long as `each` wants more.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn walk(&self, each: &mut impl FnMut(Place) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if let Some(place) = self.place(&path) {
                if !each(place) {
                    return Ok(());
                }
            } else if self.is_folder(&path) && !self.walk_folder(&path, each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Every session in one folder. Returns whether `each` wants more.
    ///
    /// # Errors
    /// If the folder cannot be read; one that is gone is empty.
    pub(crate) fn walk_folder(&self, path: &Path, each: &mut impl FnMut(Place) -> bool) -> io::Result<bool> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if let Some(place) = self.place(&entry?.path())
                && !each(place)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the directory.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        files::open_root(&self.root)
    }

    /// The folder of a session's files, if it is there.
    fn folder(&self, layout: Layout, sid: &Sid) -> io::Result<Option<OwnedFd>> {
        let root = self.open()?;
        match layout.folder(sid) {
            Some(name) => files::open_folder(&root, name),
            None => Ok(Some(root)),
        }
    }

    /// Writes one file as Odoo does: a temporary one beside the folders, then its name. One that is `new` takes
    /// the place of none: Odoo 19 deletes a session's files and saves them anew within one request. Returns
    /// whether it was done.
    fn write_file(&self, layout: Layout, file: &File, new: bool) -> io::Result<bool> {
        let root = self.open()?;
        let owner = fstat(&root)?;
        let folder = match layout.folder(&file.sid) {
            Some(name) => files::make_folder(&root, name, &owner)?,
            None => self.open()?,
        };
        let name = temporary_name();
        let temporary = files::create(&root, &name)?;
        let write = || -> io::Result<bool> {
            let mode = Mode::RUSR | Mode::WUSR;
            files::fill(temporary, &file.content, &owner, mode, file.modified_ns)?;
            let to = layout.name(&file.sid);
            let flags = if new { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            match renameat_with(&root, &name, &folder, &to, flags) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) if read_file(&folder, layout, file.sid.clone())?.is_some() => Ok(false),
                // What Odoo could not use either; or a file system that knows no such flag, as NFS.
                Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
                    Ok(renameat(&root, &name, &folder, &to).map(|()| true)?)
                }
                Err(error) => Err(error.into()),
            }
        };
        let written = write();
        if !matches!(written, Ok(true)) {
            let _ = unlinkat(&root, &name, AtFlags::empty());
        }
        written
    }

    fn remove_file(&self, layout: Layout, sid: &Sid) -> io::Result<()> {
        let Some(folder) = self.folder(layout, sid)? else { return Ok(()) };
        match unlinkat(&folder, layout.name(sid), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) fn temporary_name() -> String {
    // Odoo ignores what ends like its own temporary files.
    format!("mooring-{:016x}.__wz_sess", rand::random::<u64>())
}

/// A session's file, if it is one that is carried.
fn read_file(folder: &OwnedFd, layout: Layout, sid: Sid) -> io::Result<Option<File>> {
    let read = files::read(folder, &layout.name(&sid))?;
    Ok(read.map(|plain| File { sid, modified_ns: plain.modified_ns(), content: plain.content }))
}

/// Where a snapshot's files lie.
pub(crate) fn place_of(snapshot: &Snapshot) -> Option<Place> {
    let first = snapshot.files().first()?;
    Some(Place { layout: snapshot.layout, sid: first.sid.clone() })
}

/// The session at a place.
impl Place {
    pub(crate) fn key(&self) -> SessionKey {
        self.sid.key()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::{CWD, FileType};

    use super::*;

    fn sid(end: &str) -> Sid {
        Sid::new(&format!("{}{end:_<42}", "a".repeat(42))).unwrap()
    }

    fn file(end: &str, content: &str) -> File {
        File { sid: sid(end), modified_ns: 1_234_567_890_123_456_789, content: content.into() }
    }

    fn disk() -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path().to_owned());
        (folder, disk)
    }

    #[test]
    fn what_is_written_is_read_with_its_time_and_for_odoo_only() {
        for layout in [Layout::Folders, Layout::Flat] {
            let (folder, disk) = disk();
            crate::sessions::check(disk.root()).unwrap();
            crate::sessions::has_room(disk.root()).unwrap();
            let snapshot = Snapshot::new(layout, vec![file("1", "one")]).unwrap();
            let place = place_of(&snapshot).unwrap();
            assert_eq!(disk.read(&place).unwrap(), None);
            assert!(disk.write(&snapshot, None).unwrap());
            if layout == Layout::Folders {
                assert_eq!(disk.read(&place).unwrap(), Some(snapshot.clone()));
                let path = folder.path().join("aa").join(place.sid.as_str());
                let meta = fs::metadata(path).unwrap();
                assert_eq!((meta.mtime(), meta.permissions().mode() & 0o777), (1_234_567_890, 0o600));
                let mut found = Vec::new();
                disk.walk(&mut |place| {
                    found.push(place);
                    true
                })
                .unwrap();
                assert_eq!(found, std::slice::from_ref(&place));
            }
            disk.remove(&place).unwrap();
            assert_eq!(disk.read(&place).unwrap(), None);
        }
    }

    #[test]
    fn a_snapshot_replaces_the_files_of_its_session_and_no_others() {
        let (folder, disk) = disk();
        let both = Snapshot::new(Layout::Folders, vec![file("1", "one"), file("2", "two")]).unwrap();
        assert!(disk.write(&both, None).unwrap());
        let other = folder.path().join("aa/other");
        fs::write(&other, "not Mooring's").unwrap();
        let second = Snapshot::new(Layout::Folders, vec![file("2", "new")]).unwrap();
        assert!(!disk.write(&second, None).unwrap(), "something else is there");
        assert!(disk.write(&second, Some(&both)).unwrap());
        assert_eq!(disk.read(&place_of(&both).unwrap()).unwrap(), Some(second));
        assert!(other.exists());
        // Odoo saves it between the look and the write.
        assert!(!disk.write_file(Layout::Folders, &file("2", "newest"), true).unwrap());
        assert!(disk.write_file(Layout::Folders, &file("2", "newest"), false).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn links_pipes_and_giants_are_left_alone() {
        let (folder, disk) = disk();
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::write(secret.path(), "secret").unwrap();
        let in_folder = |name: &Sid| folder.path().join("aa").join(name.as_str());
        fs::create_dir(folder.path().join("aa")).unwrap();
        symlink(secret.path(), in_folder(&sid("link"))).unwrap();
        rustix::fs::mknodat(CWD, in_folder(&sid("pipe")), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(in_folder(&sid("folder"))).unwrap();
        fs::File::create(in_folder(&sid("giant"))).unwrap().set_len(2 << 30).unwrap();
        symlink("/etc", folder.path().join("bb")).unwrap();
        let place = Place { layout: Layout::Folders, sid: sid("link") };
        assert_eq!(disk.read(&place).unwrap(), None);
        let outside = Place { layout: Layout::Folders, sid: Sid::new(&"b".repeat(84)).unwrap() };
        assert!(disk.read(&outside).is_err(), "a folder that is a link is refused");
        // One that Odoo could not use either is replaced by the session's own.
        let good = Snapshot::new(Layout::Folders, vec![file("link", "good")]).unwrap();
        assert!(disk.write(&good, None).unwrap());
        assert_eq!(disk.read(&place).unwrap(), Some(good));
        assert_eq!(fs::read_to_string(secret.path()).unwrap(), "secret");
    }
}
