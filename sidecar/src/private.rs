//! Files and folders that nobody else of the host may read: who owns which session, and what seals them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

const FOLDER: u32 = 0o700;
const FILE: u32 = 0o600;
/// Of a folder that belongs to all, such as /tmp.
const STICKY: u32 = 0o1000;

/// Makes a folder that only its owner may enter; corrects one that is there, if nothing else is in it than `own`
/// was put into: somebody may have named a folder of the system.
pub(crate) fn make_folder(path: &Path, own: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    let is_own = path.join(own).exists() || fs::read_dir(path)?.next().is_none();
    if mode & STICKY == 0 && is_own {
        restrict(path, FOLDER);
    }
    Ok(())
}

/// Opens a file that only its owner may read, or makes it.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE).open(path)?;
    restrict(path, FILE);
    Ok(file)
}

/// Takes away what others may do with it. Whose it is not, leaves it as it is.
fn restrict(path: &Path, most: u32) {
    let correct = || {
        let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
        let is_wide = mode & 0o7777 & !most != 0;
        if is_wide { fs::set_permissions(path, Permissions::from_mode(mode & most)) } else { Ok(()) }
    };
    if let Err(error) = correct() {
        tracing::warn!("{}: others may read it, and that cannot be changed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn widen(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_is_private_and_what_was_not_becomes_it() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("a/state");
        make_folder(&folder, "file").unwrap();
        assert_eq!((mode(&folder), mode(&outer.path().join("a"))), (0o700, 0o700));
        let file = folder.join("file");
        open_file(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
        for (wide_folder, wide_file) in [(0o755, 0o644), (0o2770, 0o660), (0o777, 0o666)] {
            widen(&folder, wide_folder);
            widen(&file, wide_file);
            make_folder(&folder, "file").unwrap();
            open_file(&file).unwrap();
            assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        }
    }

    #[test]
    fn a_folder_that_others_use_stays_theirs() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("another's"), "").unwrap();
        widen(outer.path(), 0o755);
        make_folder(outer.path(), "file").unwrap();
        assert_eq!(mode(outer.path()), 0o755);
        let shared = tempfile::tempdir().unwrap();
        widen(shared.path(), 0o1777);
        make_folder(shared.path(), "file").unwrap();
        assert_eq!(mode(shared.path()), 0o1777);
        widen(shared.path(), 0o755);
        make_folder(shared.path(), "file").unwrap();
        assert_eq!(mode(shared.path()), 0o700, "an empty one");
    }
}
