//! Whatever somebody puts into a sessions directory does no harm.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
};

use proptest::{collection::vec, prelude::*};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{
    disk::{Disk, place_of},
    layout::{Layout, Sid},
    seal::Sealer,
    snapshot::{File, Snapshot},
};
use crate::files::{Found, Root};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// What lies outside, which nobody is to get.
const OUTSIDE: &[u8] = b"root:x:0:0";

#[derive(Clone, Debug)]
enum Kind {
    File(Vec<u8>),
    Giant,
    Folder,
    Pipe,
    LinkToFile,
    LinkToFolder,
    DeadLink,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..600).prop_map(Kind::File),
        2 => r#"\{"uid": (null|[0-9]{1,20}), "next_sid": "[a-z]{0,90}"\}"#.prop_map(|text| Kind::File(text.into())),
        1 => Just(Kind::Giant),
        1 => Just(Kind::Folder),
        1 => Just(Kind::Pipe),
        1 => Just(Kind::LinkToFile),
        1 => Just(Kind::LinkToFolder),
        1 => Just(Kind::DeadLink),
    ]
}

/// Names that are, or nearly are, those of sessions and their folders.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "a[ab][ab]{82}",
        2 => "werkzeug_[a-f0-9]{40}\\.sess",
        2 => "[a-f0-9]{40}",
        2 => "a[ab]",
        1 => "a[ab]{41}[./\u{e9}-]{0,3}[ab]{38,41}",
        1 => "mooring-[a-f0-9]{16}\\.__wz_sess",
    ]
    .prop_map(String::into_bytes)
    .boxed()
    .prop_union(vec(any::<u8>(), 1..120).boxed())
    .prop_map(|bytes| bytes.into_iter().filter(|byte| ![0, b'/'].contains(byte)).collect())
}

/// Puts something there; not if something else is there.
fn put(path: &Path, kind: &Kind, outside: &Path) {
    let _ = match kind {
        // Opening a pipe would wait.
        Kind::File(content) => fs::File::create_new(path).and_then(|mut file| file.write_all(content)),
        Kind::Giant => fs::File::create_new(path).and_then(|file| file.set_len(2 << 30)),
        Kind::Folder => fs::create_dir(path),
        Kind::Pipe => mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).map_err(Into::into),
        Kind::LinkToFile => symlink(outside.join("passwd"), path),
        Kind::LinkToFolder => symlink(outside, path),
        Kind::DeadLink => symlink(outside.join("nowhere"), path),
    };
}

fn session() -> Snapshot {
    let sid = Sid::new(&"a".repeat(84)).unwrap();
    let file = File { sid, modified_ns: 7, content: br#"{"uid": 2}"#.to_vec() };
    Snapshot::new(Layout::Folders, vec![file]).unwrap()
}

proptest! {
    #[test]
    fn nothing_outside_is_read_written_or_removed(
        entries in vec((proptest::option::of(name()), name(), kind()), 0..12),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("sessions"), folder.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("passwd"), OUTSIDE).unwrap();
        fs::write(outside.join("a".repeat(84)), OUTSIDE).unwrap();
        for (folder, name, kind) in &entries {
            let mut path = root.clone();
            if let Some(folder) = folder.as_ref().filter(|it| ![&b"."[..], b"..", b""].contains(&&it[..])) {
                path.push(OsStr::from_bytes(folder));
                let _ = fs::create_dir(&path);
                // What a link leads to is outside.
                if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                    continue;
                }
            }
            if ![&b"."[..], b"..", b""].contains(&&name[..]) {
                put(&path.join(OsStr::from_bytes(name)), kind, &outside);
            }
        }

        let disk = Disk::new(Root::new(root.clone()));
        let sealer = Sealer::new(SECRET).unwrap();
        let mut places = Vec::new();
        let whole = disk.walk(&mut |place| { places.push(place); true });
        prop_assert!(whole.is_ok(), "{whole:?}");
        for place in &places {
            // An error is told; a session is carried as it is.
            if let Ok(Found::There(snapshot)) = disk.read(place) {
                prop_assert!(snapshot.files().iter().all(|file| file.content != OUTSIDE));
                let _ = (snapshot.is_anonymous(), snapshot.is_torn());
                let seal = sealer.seal(place.key(), &snapshot).unwrap();
                prop_assert_eq!(sealer.open(place.key(), &seal), Some(snapshot));
            }
        }
        // Somebody's session comes from elsewhere.
        let (new, place) = (session(), place_of(&session()).unwrap());
        let seen = disk.read(&place).ok().and_then(Found::carried);
        if let Ok(true) = disk.write(&new, seen.as_ref()) {
            prop_assert_eq!(disk.read(&place).unwrap(), Found::There(new));
        }
        for place in &places {
            let _ = disk.remove(place);
        }
        prop_assert_eq!(fs::read(outside.join("passwd")).unwrap(), OUTSIDE);
        prop_assert_eq!(fs::read(outside.join("a".repeat(84))).unwrap(), OUTSIDE);
        prop_assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
        prop_assert!(fs::read_dir(&root).unwrap().all(|entry| {
            let entry = entry.unwrap();
            !entry.file_name().to_string_lossy().starts_with("mooring-")
                || entries.iter().any(|(folder, name, _)| {
                    let top = folder.as_ref().unwrap_or(name);
                    entry.file_name().as_bytes() == &top[..]
                })
        }), "a temporary file is left");
    }
}
