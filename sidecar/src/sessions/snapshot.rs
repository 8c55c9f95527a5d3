//! One session as its files: what is carried from node to node, all of it or nothing.

use affinity::{IdProof, SessionKey};
use serde::Deserialize;
use serde_json::Value;

use super::layout::{Layout, Sid};

/// One file of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) sid: Sid,
    /// Nanoseconds since 1970: Odoo's clean-up goes by it.
    pub(crate) modified_ns: i64,
    pub(crate) content: Vec<u8>,
}

/// The files of one session: one, or several while Odoo 19 rotates its id softly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) layout: Layout,
    /// In the order in which they are to be written: whoever names another comes after it.
    files: Vec<File>,
}

/// 128 bits that tell snapshots apart.
pub(crate) type Digest = [u8; 16];

impl Snapshot {
    /// A snapshot of some files, of which there must be one, all of one session.
    pub(crate) fn new(layout: Layout, mut files: Vec<File>) -> Option<Self> {
        let key = files.first()?.sid.key();
        if files.iter().any(|file| file.sid.key() != key) {
            return None;
        }
        files.sort_by(|a, b| a.sid.cmp(&b.sid));
        files.dedup_by(|a, b| a.sid == b.sid);
        let sids: Vec<Sid> = files.iter().map(|file| file.sid.clone()).collect();
        files.sort_by_key(|file| sids.iter().any(|sid| *sid != file.sid && names(&file.content, sid)));
        Some(Self { layout, files })
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    pub(crate) fn key(&self) -> Option<SessionKey> {
        self.files.first().map(|file| file.sid.key())
    }

    /// A digest of the ids and contents, which a `secret` keeps from telling anything. Times are not in
    /// it: they change with every copy that is not exact.
    pub(crate) fn digest(&self, secret: &[u8; 32]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        for file in &self.files {
            for part in [file.sid.as_str().as_bytes(), &file.content] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        digest
    }

    /// Whether nobody is logged in. What cannot be read is taken for somebody's.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.files.iter().all(|file| is_anonymous(&file.content))
    }

    /// What shows that somebody holds the session whole: proofs of the id that Odoo works with now. An id that
    /// was rotated away is not it, nor is one that somebody made up, of whom Odoo may have saved a file of
    /// nobody's beside somebody's.
    pub(crate) fn proofs(&self) -> Vec<IdProof> {
        let of_nobody = self.is_anonymous();
        let present = self.files.iter().filter(|file| {
            !Rotated::of(&file.content).is_over() && (of_nobody || !is_anonymous(&file.content))
        });
        present.map(|file| file.sid.proof()).collect()
    }

    /// Whether a file names an id of this session that has no file: softly rotated, Odoo writes the old
    /// file before the new one, and who follows the old one alone is lost.
    pub(crate) fn is_torn(&self) -> bool {
        self.files.iter().any(|file| {
            let Some(stable) = file.sid.stable_part() else { return false };
            let Some(Value::String(next)) = Rotated::of(&file.content).next_sid else { return false };
            next.starts_with(stable) && !self.files.iter().any(|other| other.sid.as_str() == next)
        })
    }

    /// When the newest of the files was written, in nanoseconds since 1970.
    pub(crate) fn modified_ns(&self) -> i64 {
        self.files.iter().map(|file| file.modified_ns).max().unwrap_or_default()
    }
}

/// What a file says of its id's rotation, if Odoo 19 has begun one.
#[derive(Default, Deserialize)]
struct Rotated {
    #[serde(default)]
    next_sid: Option<Value>,
    #[serde(default)]
    deletion_time: Option<Value>,
}

impl Rotated {
    fn of(content: &[u8]) -> Self {
        serde_json::from_slice(content).unwrap_or_default()
    }

    /// Whether the id was given up for another.
    fn is_over(&self) -> bool {
        self.next_sid.is_some() || self.deletion_time.is_some()
    }
}

fn names(content: &[u8], sid: &Sid) -> bool {
    let wanted = sid.as_str().as_bytes();
    content.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether a file's content is of nobody: `"uid": null` in JSON (18 and later). Pickle (17 and older) is
/// never loaded; there the bytes say it: the text `uid`, remembered or not, then None.
fn is_anonymous(content: &[u8]) -> bool {
    if let Ok(Value::Object(session)) = serde_json::from_slice(content) {
        return session.get("uid").is_none_or(Value::is_null);
    }
    const UID: [&[u8]; 2] = [b"\x8c\x03uid", b"X\x03\x00\x00\x00uid"];
    UID.iter().any(|uid| {
        let after = content.windows(uid.len()).position(|window| window == *uid).map(|at| at + uid.len());
        let rest = after.and_then(|at| content.get(at..)).unwrap_or_default();
        // MEMOIZE; BINPUT or LONG_BINPUT and where.
        matches!(rest, [b'N', ..] | [0x94, b'N', ..] | [b'q', _, b'N', ..] | [b'r', _, _, _, _, b'N', ..])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sid(end: &str) -> Sid {
        Sid::new(&format!("{}{end:_<42}", "a".repeat(42))).unwrap()
    }

    fn file(end: &str, content: &str) -> File {
        File { sid: sid(end), modified_ns: 0, content: content.into() }
    }

    #[test]
    fn a_rotated_session_is_written_newest_first_and_never_torn() {
        let old = file("1", &format!(r#"{{"uid": 2, "next_sid": "{}"}}"#, sid("2").as_str()));
        let torn = Snapshot::new(Layout::Folders, vec![old.clone()]).unwrap();
        assert!(torn.is_torn());
        let new = file("2", r#"{"uid": 2}"#);
        let whole = Snapshot::new(Layout::Folders, vec![old.clone(), new.clone()]).unwrap();
        assert!(!whole.is_torn());
        assert_eq!(whole.files(), [new, old]);
        // An id of another session is none of its own.
        let foreign = file("1", r#"{"next_sid": "bbbb"}"#);
        assert!(!Snapshot::new(Layout::Folders, vec![foreign]).unwrap().is_torn());
    }

    #[test]
    fn a_session_is_held_by_the_id_that_odoo_works_with() {
        let proofs = |files: &[&File]| {
            Snapshot::new(Layout::Folders, files.iter().copied().cloned().collect()).unwrap().proofs()
        };
        let old =
            file("1", &format!(r#"{{"uid": 2, "next_sid": "{}", "deletion_time": 7.5}}"#, sid("2").as_str()));
        let new = file("2", r#"{"uid": 2, "next_sid": null, "gc_previous_sessions": true}"#);
        let made_up = file("3", r#"{"uid": null}"#);
        assert_eq!(proofs(&[&old, &new, &made_up]), [sid("2").proof()]);
        assert_eq!(proofs(&[&file("1", r#"{"uid": 2, "deletion_time": 7.5}"#), &new]), [sid("2").proof()]);
        assert_eq!(proofs(&[&made_up]), [sid("3").proof()], "nobody's, and nobody else's");
        assert_eq!(proofs(&[&file("1", "a pickle")]), [sid("1").proof()]);
        assert!(proofs(&[&old]).is_empty(), "half a rotation");
    }

    #[test]
    fn a_snapshot_is_of_one_session() {
        let other = File { sid: Sid::new(&"b".repeat(84)).unwrap(), modified_ns: 0, content: vec![] };
        assert_eq!(Snapshot::new(Layout::Folders, vec![file("1", ""), other]), None);
        assert_eq!(Snapshot::new(Layout::Folders, vec![]), None);
    }

    #[test]
    fn who_is_logged_in_is_seen_without_loading_a_pickle() {
        let memoized = |value: &[u8]| [&b"\x80\x05}\x94(\x8c\x03uid\x94"[..], value, b"u."].concat();
        let put = |value: &[u8]| [&b"\x80\x02}q\x00(X\x03\x00\x00\x00uidq\x07"[..], value, b"u."].concat();
        for (content, anonymous) in [
            (br#"{"uid": null}"#.to_vec(), true),
            (br#"{"login": null}"#.to_vec(), true),
            (br#"{"uid": 2}"#.to_vec(), false),
            (memoized(b"N"), true),
            (memoized(b"K\x02"), false),
            (put(b"N"), true),
            (put(b"K\x02"), false),
            (b"".to_vec(), false),
            (b"rubbish".to_vec(), false),
        ] {
            assert_eq!(is_anonymous(&content), anonymous, "{content:?}");
        }
    }

    #[test]
    fn the_digest_is_of_ids_and_contents() {
        let digest = |end: &str, content: &str, secret: u8| {
            Snapshot::new(Layout::Folders, vec![file(end, content)]).unwrap().digest(&[secret; 32])
        };
        assert_eq!(digest("1", "x", 1), digest("1", "x", 1));
        assert_ne!(digest("1", "x", 1), digest("1", "y", 1));
        assert_ne!(digest("1", "x", 1), digest("2", "x", 1));
        assert_ne!(digest("1", "x", 1), digest("1", "x", 2));
    }

    proptest! {
        #[test]
        fn any_content_is_taken(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let file = File { sid: sid("1"), modified_ns: 0, content };
            let snapshot = Snapshot::new(Layout::Folders, vec![file]).unwrap();
            let _ = (snapshot.is_anonymous(), snapshot.is_torn());
        }
    }
}
