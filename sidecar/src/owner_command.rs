//! `mooring owner`: where a session's requests go, and why.

use affinity::wire::Explanation;

use crate::{
    asking::{AskError, Sidecar},
    cli::OwnerOf,
    cookie_file::{self, CookieFileError},
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{0}")]
    File(#[from] CookieFileError),
}

/// Prints where a session's requests go.
///
/// # Errors
/// If the file cannot be read or holds no session, or no sidecar answers.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: OwnerOf) -> Result<(), OwnerError> {
    let key = cookie_file::session(&options.file)?;
    let explained: Explanation =
        Sidecar::new(&options.asked)?.get(&format!("/v1/explanations/{key}")).await?;
    if options.json {
        println!("{}", serde_json::to_string(&explained).unwrap_or_default());
    } else {
        print!("{}", text_of(&explained));
    }
    Ok(())
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
