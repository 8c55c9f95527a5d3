//! A session's hash in Redis, read as its copy.

use std::collections::HashMap;

use affinity::NodeId;

use super::owner;
use crate::store::{Copy, StoreError};

/// Reads all fields of a session's hash; none if there are none.
pub(super) fn read(fields: HashMap<String, Vec<u8>>) -> Result<Option<Copy>, StoreError> {
    let text = |name: &str| fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
    let Some(node) = text("node") else { return Ok(None) };
    let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
    let epoch = number("epoch").ok_or_else(|| StoreError::Foreign(format!("{node} without an epoch")))?;
    let mut copy = Copy::none_yet(owner(node.to_owned(), epoch)?);
    copy.ended = fields.contains_key("ended");
    if let Some(version) = number("version") {
        copy.version = version;
        copy.anonymous = text("anonymous") == Some("1");
        copy.digest = fields.get("digest").and_then(|digest| digest[..].try_into().ok()).unwrap_or_default();
        copy.proofs =
            text("proofs").into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
        copy.seal = fields.get("seal").cloned().unwrap_or_default();
        for name in fields.keys() {
            let node = name.strip_prefix("at:").and_then(|node| NodeId::new(node).ok());
            copy.holders.extend(node.zip(number(name)));
        }
    }
    Ok(Some(copy))
}
