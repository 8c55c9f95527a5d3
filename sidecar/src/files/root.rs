//! The directories that are carried: whose they are, and that nobody leads elsewhere.
//!
//! Whoever can put a link in the place of a directory makes the sidecar read, write and remove what the link
//! leads to. So it works only in directories of its own user, where it can do no more than that user, who is
//! Odoo's, could do without it. To root belongs much else; there nobody else may be able to change any part of
//! the way.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, readlinkat, statat},
    io::Errno,
    process::geteuid,
};

/// How many links a path may lead over, as in the kernel.
const MOST_LINKS: usize = 40;
/// To go through a directory, and to ask whose it is, takes no right to read it.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that is carried. Links that lead to it are followed until it is found; from then on it is where
/// it was found, or nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    path: PathBuf,
    real: Arc<OnceLock<PathBuf>>,
}

impl Root {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, real: Arc::default() }
    }

    /// Where it is, once it was found; till then where it was said to be.
    pub(crate) fn path(&self) -> &Path {
        self.real.get().unwrap_or(&self.path)
    }

    /// Opens it.
    ///
    /// # Errors
    /// If it is not there, or is none that this process should work in: see [`is_refused`].
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let (folder, real) = walk(self.path(), self.real.get().is_none())?;
        let owner = fstat(&folder)?.st_uid;
        if owner != geteuid().as_raw() {
            let owner = User(owner);
            return Err(refused(format!(
                "it belongs to {owner}: run the sidecar as that user, who is Odoo's"
            )));
        }
        let folder =
            openat(&folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let _ = self.real.set(real);
        Ok(folder)
    }
}

/// Whether an error is this process's own decision, and not the system's.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}

/// Checks that a process of root is led nowhere else by who can change a part of the way to a directory, as far
/// as it can be gone.
///
/// # Errors
/// If it may be.
pub(crate) fn check_way(path: &Path) -> io::Result<()> {
    match walk(&std::path::absolute(path)?, true) {
        Err(error) if is_refused(&error) => Err(error),
        _ => Ok(()),
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Goes to a directory, part by part, so that none can be exchanged behind the back of a check. Returns it and
/// its path without links.
fn walk(path: &Path, follow: bool) -> io::Result<(OwnedFd, PathBuf)> {
    let top = || openat(CWD, "/", PASS, Mode::empty());
    let (mut folder, mut real) = (top()?, PathBuf::from("/"));
    is_roots(&fstat(&folder)?, &real)?;
    // The next one is the last.
    let mut parts: Vec<OsString> = Vec::new();
    push(&mut parts, path);
    let mut links = 0;
    while let Some(part) = parts.pop() {
        let at = real.join(&part);
        match openat(&folder, &part, PASS, Mode::empty()) {
            Ok(next) => {
                is_roots(&fstat(&next)?, &at)?;
                folder = next;
                if part == ".." {
                    real.pop();
                } else {
                    real = at;
                }
            }
            // It is no directory.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let Ok(target) = readlinkat(&folder, &part, Vec::new()) else {
                    return Err(Errno::NOTDIR.into());
                };
                if !follow {
                    let at = at.display();
                    return Err(refused(format!("{at} is a link now, and was none when it was found first")));
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                is_roots(&statat(&folder, &part, AtFlags::SYMLINK_NOFOLLOW)?, &at)?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    (folder, real) = (top()?, PathBuf::from("/"));
                }
                push(&mut parts, &target);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((folder, real))
}

/// Puts the parts of a path before those that are still to be gone.
fn push(parts: &mut Vec<OsString>, path: &Path) {
    let named = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.extend(named.map(OsStr::to_owned));
}

/// Whether nobody but root can exchange what is in a directory, or a link. Other processes than root's are kept
/// by the kernel from what is not theirs.
fn is_roots(stat: &Stat, path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let path = path.display();
    if stat.st_uid != 0 {
        let owner = User(stat.st_uid);
        return Err(refused(format!(
            "{path} belongs to {owner}, who could lead a sidecar of root elsewhere: run the sidecar as that user"
        )));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_link = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink;
    // In a sticky directory nobody exchanges what is root's.
    if !is_link && mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX) {
        return Err(refused(format!(
            "others may write in {path}, and could lead a sidecar of root elsewhere: run the sidecar as Odoo's \
             user, or take that right away (chmod go-w {path})"
        )));
    }
    Ok(())
}

/// A user, by number and, where this host has one, by name.
struct User(u32);

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(self.0)).then_some(name)
        });
        match name {
            Some(name) => write!(f, "user {} ({name})", self.0),
            None => write!(f, "user {}", self.0),
        }
    }
}

/// Whether a file or folder belongs to this process's user.
pub(super) fn is_own(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_path_leads_over_links_until_it_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let at = |path: &str| real.join(path);
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::create_dir(at("d")).unwrap();
        symlink("../a/./b", at("d/relative")).unwrap();
        symlink(at("d/relative/../b"), at("absolute")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        fs::write(at("file"), "").unwrap();
        for path in ["a/b/c", "d/relative/c", "absolute/c", "absolute/../b//c/."] {
            let root = Root::new(at(path));
            assert_eq!(root.path(), at(path));
            root.open().unwrap();
            assert_eq!(root.path(), at("a/b/c"), "{path}");
            root.open().unwrap();
        }
        for (path, error) in [
            ("loop", Errno::LOOP),
            ("file", Errno::NOTDIR),
            ("file/c", Errno::NOTDIR),
            ("a/none", Errno::NOENT),
        ] {
            let problem = Root::new(at(path)).open().unwrap_err();
            assert_eq!(problem.raw_os_error(), Some(error.raw_os_error()), "{path}");
        }
        // A directory that is made anew is the same; what takes its place is not.
        let root = Root::new(at("absolute/c"));
        root.open().unwrap();
        fs::remove_dir(at("a/b/c")).unwrap();
        assert_eq!(root.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(at("a/b/c")).unwrap();
        root.open().unwrap();
        fs::rename(at("a"), at("moved")).unwrap();
        symlink(at("moved"), at("a")).unwrap();
        let error = root.open().unwrap_err();
        assert!(is_refused(&error) && error.to_string().contains("is a link now"), "{error}");
    }

    #[test]
    fn root_works_only_where_nobody_else_changes_the_way() {
        if !geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let at = |path: &str| real.join(path);
        let mode =
            |path: &str, mode| fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        for path in
            ["odoo/sessions", "way/odoo/sessions", "all/sessions", "group/sessions", "sticky/sessions"]
        {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["odoo/sessions", "way/odoo"] {
            chown(at(path), Some(4321), Some(4321)).unwrap();
        }
        mode("all", 0o777);
        mode("group", 0o775);
        mode("sticky", 0o1777);
        symlink(at("all/sessions"), at("to-all")).unwrap();
        symlink(at("sticky/sessions"), at("foreign")).unwrap();
        std::os::unix::fs::lchown(at("foreign"), Some(4321), None).unwrap();
        symlink(at("sticky"), at("own")).unwrap();
        for (path, expected) in [
            ("odoo/sessions", "user 4321, who could lead"),
            ("way/odoo/sessions", "user 4321, who could lead"),
            ("way/odoo/not yet", "user 4321, who could lead"),
            ("all/sessions", "chmod go-w"),
            ("group/sessions", "chmod go-w"),
            ("to-all", "chmod go-w"),
            ("all", "chmod go-w"),
            ("foreign", "user 4321, who could lead"),
        ] {
            let error = Root::new(at(path)).open().unwrap_err();
            assert!(is_refused(&error) && error.to_string().contains(expected), "{path}: {error}");
        }
        for path in ["sticky/sessions", "own/sessions"] {
            Root::new(at(path)).open().unwrap();
        }
        for (path, fine) in
            [("sticky/none", true), ("all/none", false), ("way/odoo", false), ("none/x", true)]
        {
            assert_eq!(check_way(&at(path)).is_ok(), fine, "{path}");
        }
        // Taken from it, or given away, between two looks.
        let root = Root::new(at("own/sessions"));
        root.open().unwrap();
        chown(at("sticky/sessions"), Some(4321), None).unwrap();
        assert!(is_refused(&root.open().unwrap_err()));
        chown(at("sticky/sessions"), Some(0), None).unwrap();
        root.open().unwrap();
        chown(at("sticky"), Some(4321), None).unwrap();
        assert!(is_refused(&root.open().unwrap_err()));
        assert!(User(0).to_string().contains("(root)"));
    }
}
