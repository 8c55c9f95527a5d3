//! `mooring owner`: where a session's requests go, and why.

use std::{fs, io::Read, path::PathBuf};

use affinity::{SessionKey, cookie, wire::Explanation};

use crate::{
    asking::{AskError, Sidecar},
    cli::OwnerOf,
};

/// The most that is read: a cookie of a browser has 4 KB.
const LONGEST: u64 = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0} holds no session id: expected one, or a Cookie header with session_id=")]
    NoSession(PathBuf),
}

/// Prints where a session's requests go.
///
/// # Errors
/// If the file cannot be read or holds no session, or no sidecar answers.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: OwnerOf) -> Result<(), OwnerError> {
    let text = read(&options.file).map_err(|error| OwnerError::Read(options.file.clone(), error))?;
    let sid = session_id(&text).ok_or_else(|| OwnerError::NoSession(options.file.clone()))?;
    let key = SessionKey::of_session_id(sid);
    let explained: Explanation =
        Sidecar::new(&options.asked)?.get(&format!("/v1/explanations/{key}")).await?;
    if options.json {
        println!("{}", serde_json::to_string(&explained).unwrap_or_default());
    } else {
        print!("{}", text_of(&explained));
    }
    Ok(())
}

fn read(file: &PathBuf) -> std::io::Result<Vec<u8>> {
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

fn text_of(explained: &Explanation) -> String {
    let Explanation { key, owner, nodes, reason } = explained;
    let mut text = format!("session key  {key}\n");
    text += &match owner {
        Some(owner) => format!("owner        {} (epoch {})\n", owner.node, owner.epoch),
        None => "owner        nobody\n".to_owned(),
    };
    match nodes.split_first() {
        Some((first, rest)) => {
            text += &format!("goes to      {first}: {reason}\n");
            let rest: Vec<&str> = rest.iter().map(|node| node.as_str()).collect();
            if !rest.is_empty() {
                text += &format!("then         {}\n", rest.join(", "));
            }
        }
        None => text += "goes to      wherever Envoy's own hashing sends it: no node is known\n",
    }
    text
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
