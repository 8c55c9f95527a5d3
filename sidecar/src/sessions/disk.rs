//! One node's sessions directory.

use std::{io, os::fd::OwnedFd, path::Path};

use affinity::SessionKey;
use rustix::{
    fs::{AtFlags, Dir, Mode, RenameFlags, renameat, renameat_with, statat, unlinkat},
    io::Errno,
};

use super::{
    layout::{Layout, Sid, is_folder},
    snapshot::{File, Snapshot},
};
use crate::files::{self, Found, Root};

/// A sessions directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: Root,
}

/// Where a session's files are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) layout: Layout,
    /// Any of its ids.
    pub(crate) sid: Sid,
}

impl Disk {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// What a path below the directory is: a session's file, by its name.
    pub(crate) fn place(&self, path: &Path) -> Option<Place> {
        let mut parts = path.strip_prefix(self.root()).ok()?.iter().map(|part| part.to_str());
        let (layout, sid) = match (parts.next()??, parts.next(), parts.next()) {
            (folder, Some(name), None) => Layout::read(Some(folder), name?)?,
            (name, None, None) => Layout::read(None, name)?,
            _ => return None,
        };
        Some(Place { layout, sid })
    }

    /// The name of a folder in which session files lie, if a path is that of one.
    pub(crate) fn folder_name<'p>(&self, path: &'p Path) -> Option<&'p str> {
        path.strip_prefix(self.root()).ok()?.to_str().filter(|name| is_folder(name))
    }

    /// The files of a session. If one of them is left alone, all are: a part of a session is of no use.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn read(&self, place: &Place) -> io::Result<Found<Snapshot>> {
        self.folder(place.layout, &place.sid)?.and_then(|folder| {
            let mut sids = Vec::new();
            match place.sid.stable_part() {
                None => sids.push(place.sid.clone()),
                Some(stable) => {
                    for entry in Dir::read_from(&folder)? {
                        let entry = entry?;
                        let sid = entry.file_name().to_str().ok().filter(|name| name.starts_with(stable));
                        sids.extend(sid.and_then(Sid::new).filter(|sid| sid.key() == place.sid.key()));
                    }
                }
            }
            let mut files = Vec::new();
            for sid in sids {
                match read_file(&folder, place.layout, sid)? {
                    Found::There(file) => files.push(file),
                    Found::Absent => {}
                    Found::LeftAlone(reason) => return Ok(Found::LeftAlone(reason)),
                }
            }
            Ok(Snapshot::new(place.layout, files).map_or(Found::Absent, Found::There))
        })
    }

    /// Makes a session's files what a snapshot says: writes what differs and removes what is not in it.
    /// Only if they are still as they were `seen`: Odoo may have been quicker. Returns whether it was done.
    ///
    /// # Errors
    /// If a file cannot be written; those before it are.
    pub(crate) fn write(&self, snapshot: &Snapshot, seen: Option<&Snapshot>) -> io::Result<bool> {
        let Some(place) = place_of(snapshot) else { return Ok(true) };
        let present = match self.read(&place)? {
            Found::There(present) => Some(present),
            Found::Absent => None,
            Found::LeftAlone(_) => return Ok(false),
        };
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

    /// Removes a session's files, unless they are left alone.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(crate) fn remove(&self, place: &Place) -> io::Result<()> {
        for file in self.read(place)?.carried().iter().flat_map(Snapshot::files) {
            self.remove_file(place.layout, &file.sid)?;
        }
        Ok(())
    }

    /// Whether the folder of a session's files is there.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn has_folder(&self, place: &Place) -> io::Result<bool> {
        Ok(!matches!(self.folder(place.layout, &place.sid)?, Found::Absent))
    }

    /// Every session, each at least once, as long as `each` wants more.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn walk(&self, each: &mut impl FnMut(Place) -> bool) -> io::Result<()> {
        for entry in Dir::read_from(self.open()?)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some((layout, sid)) = Layout::read(None, name) {
                if !each(Place { layout, sid }) {
                    return Ok(());
                }
            } else if is_folder(name) && !self.walk_folder(name, each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Every session in one folder. Returns whether `each` wants more.
    ///
    /// # Errors
    /// If the folder cannot be read; one that is gone, or is left alone, is empty.
    pub(crate) fn walk_folder(&self, folder: &str, each: &mut impl FnMut(Place) -> bool) -> io::Result<bool> {
        let Some(opened) = files::open_folder(&self.open()?, folder)?.carried() else { return Ok(true) };
        for entry in Dir::read_from(opened)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok();
            if let Some((layout, sid)) = name.and_then(|name| Layout::read(Some(folder), name))
                && !each(Place { layout, sid })
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the directory.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        self.root.open()
    }

    /// The folder of a session's files.
    fn folder(&self, layout: Layout, sid: &Sid) -> io::Result<Found<OwnedFd>> {
        let root = self.open()?;
        match layout.folder(sid) {
            Some(name) => files::open_folder(&root, name),
            None => Ok(Found::There(root)),
        }
    }

    /// Writes one file as Odoo does: a temporary one beside the folders, then its name. One that is `new` takes
    /// the place of none: Odoo 19 deletes a session's files and saves them anew within one request. Returns
    /// whether it was done.
    fn write_file(&self, layout: Layout, file: &File, new: bool) -> io::Result<bool> {
        let root = self.open()?;
        let folder = match layout.folder(&file.sid) {
            Some(name) => files::make_folder(&root, name)?,
            None => self.open()?,
        };
        let name = temporary_name();
        let temporary = files::create(&root, &name)?;
        let write = || -> io::Result<bool> {
            files::fill(temporary, &file.content, Mode::RUSR | Mode::WUSR, file.modified_ns)?;
            let to = layout.name(&file.sid);
            let flags = if new { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            match renameat_with(&root, &name, &folder, &to, flags) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                // A file system that knows no such flag, as NFS.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    if new && statat(&folder, &to, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Ok(false);
                    }
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
        let Some(folder) = self.folder(layout, sid)?.carried() else { return Ok(()) };
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

/// A session's file.
fn read_file(folder: &OwnedFd, layout: Layout, sid: Sid) -> io::Result<Found<File>> {
    files::read(folder, &layout.name(&sid))?.and_then(|plain| {
        Ok(Found::There(File { sid, modified_ns: plain.modified_ns(), content: plain.content }))
    })
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
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    };

    use rustix::{
        fs::{CWD, FileType},
        process::geteuid,
    };

    use super::*;
    use crate::files::{LARGEST, Reason};

    fn sid(end: &str) -> Sid {
        Sid::new(&format!("{}{end:_<42}", "a".repeat(42))).unwrap()
    }

    fn file(end: &str, content: &str) -> File {
        File { sid: sid(end), modified_ns: 1_234_567_890_123_456_789, content: content.into() }
    }

    fn disk() -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(Root::new(folder.path().to_owned()));
        (folder, disk)
    }

    #[test]
    fn what_is_written_is_read_with_its_time_and_for_odoo_only() {
        for layout in [Layout::Folders, Layout::Flat] {
            let (folder, disk) = disk();
            crate::sessions::check(&disk.root).unwrap();
            crate::sessions::has_room(&disk.root).unwrap();
            let snapshot = Snapshot::new(layout, vec![file("1", "one")]).unwrap();
            let place = place_of(&snapshot).unwrap();
            assert_eq!(disk.read(&place).unwrap(), Found::Absent);
            assert!(disk.write(&snapshot, None).unwrap());
            if layout == Layout::Folders {
                assert_eq!(disk.read(&place).unwrap(), Found::There(snapshot.clone()));
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
            assert_eq!(disk.read(&place).unwrap(), Found::Absent);
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
        assert_eq!(disk.read(&place_of(&both).unwrap()).unwrap(), Found::There(second));
        assert!(other.exists());
        // Odoo saves it between the look and the write.
        assert!(!disk.write_file(Layout::Folders, &file("2", "newest"), true).unwrap());
        assert!(disk.write_file(Layout::Folders, &file("2", "newest"), false).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn what_is_no_plain_file_of_ones_own_is_left_alone_and_nothing_takes_its_place() {
        let (folder, disk) = disk();
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::write(secret.path(), "secret").unwrap();
        let sid = |letter: &str| Sid::new(&letter.repeat(84)).unwrap();
        let at = |letter: &str| folder.path().join(letter.repeat(2)).join(sid(letter).as_str());
        let mut cases = vec![
            ("a", Reason::OtherKind),
            ("b", Reason::OtherKind),
            ("c", Reason::OtherKind),
            ("d", Reason::OtherKind),
            ("e", Reason::TooLarge),
            ("f", Reason::SeveralNames),
            ("g", Reason::OtherKind),
            ("h", Reason::OtherKind),
        ];
        for letter in ["a", "b", "c", "d", "e", "f"] {
            fs::create_dir(folder.path().join(letter.repeat(2))).unwrap();
        }
        symlink(secret.path(), at("a")).unwrap();
        symlink("nowhere", at("b")).unwrap();
        rustix::fs::mknodat(CWD, at("c"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(at("d")).unwrap();
        fs::write(at("e"), vec![b'x'; LARGEST as usize + 1]).unwrap();
        fs::hard_link(secret.path(), at("f")).unwrap();
        symlink(folder.path().join("aa"), folder.path().join("gg")).unwrap();
        fs::write(folder.path().join("hh"), "no folder").unwrap();
        if geteuid().is_root() {
            for letter in ["i", "j"] {
                fs::create_dir(folder.path().join(letter.repeat(2))).unwrap();
                fs::write(at(letter), "{}").unwrap();
                cases.push((letter, Reason::Foreign));
            }
            chown(at("i"), Some(4321), None).unwrap();
            chown(folder.path().join("jj"), Some(4321), None).unwrap();
        } else {
            eprintln!("not root: files of other users are not tried");
        }
        let places = || cases.iter().map(|(letter, _)| Place { layout: Layout::Folders, sid: sid(letter) });
        for (place, (letter, reason)) in places().zip(&cases) {
            assert_eq!(disk.read(&place).unwrap(), Found::LeftAlone(*reason), "{letter}");
            let good = File { sid: place.sid.clone(), modified_ns: 7, content: b"good".to_vec() };
            let good = Snapshot::new(Layout::Folders, vec![good]).unwrap();
            assert!(!disk.write(&good, None).unwrap(), "{letter}");
            disk.remove(&place).unwrap();
            assert_eq!(disk.read(&place).unwrap(), Found::LeftAlone(*reason), "{letter}");
            assert!(disk.has_folder(&place).unwrap(), "{letter}");
        }
        // One that cannot be read stops nobody from looking at the others.
        let mut found = 0;
        disk.walk(&mut |_| {
            found += 1;
            true
        })
        .unwrap();
        assert!(found >= 6, "{found}");
        assert_eq!(fs::read_to_string(secret.path()).unwrap(), "secret");
        // When it is again what it should be, it is carried.
        fs::write(at("e"), vec![b'x'; LARGEST as usize]).unwrap();
        fs::remove_file(secret.path()).unwrap();
        for letter in ["e", "f"] {
            let place = Place { layout: Layout::Folders, sid: sid(letter) };
            assert!(matches!(disk.read(&place).unwrap(), Found::There(_)), "{letter}");
        }
    }

    #[test]
    fn one_file_that_is_left_alone_leaves_its_session_alone() {
        let (folder, disk) = disk();
        let one = Snapshot::new(Layout::Folders, vec![file("1", "one")]).unwrap();
        assert!(disk.write(&one, None).unwrap());
        let other = folder.path().join("aa").join(sid("2").as_str());
        fs::write(&other, vec![b'x'; LARGEST as usize + 1]).unwrap();
        let place = place_of(&one).unwrap();
        assert_eq!(disk.read(&place).unwrap(), Found::LeftAlone(Reason::TooLarge));
        disk.remove(&place).unwrap();
        assert!(!disk.write(&one, Some(&one)).unwrap());
        fs::remove_file(other).unwrap();
        assert_eq!(disk.read(&place).unwrap(), Found::There(one));
    }

    #[test]
    fn who_takes_the_place_of_a_directory_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (folder.path().join("a/sessions"), folder.path().join("elsewhere"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(elsewhere.join("sessions")).unwrap();
        // The operator's own link leads there.
        symlink(folder.path().join("a"), folder.path().join("link")).unwrap();
        let disk = Disk::new(Root::new(folder.path().join("link/sessions")));
        let one = Snapshot::new(Layout::Folders, vec![file("1", "one")]).unwrap();
        assert!(disk.write(&one, None).unwrap());
        assert_eq!(disk.root(), fs::canonicalize(&root).unwrap());
        let place = place_of(&one).unwrap();
        let tries = || {
            let walked = disk.walk(&mut |_| true);
            let errors = [
                walked.err(),
                disk.read(&place).err(),
                disk.write(&one, None).err(),
                disk.remove(&place).err(),
                disk.has_folder(&place).err(),
                crate::sessions::check(&disk.root).err(),
            ];
            assert!(errors.iter().all(Option::is_some), "{errors:?}");
            assert_eq!(fs::read_dir(elsewhere.join("sessions")).unwrap().count(), 0);
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
        };
        // The directory itself, or a part of the way.
        fs::rename(&root, folder.path().join("kept")).unwrap();
        symlink(elsewhere.join("sessions"), &root).unwrap();
        tries();
        // That is no reason to call the server down.
        crate::sessions::has_room(&disk.root).unwrap();
        fs::remove_file(&root).unwrap();
        fs::remove_dir(folder.path().join("a")).unwrap();
        symlink(&elsewhere, folder.path().join("a")).unwrap();
        tries();
        // Where it was found, it is found again; and a link that the operator turns is not followed.
        fs::remove_file(folder.path().join("a")).unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::rename(folder.path().join("kept"), &root).unwrap();
        fs::remove_file(folder.path().join("link")).unwrap();
        symlink(&elsewhere, folder.path().join("link")).unwrap();
        assert_eq!(disk.read(&place).unwrap(), Found::There(one));
    }
}
