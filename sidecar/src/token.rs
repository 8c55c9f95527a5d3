//! The secret that filters and operators show to a sidecar that listens beyond its host.

use std::{
    fmt, io,
    path::Path,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use crate::secret_file;

/// The fewest characters of a token.
const SHORTEST: usize = 16;
/// How long a token is still taken that the file has no more: Envoys are told of the new one one by one.
const PREVIOUS: Duration = Duration::from_secs(600);

/// A shared token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads the token to show from a file: its first.
    ///
    /// # Errors
    /// If the file cannot be read or has none, or a line of it is too short or has spaces.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        parse(&secret_file::read(path)?)?
            .into_iter()
            .next()
            .ok_or_else(|| secret_file::invalid("it is empty"))
    }

    /// What to send in an `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether an `Authorization` header shows it, in a time that does not tell how nearly.
    fn is_shown_by(&self, header: &[u8]) -> bool {
        blake3::hash(header) == blake3::hash(self.header().as_bytes())
    }
}

/// The tokens of a text, one a line; one at least.
fn parse(text: &str) -> io::Result<Vec<Token>> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_token = |line: &&str| line.len() >= SHORTEST && line.bytes().all(|byte| byte.is_ascii_graphic());
    if lines.is_empty() || !lines.iter().all(is_token) {
        let problem =
            format!("expected a line of {SHORTEST} or more characters without spaces, or several such");
        return Err(secret_file::invalid(problem));
    }
    Ok(lines.into_iter().map(|line| Token(line.to_owned())).collect())
}

/// The tokens that are taken: those of the file, and for a while those that it had before.
#[derive(Debug)]
pub(crate) struct Tokens(RwLock<Taken>);

#[derive(Debug)]
struct Taken {
    present: Vec<Token>,
    previous: Option<(Vec<Token>, Instant)>,
}

impl Tokens {
    /// Reads the tokens of a file, one a line.
    ///
    /// # Errors
    /// As [`Token::read`].
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let present = parse(&secret_file::read(path)?)?;
        Ok(Self(RwLock::new(Taken { present, previous: None })))
    }

    /// Takes those of a file's new text.
    ///
    /// # Errors
    /// If one is none; then nothing changes.
    pub(crate) fn renew(&self, text: &str) -> io::Result<()> {
        let new = parse(text)?;
        let mut taken = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if taken.present != new {
            let old = std::mem::replace(&mut taken.present, new);
            taken.previous = Some((old, Instant::now() + PREVIOUS));
        }
        Ok(())
    }

    /// Whether an `Authorization` header shows one of them.
    pub(crate) fn are_shown_by(&self, header: Option<&[u8]>) -> bool {
        self.are_shown_at(Instant::now(), header)
    }

    fn are_shown_at(&self, now: Instant, header: Option<&[u8]>) -> bool {
        let taken = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let previous = taken.previous.iter().filter(|(_, until)| now < *until).flat_map(|(tokens, _)| tokens);
        header.is_some_and(|shown| {
            // Each of them, so that the time does not tell which.
            taken.present.iter().chain(previous).fold(false, |found, token| found | token.is_shown_by(shown))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_token_is_a_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, good) in [
            ("0123456789abcdef\n", true),
            ("\u{feff}0123456789abcdef\r\n", true),
            ("0123456789abcdef\n0123456789ABCDEF\n\n", true),
            ("0123456789abcdef\nshort\n", false),
            ("short", false),
            ("", false),
            ("0123456789 abcdef", false),
        ] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(Token::read(file.path()).is_ok(), good, "{text:?}");
            assert_eq!(Tokens::read(file.path()).is_ok(), good, "{text:?}");
        }
        fs::write(file.path(), "0123456789abcdef\n0123456789ABCDEF\n").unwrap();
        assert_eq!(Token::read(file.path()).unwrap().header(), "Bearer 0123456789abcdef");
        let tokens = Tokens::read(file.path()).unwrap();
        for good in [&b"Bearer 0123456789abcdef"[..], b"Bearer 0123456789ABCDEF"] {
            assert!(tokens.are_shown_by(Some(good)));
        }
        for wrong in [&b"Bearer 0123456789abcdeX"[..], b"0123456789abcdef", b"Bearer ", b""] {
            assert!(!tokens.are_shown_by(Some(wrong)));
        }
        assert!(!tokens.are_shown_by(None));
        assert!(!format!("{tokens:?}").contains("0123"));
    }

    #[test]
    fn a_renewed_token_counts_at_once_and_the_one_before_for_a_while() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "the-first-token-of-all\n").unwrap();
        let tokens = Tokens::read(file.path()).unwrap();
        assert!(tokens.renew("too short").is_err());
        tokens.renew("the-first-token-of-all").unwrap();
        tokens.renew("the-second-token-of-all").unwrap();
        let shown = |now, token: &str| tokens.are_shown_at(now, Some(format!("Bearer {token}").as_bytes()));
        let now = Instant::now();
        assert!(shown(now, "the-second-token-of-all") && shown(now, "the-first-token-of-all"));
        let late = now + PREVIOUS;
        assert!(shown(late, "the-second-token-of-all") && !shown(late, "the-first-token-of-all"));
        tokens.renew("the-third-token-of-all").unwrap();
        assert!(shown(now, "the-second-token-of-all") && !shown(now, "the-first-token-of-all"));
    }
}
