//! Files that hold what is secret: read as they are meant, and again when they change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::task::spawn_blocking;

use crate::lasting::Lasting;

/// How often is looked whether a file changed. Only its content counts: it may be put in another's place by a
/// link to its folder, as in Kubernetes.
const LOOK: Duration = Duration::from_secs(2);
/// No secret is longer, nor are some certificates.
const LARGEST: u64 = 1 << 20;

/// The text of a file. A mark of its byte order is none of it: some editors write one.
///
/// # Errors
/// If it cannot be read, or is no text.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(invalid("it is too long for a secret"));
    }
    let text = fs::read_to_string(path)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The one line of a text.
///
/// # Errors
/// If there are none or several: which of them is meant?
pub(crate) fn only_line(text: String) -> io::Result<String> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), lines.next()) {
        (Some(line), None) => Ok(line.to_owned()),
        (None, _) => Err(invalid("it is empty: expected one line")),
        (Some(_), Some(_)) => Err(invalid("expected one line, found several")),
    }
}

/// An error about what a file holds.
pub(crate) fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

/// Hands a file's text over whenever it is another one, for as long as the process lives. What cannot be taken is
/// said, and what was taken before stays.
pub(crate) async fn follow(path: PathBuf, about: &'static str, mut take: impl FnMut(&str) -> io::Result<()>) {
    let (mut known, fault) = (None, Lasting::new(about));
    loop {
        let from = path.clone();
        let text = spawn_blocking(move || read(&from)).await.map_err(io::Error::other).flatten();
        match text {
            Ok(text) if known.as_ref() == Some(&text) => fault.works(),
            Ok(text) => match take(&text) {
                Ok(()) if known.replace(text).is_some() => tracing::info!("{about} was renewed"),
                Ok(()) => {}
                Err(error) => fault.failed(error),
            },
            Err(error) => fault.failed(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_one_line_whatever_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for text in ["pass word", "pass word\n", "pass word\r\n", "\u{feff}pass word\n", "\npass word\n\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).and_then(only_line).unwrap(), "pass word", "{text:?}");
        }
        for text in ["", "\n \n", "\u{feff}", "one\ntwo\n", "one\r\n\r\ntwo"] {
            fs::write(&path, text).unwrap();
            let error = read(&path).and_then(only_line).unwrap_err().to_string();
            assert!(error.contains("one line") && !error.contains("two"), "{error}");
        }
        fs::write(&path, b"\xff\xfeo\0").unwrap();
        assert!(read(&path).is_err(), "UTF-16");
        fs::write(&path, vec![b'a'; 2 << 20]).unwrap();
        assert!(read(&path).is_err());
    }
}
