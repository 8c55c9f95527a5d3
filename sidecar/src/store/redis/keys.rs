//! The names of everything in Redis, in one place.
//!
//! | key | what |
//! |---|---|
//! | `PREFIX:owner:{KEY}` | a session: a hash of its owner's `node` and `epoch`, and of its copy, where sessions are carried: `version`, `digest`, `anonymous`, `ended`, the sealed `seal`, and `at:NODE` for the version on a node's disk |
//! | `PREFIX:{directory}:changes` | the stream of changes |
//! | `PREFIX:{directory}:told` | how many changes there have been |
//! | `PREFIX:{directory}:copies` | the stream of what happens to copies |
//! | `PREFIX:{directory}:copied` | how much that has been |
//! | `PREFIX:value:{KEY}`, `PREFIX:value:{KEY}:lease` | a value of the ORM cache, and the token of who computes it |
//! | `PREFIX:{directory}:stale` | the stream of what the ORM cache need not keep |
//! | `PREFIX:{directory}:staled` | how much that has been |
//! | `PREFIX:{directory}:generation` | a random number: whoever finds another one faces another store |
//! | `PREFIX:{directory}:nodes` | a hash of the nodes that register themselves |
//! | `PREFIX:{directory}:drains` | a hash of what operators last said of nodes: 1 for drained, else 0, and when |
//! | `PREFIX:{directory}:sidecars` | a hash of what each sidecar tells: its list of nodes, and the sessions it sees in use |
//! | `PREFIX:{directory}:cron` | the token and the name of who has the lease of scheduled jobs |
//! | `PREFIX:{directory}:remembers` | since when this store remembers leases, in milliseconds |
//! | `PREFIX:{directory}:try:…` | whether Redis does what is needed: made and removed in one step |
//! | `PREFIX:files:{SET}` | the files of a replicated directory: a hash of their sealed records, of how many changes were `told`, and of its own `generation` |
//! | `PREFIX:files:{SET}:order`, `PREFIX:files:{SET}:gone` | in which order they changed, and when those went that did |
//!
//! The braces are literal: Redis Cluster spreads sessions over its slots by what they enclose, and
//! keeps the rest, which scripts use together, in one.

use affinity::SessionKey;

/// A stream whose entries are numbered, and the key of the last one's number.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) entries: String,
    pub(super) told: String,
}

/// The names under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    pub(super) changes: Stream,
    pub(super) copies: Stream,
    pub(super) stale: Stream,
    pub(super) generation: String,
    pub(super) nodes: String,
    pub(super) drains: String,
    pub(super) sidecars: String,
    pub(super) cron: String,
    pub(super) remembers: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let name = |part: &str| format!("{prefix}:{{directory}}:{part}");
        Self {
            changes: Stream { entries: name("changes"), told: name("told") },
            copies: Stream { entries: name("copies"), told: name("copied") },
            stale: Stream { entries: name("stale"), told: name("staled") },
            generation: name("generation"),
            nodes: name("nodes"),
            drains: name("drains"),
            sidecars: name("sidecars"),
            cron: name("cron"),
            remembers: name("remembers"),
            prefix: prefix.to_owned(),
        }
    }

    /// Keys on which anything may be tried.
    pub(super) fn tries(&self) -> [String; 5] {
        ["text", "hash", "set", "order", "stream"]
            .map(|kind| format!("{}:{{directory}}:try:{kind}", self.prefix))
    }

    pub(super) fn owner(&self, key: SessionKey) -> String {
        format!("{}:owner:{{{key}}}", self.prefix)
    }

    /// A value of the ORM cache.
    pub(super) fn value(&self, key: &str) -> String {
        format!("{}:value:{{{key}}}", self.prefix)
    }

    /// The lease of who computes it.
    pub(super) fn value_lease(&self, key: &str) -> String {
        format!("{}:lease", self.value(key))
    }

    /// A replicated directory's files, in which order they changed, and when those went that did.
    pub(super) fn files(&self, set: &str) -> [String; 3] {
        let name = format!("{}:files:{{{set}}}", self.prefix);
        [name.clone(), format!("{name}:order"), format!("{name}:gone")]
    }

    /// The pattern of all owners' keys.
    pub(super) fn owners(&self) -> String {
        // A prefix may have characters that mean something in a pattern.
        let literal: String = self
            .prefix
            .chars()
            .flat_map(|letter| ['\\', letter].into_iter().skip(usize::from(!r"*?[]\".contains(letter))))
            .collect();
        format!("{literal}:owner:{{*}}")
    }

    /// The session of an owner's key.
    pub(super) fn session(&self, name: &str) -> Option<SessionKey> {
        let key = name.strip_prefix(&self.prefix)?.strip_prefix(":owner:{")?.strip_suffix('}')?;
        key.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_back_from_its_key() {
        let key = SessionKey::of_session_id(b"x");
        for prefix in ["mooring", "a:b", "we*rd[1]"] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.session(&keys.owner(key)), Some(key));
            assert_eq!(keys.session("other:owner:{00}"), None);
        }
        assert_eq!(Keys::new("we*rd").owners(), r"we\*rd:owner:{*}");
    }
}
