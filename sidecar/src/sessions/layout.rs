//! Where Odoo keeps a session's file, and what is none.

use affinity::{
    IdProof, SessionKey,
    key::{LONGEST_ID, stable_part},
};

/// What ends a file's name in Odoo 15 and older, and begins it.
const OLD_PREFIX: &str = "werkzeug_";
const OLD_SUFFIX: &str = ".sess";

/// A session id that may be a file's name: 32 to 128 of `A-Z a-z 0-9 - _`. It is a secret: `Debug` does
/// not show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sid(Box<str>);

impl Sid {
    /// Takes a text for an id, if it can be one: nothing that leads to another folder can.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        ((32..=LONGEST_ID).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The session's key.
    pub(crate) fn key(&self) -> SessionKey {
        SessionKey::of_session_id(self.0.as_bytes())
    }

    /// What whoever holds the id can show.
    pub(crate) fn proof(&self) -> IdProof {
        IdProof::of_session_id(self.0.as_bytes())
    }

    /// What all ids of the session begin with, if it may have several.
    pub(crate) fn stable_part(&self) -> Option<&str> {
        let stable = stable_part(self.0.as_bytes()).len();
        self.0.get(..stable).filter(|part| part.len() < self.0.len())
    }
}

impl std::fmt::Debug for Sid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sid({})", self.key())
    }
}

/// How a sessions directory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Odoo 16 and later: a folder for the first two characters, in it a file named by the id.
    Folders,
    /// Odoo 15 and older: `werkzeug_ID.sess`.
    Flat,
}

impl Layout {
    /// Takes apart a path below a sessions directory, as its folder and the file's name.
    pub(crate) fn read(folder: Option<&str>, name: &str) -> Option<(Self, Sid)> {
        match folder {
            Some(folder) => {
                let sid = Sid::new(name)?;
                (sid.folder() == Some(folder)).then_some((Self::Folders, sid))
            }
            None => {
                let sid = name.strip_prefix(OLD_PREFIX)?.strip_suffix(OLD_SUFFIX)?;
                Some((Self::Flat, Sid::new(sid)?))
            }
        }
    }

    /// The folder of an id's file below the sessions directory, if it is not that itself.
    pub(crate) fn folder(self, sid: &Sid) -> Option<&str> {
        match self {
            Self::Folders => sid.folder(),
            Self::Flat => None,
        }
    }

    /// The name of an id's file.
    pub(crate) fn name(self, sid: &Sid) -> String {
        match self {
            Self::Folders => sid.as_str().to_owned(),
            Self::Flat => format!("{OLD_PREFIX}{}{OLD_SUFFIX}", sid.as_str()),
        }
    }
}

impl Sid {
    fn folder(&self) -> Option<&str> {
        self.0.get(..2)
    }
}

/// Whether a name is that of a folder of session files.
pub(crate) fn is_folder(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    name.len() == 2 && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_layouts_are_read_and_written() {
        let (old, new) = ("0123456789abcdef0123456789abcdef01234567", "-a".repeat(42));
        let (layout, sid) = Layout::read(Some("-a"), &new).unwrap();
        assert_eq!(
            (layout, layout.folder(&sid), layout.name(&sid)),
            (Layout::Folders, Some("-a"), new.clone())
        );
        assert_eq!(sid.stable_part(), Some(&new[..42]));
        let (layout, sid) = Layout::read(Some("01"), old).unwrap();
        assert_eq!((layout, sid.stable_part()), (Layout::Folders, None));
        let name = format!("werkzeug_{old}.sess");
        let (layout, sid) = Layout::read(None, &name).unwrap();
        assert_eq!((layout, layout.folder(&sid), layout.name(&sid)), (Layout::Flat, None, name));
    }

    #[test]
    fn what_is_no_session_is_not_taken_for_one() {
        let sid = "0123456789abcdef0123456789abcdef01234567";
        for (folder, name) in [
            (None, sid),
            (Some("02"), sid),
            (None, "tmp12345678.__wz_sess"),
            (Some("tm"), "tmp12345678.__wz_sess"),
            (None, "werkzeug_../../etc/passwd.sess"),
            (Some(".."), "../etc/passwd/////////////////////////////"),
            (Some("01"), ""),
        ] {
            assert_eq!(Layout::read(folder, name), None, "{folder:?} {name:?}");
        }
        assert!(is_folder("a-") && !is_folder("..") && !is_folder("abc") && !is_folder("é"));
        assert!(!format!("{:?}", Sid::new(sid)).contains("0123"));
    }

    proptest! {
        #[test]
        fn a_path_that_is_read_is_written_alike(folder in proptest::option::of(".{0,3}"), name in ".{0,140}") {
            if let Some((layout, sid)) = Layout::read(folder.as_deref(), &name) {
                prop_assert_eq!(layout.folder(&sid), folder.as_deref());
                prop_assert_eq!(layout.name(&sid), name.clone());
                prop_assert!(!name.contains('/') && !name.contains(".."));
            }
        }
    }
}
