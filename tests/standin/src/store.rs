//! Session files on disk, written and deleted in the steps Odoo takes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cli::Profile;
use crate::format;
use crate::session::{Data, Session, is_valid_sid, new_sid, stable_part};

/// Odoo's FilesystemSessionStore.
#[derive(Debug)]
pub(crate) struct Store {
    profile: Profile,
    dir: PathBuf,
}

/// What is on disk, for a test to look at.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Census {
    files: usize,
    logged_in: usize,
    anonymous: usize,
}

impl Store {
    /// Opens `data_dir/sessions`, making it where needed.
    pub(crate) fn open(profile: Profile, data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("sessions");
        fs::create_dir_all(&dir)?;
        Ok(Store { profile, dir })
    }

    /// The session under an id which the visitor brought, or a new one. An id without a file is kept: Odoo
    /// 16 and later answer for it as for an anonymous visitor and do not replace it.
    pub(crate) fn session(&self, sid: Option<&str>) -> Session {
        let Some(sid) = sid.filter(|sid| is_valid_sid(self.profile, sid)) else {
            return Session::anonymous(self.profile, new_sid(self.profile));
        };
        let mut session = Session::anonymous(self.profile, sid.to_owned());
        if let Some(data) = self.load(sid) {
            session.data = data;
        }
        session
    }

    /// The content of a session file; `None` when it is missing or unreadable.
    pub(crate) fn load(&self, sid: &str) -> Option<Data> {
        format::decode(self.profile, &fs::read(self.path(sid)?).ok()?)
    }

    /// Writes a session file: temporary file, rename, chmod; no fsync. Odoo raises what hinders the first
    /// step, and leaves the temporary file behind; that the others fail it ignores.
    pub(crate) fn save(&self, sid: &str, data: &Data) -> io::Result<()> {
        let Some(path) = self.path(sid) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a session id"));
        };
        let bytes = format::encode(self.profile, data)?;
        // Made just before the first file in it, which a recursive watcher may therefore miss.
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            let _ = fs::create_dir(parent);
        }
        let temporary = self.write_temporary(&bytes)?;
        let _ = fs::rename(&temporary, &path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)));
        Ok(())
    }

    fn write_temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        loop {
            let name = format!("tmp{:08x}.__wz_sess", rand::random::<u32>());
            let path = self.dir.join(name);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(mut file) => return file.write_all(bytes).map(|()| path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes a session file, if there is one.
    pub(crate) fn delete(&self, sid: &str) {
        if let Some(path) = self.path(sid) {
            let _ = fs::remove_file(path);
        }
    }

    /// Deletes every file of a softly rotated session, the newest included.
    pub(crate) fn delete_rotated(&self, sid: &str) {
        let Some(subdirectory) = self.path(sid).and_then(|path| Some(path.parent()?.to_owned())) else {
            return;
        };
        let stable = stable_part(sid).as_bytes();
        for entry in fs::read_dir(subdirectory).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(stable) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The daily cron: deletes this node's files which were not saved for a while. Returns how many.
    pub(crate) fn vacuum(&self, older_than: Duration) -> usize {
        let now = SystemTime::now();
        let age = |path: &Path| now.duration_since(fs::metadata(path).ok()?.modified().ok()?).ok();
        self.files()
            .filter(|path| age(path).is_some_and(|age| age >= older_than))
            .filter(|path| fs::remove_file(path).is_ok())
            .count()
    }

    /// Counts the session files.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for path in self.files() {
            census.files += 1;
            match fs::read(path).ok().and_then(|bytes| format::decode(self.profile, &bytes)) {
                Some(Data { uid: Some(_), .. }) => census.logged_in += 1,
                Some(_) => census.anonymous += 1,
                None => {}
            }
        }
        census
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let subdirectories =
            fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = subdirectories.flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        files.map(|entry| entry.path())
    }

    fn path(&self, sid: &str) -> Option<PathBuf> {
        is_valid_sid(self.profile, sid).then(|| self.dir.join(sid.get(..2).unwrap_or_default()).join(sid))
    }
}
