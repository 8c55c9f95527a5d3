//! What stands for the PostgreSQL database that all nodes share: the users, their passwords, and the secret
//! that session and CSRF tokens are made with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::Profile;
use crate::session::{now, stable_part};

/// Every node of every test run has the same one, so that a session file moved by hand stays valid.
const SECRET: &str = "odoo-standin database.secret";

/// How long a login page may stay open; Odoo says one year.
const CSRF_LIFETIME: u64 = 365 * 24 * 3600;

/// The shared directory.
#[derive(Debug)]
pub(crate) struct Database {
    dir: PathBuf,
}

/// A user. Anybody exists: a login name `x` has the password `pw-x` until it is changed.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: i64,
    pub(crate) login: String,
    password: String,
    version: u64,
}

impl Database {
    /// Opens the shared directory, making it where needed.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Database { dir: dir.to_owned() })
    }

    /// The user of that name.
    pub(crate) fn user(&self, login: &str) -> User {
        let changed = fs::read_to_string(self.password_file(login)).unwrap_or_default();
        let (version, password) = changed.split_once('\n').unwrap_or_default();
        let version = version.parse().unwrap_or(0);
        let password = if version == 0 { format!("pw-{login}") } else { password.to_owned() };
        User { uid: uid(login), login: login.to_owned(), password, version }
    }

    /// The user of that name, if the password is right.
    pub(crate) fn authenticate(&self, login: &str, password: &str) -> Option<User> {
        let user = self.user(login);
        (!login.is_empty() && user.password == password).then_some(user)
    }

    /// The user with that number, as far as anybody with that number logged in through `/jsonrpc`.
    pub(crate) fn user_by_uid(&self, uid: i64) -> Option<User> {
        fs::read_to_string(self.dir.join(format!("uid-{uid}"))).ok().map(|login| self.user(&login))
    }

    /// Notes the number of a user, so that [`Database::user_by_uid`] finds it on every node.
    pub(crate) fn remember(&self, user: &User) -> io::Result<()> {
        self.write(&self.dir.join(format!("uid-{}", user.uid)), &user.login)
    }

    /// Changes a password: every session of that user ends, on every node.
    pub(crate) fn change_password(&self, login: &str, password: &str) -> io::Result<()> {
        let version = self.user(login).version + 1;
        self.write(&self.password_file(login), &format!("{version}\n{password}"))
    }

    fn write(&self, path: &Path, content: &str) -> io::Result<()> {
        let temporary = self.dir.join(format!("tmp-{:016x}", rand::random::<u64>()));
        fs::write(&temporary, content)?;
        fs::rename(temporary, path)
    }

    fn password_file(&self, login: &str) -> PathBuf {
        self.dir.join(format!("password-{}", blake3::hash(login.as_bytes())))
    }
}

impl User {
    /// Binds a session id to the user as the database has it now.
    pub(crate) fn session_token(&self, sid: &str) -> String {
        let User { uid, login, password, version } = self;
        keyed(&format!("session {uid} {version} {login:?} {password:?}"), sid)
    }
}

/// A user's number, the same on every node.
fn uid(login: &str) -> i64 {
    if login == "admin" {
        return 2;
    }
    let [a, b, c, d, ..] = *blake3::hash(login.as_bytes()).as_bytes();
    // Below 2^31, as PostgreSQL's integers; small numbers belong to Odoo's own users.
    5 + i64::from(u32::from_le_bytes([a, b, c, d]) >> 2)
}

/// A token for a form on a page of this session. It needs no file, so any node accepts it.
pub(crate) fn csrf_token(profile: Profile, sid: &str) -> String {
    let expires = now() as u64 + CSRF_LIFETIME;
    format!("{}o{expires}", csrf_mac(profile, sid, expires))
}

/// Whether a form came from a page of this session.
pub(crate) fn csrf_valid(profile: Profile, sid: &str, token: &str) -> bool {
    let Some((mac, expires)) = token.rsplit_once('o') else { return false };
    let Ok(expires) = expires.parse() else { return false };
    expires >= now() as u64 && mac == csrf_mac(profile, sid, expires)
}

fn csrf_mac(profile: Profile, sid: &str, expires: u64) -> String {
    // On 19 a page outlives a soft rotation.
    let sid = if profile.rotates_softly() { stable_part(sid) } else { sid };
    keyed("csrf", &format!("{sid}{expires}"))
}

fn keyed(key: &str, message: &str) -> String {
    let key = blake3::derive_key(SECRET, key.as_bytes());
    blake3::keyed_hash(&key, message.as_bytes()).to_string()
}
