//! The secret that filters and operators show to a sidecar that listens beyond its host.

use std::{fmt, fs, io, path::Path};

/// The fewest characters of a token.
const SHORTEST: usize = 16;

/// A shared token.
#[derive(Clone)]
pub(crate) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads a token from a file: its first line.
    ///
    /// # Errors
    /// If the file cannot be read, or the line is too short or has spaces.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.len() < SHORTEST || line.bytes().any(|byte| !byte.is_ascii_graphic()) {
            let problem = format!("expected a line of {SHORTEST} or more characters without spaces");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(Self(line.to_owned()))
    }

    /// What to send in an `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether an `Authorization` header shows it, in a time that does not tell how nearly.
    pub(crate) fn is_shown_by(&self, header: Option<&[u8]>) -> bool {
        let expected = self.header();
        header.is_some_and(|shown| blake3::hash(shown) == blake3::hash(expected.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, good) in
            [("0123456789abcdef\n", true), ("short", false), ("", false), ("0123456789 abcdef", false)]
        {
            fs::write(file.path(), text).unwrap();
            assert_eq!(Token::read(file.path()).is_ok(), good, "{text:?}");
        }
        fs::write(file.path(), "0123456789abcdef\nignored\n").unwrap();
        let token = Token::read(file.path()).unwrap();
        assert!(token.is_shown_by(Some(b"Bearer 0123456789abcdef")));
        for wrong in [&b"Bearer 0123456789abcdeX"[..], b"0123456789abcdef", b"Bearer ", b""] {
            assert!(!token.is_shown_by(Some(wrong)));
        }
        assert!(!token.is_shown_by(None));
        assert!(!format!("{token:?}").contains("0123"));
    }
}
