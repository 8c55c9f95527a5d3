//! Sealing: what the store holds of a session cannot be used as one.
//!
//! XChaCha20-Poly1305 with a key of its own for each session, derived by BLAKE3 from the cluster's secret
//! and the session key; the session id travels inside only. Layout: a byte of version, four that name
//! the secret, a random nonce of 24, the sealed [`Content`] in postcard's encoding. Replicated files are sealed
//! alike, with a key for each.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use affinity::SessionKey;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use serde::{Deserialize, Serialize};

use super::{
    layout::{Layout, Sid},
    snapshot::{File, Snapshot},
};
use crate::{private, secret_file};

const VERSION: u8 = 1;
const NAME: usize = 4;
const NONCE: usize = 24;
/// The bytes of a signature.
pub(crate) const SIGNATURE: usize = NAME + 32;
/// The fewest characters of a secret.
const SHORTEST: usize = 32;

/// What is inside a seal.
#[derive(Serialize, Deserialize)]
struct Content {
    flat: bool,
    files: Vec<(String, i64, Vec<u8>)>,
}

struct Secret {
    name: [u8; NAME],
    /// What the keys of sessions are derived from.
    root: [u8; 32],
    /// What digests are keyed with.
    digest: [u8; 32],
    /// What values of the ORM cache are signed with.
    values: [u8; 32],
    /// What the keys of replicated files are derived from, and their names hashed with.
    files: [u8; 32],
}

impl Secret {
    fn new(text: &str) -> Self {
        let derive = |context: &str| blake3::derive_key(context, text.as_bytes());
        let mut name = [0; NAME];
        name.iter_mut().zip(derive("mooring 2026-11 secret name")).for_each(|(to, from)| *to = from);
        Self {
            name,
            root: derive("mooring 2026-11 sessions"),
            digest: derive("mooring 2026-11 digests"),
            values: derive("mooring 2026-11 orm cache values"),
            files: derive("mooring 2026-11 files"),
        }
    }

    fn signature(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.values);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }

    fn cipher(&self, key: SessionKey) -> XChaCha20Poly1305 {
        let derived = blake3::keyed_hash(&self.root, key.as_bytes());
        XChaCha20Poly1305::new(derived.as_bytes().into())
    }

    /// Of a replicated file. What keys are derived from ends otherwise than what is hashed for a field.
    fn file_cipher(&self, set: &str, field: &str) -> XChaCha20Poly1305 {
        let derived = blake3::keyed_hash(&self.files, format!("{set}/{field}/seal").as_bytes());
        XChaCha20Poly1305::new(derived.as_bytes().into())
    }

    /// Seals a message, with what [`Sealer::unseal`] needs beside the cipher before it.
    fn seal(&self, cipher: &XChaCha20Poly1305, message: &[u8]) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload { msg: message, aad: &[VERSION] };
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        Some([&[VERSION][..], &self.name, &nonce, &sealed].concat())
    }
}

/// The cluster's secrets, the present one first.
struct Secrets {
    first: Secret,
    older: Vec<Secret>,
}

impl Secrets {
    /// Takes secrets from a text, one a line.
    fn parse(text: &str) -> Result<Self, String> {
        let mut secrets = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.len() < SHORTEST {
                return Err(format!(
                    "expected lines of {SHORTEST} or more characters, such as openssl rand -hex 32 prints"
                ));
            }
            secrets.push(Secret::new(line));
        }
        let mut secrets = secrets.into_iter();
        let first = secrets.next().ok_or("expected a line with the secret that all sidecars share")?;
        Ok(Self { first, older: secrets.collect() })
    }

    /// The secret of this name.
    fn named(&self, name: &[u8]) -> Option<&Secret> {
        [&self.first].into_iter().chain(&self.older).find(|secret| secret.name == *name)
    }
}

/// Seals with the first of the cluster's secrets, and opens with all of them.
pub(crate) struct Sealer {
    secrets: RwLock<Arc<Secrets>>,
    /// What digests are keyed with, and names hashed. They stay what they were at the start: whatever is compared
    /// with them would be another.
    digest: [u8; 32],
    names: [u8; 32],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// Takes secrets from a text, one a line, the present one first.
    ///
    /// # Errors
    /// If there is none, or one is too short.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let secrets = Secrets::parse(text)?;
        let (digest, names) = (secrets.first.digest, secrets.first.files);
        Ok(Self { secrets: RwLock::new(Arc::new(secrets)), digest, names })
    }

    /// Takes other secrets from a text.
    ///
    /// # Errors
    /// As [`Self::new`]; then nothing changes.
    pub(crate) fn renew(&self, text: &str) -> io::Result<()> {
        let secrets = Secrets::parse(text).map_err(secret_file::invalid)?;
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(secrets);
        Ok(())
    }

    fn secrets(&self) -> Arc<Secrets> {
        Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads secrets from a file.
    ///
    /// # Errors
    /// If it cannot be read, or has none.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        Self::new(&secret_file::read(path)?).map_err(secret_file::invalid)
    }

    /// Reads secrets from a file, which is made with a new one if it is not there.
    ///
    /// # Errors
    /// If it can neither be read nor made.
    pub(crate) fn read_or_make(path: &Path) -> io::Result<Self> {
        let is_there = path.exists();
        let mut file = private::open_file(path)?;
        if !is_there {
            writeln!(file, "{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())?;
        }
        Self::read(path)
    }

    /// What digests are keyed with.
    pub(crate) fn digest_secret(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Signs a value of the ORM cache, given in parts whose lengths are known: the secret's name, and a keyed
    /// hash.
    pub(crate) fn sign(&self, parts: &[&[u8]]) -> [u8; SIGNATURE] {
        let (secrets, mut signature) = (self.secrets(), [0; SIGNATURE]);
        let first = &secrets.first;
        let bytes = first.name.iter().chain(first.signature(parts).as_bytes()).copied().collect::<Vec<_>>();
        signature.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        signature
    }

    /// Whether one of the secrets signed it.
    pub(crate) fn is_signed(&self, parts: &[&[u8]], signature: &[u8; SIGNATURE]) -> bool {
        let (name, hash) = signature.split_at(NAME);
        let secrets = self.secrets();
        let secret = secrets.named(name);
        // Comparing hashes takes the same time, however alike they are.
        let hash = blake3::Hash::from_slice(hash);
        secret.zip(hash.ok()).is_some_and(|(secret, hash)| secret.signature(parts) == hash)
    }

    /// Seals a snapshot of the session `key`; nothing if it cannot be.
    pub(crate) fn seal(&self, key: SessionKey, snapshot: &Snapshot) -> Option<Vec<u8>> {
        let files = snapshot.files().iter();
        let files = files.map(|file| (file.sid.as_str().to_owned(), file.modified_ns, file.content.clone()));
        let content = Content { flat: snapshot.layout == Layout::Flat, files: files.collect() };
        let first = &self.secrets().first;
        first.seal(&first.cipher(key), &postcard::to_allocvec(&content).ok()?)
    }

    /// Opens a seal of the session `key`; nothing if it is none, or of a secret that is not known.
    pub(crate) fn open(&self, key: SessionKey, seal: &[u8]) -> Option<Snapshot> {
        let message = self.unseal(seal, |secret| secret.cipher(key))?;
        let content: Content = postcard::from_bytes(&message).ok()?;
        let layout = if content.flat { Layout::Flat } else { Layout::Folders };
        let files: Option<Vec<File>> = content
            .files
            .into_iter()
            .map(|(sid, modified_ns, content)| Some(File { sid: Sid::new(&sid)?, modified_ns, content }))
            .collect();
        Snapshot::new(layout, files?).filter(|snapshot| snapshot.key() == Some(key))
    }

    /// Under which field the store keeps a file of a replicated directory: its name does not show.
    pub(crate) fn file_field(&self, set: &str, name: &str) -> String {
        let hash = blake3::keyed_hash(&self.names, format!("{set}/{name}/field").as_bytes());
        hash.to_hex().chars().take(32).collect()
    }

    /// Seals what the store keeps of a replicated file; nothing if it cannot be.
    pub(crate) fn seal_file(&self, set: &str, field: &str, message: &[u8]) -> Option<Vec<u8>> {
        let first = &self.secrets().first;
        first.seal(&first.file_cipher(set, field), message)
    }

    /// Opens what was sealed for this field of this directory; nothing if it is none, or of a secret that is
    /// not known.
    pub(crate) fn open_file(&self, set: &str, field: &str, seal: &[u8]) -> Option<Vec<u8>> {
        self.unseal(seal, |secret| secret.file_cipher(set, field))
    }

    fn unseal(&self, seal: &[u8], cipher: impl Fn(&Secret) -> XChaCha20Poly1305) -> Option<Vec<u8>> {
        let (version, rest) = seal.split_first().filter(|(version, _)| **version == VERSION)?;
        let (name, rest) = rest.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let secrets = self.secrets();
        let payload = Payload { msg: sealed, aad: &[*version] };
        cipher(secrets.named(name)?).decrypt(XNonce::from_slice(nonce), payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRETS: [&str; 2] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"];

    fn snapshot() -> (SessionKey, Snapshot) {
        let sid = Sid::new(&"s".repeat(84)).unwrap();
        let file = File { sid: sid.clone(), modified_ns: 7, content: br#"{"uid": 2}"#.to_vec() };
        (sid.key(), Snapshot::new(Layout::Folders, vec![file]).unwrap())
    }

    #[test]
    fn only_the_secret_opens_what_it_sealed_and_only_for_that_session() {
        let (key, snapshot) = snapshot();
        let sealer = Sealer::new(SECRETS[0]).unwrap();
        let seal = sealer.seal(key, &snapshot).unwrap();
        assert_eq!(sealer.open(key, &seal), Some(snapshot.clone()));
        assert!(!seal.windows(4).any(|window| window == b"ssss"), "the id shows");
        assert_eq!(sealer.open(SessionKey::from([1; 16]), &seal), None);
        assert_eq!(Sealer::new(SECRETS[1]).unwrap().open(key, &seal), None);
        // A new secret before the old one: what was sealed stays readable.
        let rotated = Sealer::new(&format!("{}\n{}\n", SECRETS[1], SECRETS[0])).unwrap();
        assert_eq!(rotated.open(key, &seal), Some(snapshot));
        for place in 0..seal.len() {
            let mut bent = seal.clone();
            bent[place] ^= 1;
            assert_eq!(sealer.open(key, &bent), None, "byte {place}");
        }
    }

    #[test]
    fn a_file_s_seal_opens_for_its_field_of_its_directory_only() {
        let sealer = Sealer::new(SECRETS[0]).unwrap();
        let field = sealer.file_field("openid", "a/name");
        assert!(field != sealer.file_field("other", "a/name") && !field.contains("name"));
        let seal = sealer.seal_file("openid", &field, b"content").unwrap();
        let rotated = Sealer::new(&format!("{}\n{}\n", SECRETS[1], SECRETS[0])).unwrap();
        assert_eq!(rotated.open_file("openid", &field, &seal), Some(b"content".to_vec()));
        assert_eq!(sealer.open_file("other", &field, &seal), None);
        assert_eq!(sealer.open_file("openid", &sealer.file_field("openid", "b"), &seal), None);
        assert_eq!(Sealer::new(SECRETS[1]).unwrap().open_file("openid", &field, &seal), None);
    }

    #[test]
    fn only_what_a_known_secret_signed_is_signed() {
        let sealer = Sealer::new(SECRETS[0]).unwrap();
        let signature = sealer.sign(&[b"key", b"value"]);
        assert!(sealer.is_signed(&[b"key", b"value"], &signature));
        assert!(!sealer.is_signed(&[b"kez", b"value"], &signature));
        assert!(!Sealer::new(SECRETS[1]).unwrap().is_signed(&[b"key", b"value"], &signature));
        let rotated = Sealer::new(&format!("{}\n{}\n", SECRETS[1], SECRETS[0])).unwrap();
        assert!(rotated.is_signed(&[b"key", b"value"], &signature));
        for place in 0..SIGNATURE {
            let mut bent = signature;
            bent[place] ^= 1;
            assert!(!sealer.is_signed(&[b"key", b"value"], &bent), "byte {place}");
        }
    }

    #[test]
    fn a_renewed_secret_seals_at_once_and_nothing_else_changes() {
        let (key, snapshot) = snapshot();
        let sealer = Sealer::new(SECRETS[0]).unwrap();
        let (seal, digest) = (sealer.seal(key, &snapshot).unwrap(), *sealer.digest_secret());
        let field = sealer.file_field("openid", "a");
        assert!(sealer.renew("short").is_err());
        assert_eq!(sealer.open(key, &seal).as_ref(), Some(&snapshot), "what was taken before stays");
        sealer.renew(&format!("{}\r\n{}\n", SECRETS[1], SECRETS[0])).unwrap();
        assert_eq!(sealer.open(key, &seal).as_ref(), Some(&snapshot));
        let new = sealer.seal(key, &snapshot).unwrap();
        assert_eq!(Sealer::new(SECRETS[1]).unwrap().open(key, &new).as_ref(), Some(&snapshot));
        assert_eq!((*sealer.digest_secret(), sealer.file_field("openid", "a")), (digest, field.clone()));
        let file = sealer.seal_file("openid", &field, b"content").unwrap();
        assert_eq!(sealer.open_file("openid", &field, &file), Some(b"content".to_vec()));
        sealer.renew(SECRETS[1]).unwrap();
        assert_eq!(sealer.open(key, &seal), None, "the old one is gone");
    }

    #[test]
    fn a_weak_secret_is_refused() {
        for text in ["", "\n \n", "short", &format!("{}\nshort", SECRETS[0])] {
            assert!(Sealer::new(text).is_err(), "{text:?}");
        }
        assert_eq!(format!("{:?}", Sealer::new(SECRETS[0])), "Ok(Sealer(…))");
    }

    #[test]
    fn a_secret_is_made_once_and_for_its_owner_only() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let (key, snapshot) = snapshot();
        let seal = Sealer::read_or_make(&path).unwrap().seal(key, &snapshot).unwrap();
        assert_eq!(Sealer::read_or_make(&path).unwrap().open(key, &seal), Some(snapshot));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    proptest! {
        #[test]
        fn rubbish_is_no_seal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealer = Sealer::new(SECRETS[0]).unwrap();
            prop_assert_eq!(sealer.open(SessionKey::from([0; 16]), &bytes), None);
        }
    }
}
