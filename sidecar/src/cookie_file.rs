//! The session that an operator means: its id is read from a file and never from the command line, where
//! whoever can list processes would read it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use affinity::{SessionKey, cookie};

/// The most that is read: a cookie of a browser has 4 KB.
const LONGEST: u64 = 64 << 10;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CookieFileError {
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0} holds no session id: expected one, or a Cookie header with session_id=")]
    NoSession(PathBuf),
}

/// The session whose id or Cookie header a file holds; `-` is the standard input.
///
/// # Errors
/// If it cannot be read or holds no session.
pub(crate) fn session(file: &Path) -> Result<SessionKey, CookieFileError> {
    let text = read(file).map_err(|error| CookieFileError::Read(file.to_owned(), error))?;
    let sid = session_id(&text).ok_or_else(|| CookieFileError::NoSession(file.to_owned()))?;
    Ok(SessionKey::of_session_id(sid))
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(LONGEST).read_to_end(&mut bytes)?;
    } else {
        fs::File::open(file)?.take(LONGEST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The session id in a Cookie header, with its name or without, or alone on its line.
fn session_id(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty())?;
    let header = match line.split_at_checked(7) {
        Some((name, rest)) if name.eq_ignore_ascii_case(b"cookie:") => rest,
        _ => line,
    };
    let alone = || Some(header).filter(|sid| !sid.iter().any(|byte| b"=; \t".contains(byte)));
    cookie::session_id(header).or_else(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_found_in_what_people_have() {
        for text in
            ["abc", "abc\n", "session_id=abc; tz=UTC", "Cookie: tz=UTC; session_id=abc\r\n", "\n  abc "]
        {
            assert_eq!(session_id(text.as_bytes()), Some(&b"abc"[..]), "{text:?}");
        }
        for text in ["", "\n", "tz=UTC", "Cookie: tz=UTC", "two words"] {
            assert_eq!(session_id(text.as_bytes()), None, "{text:?}");
        }
    }
}
