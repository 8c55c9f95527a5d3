//! The session that an attacker has of their own.

use anyhow::{Context, Result, ensure};
use harness::browser::{Browser, http1};

use crate::{
    attackers::Attacker,
    door::{Answer, Door},
};

/// Who is logged in, and where.
pub struct Own {
    pub sid: String,
    pub node: String,
    pub login: String,
}

impl Own {
    /// Logs in, as nobody whom anybody else knows.
    pub async fn log_in(attacker: &Attacker) -> Result<Self> {
        let Door::Tcp(address) = attacker.door else { anyhow::bail!("no address") };
        let mut browser = Browser::new(http1(), address);
        let login = format!("mallory{}", rand::random::<u32>());
        let node = browser.log_in(&login).await?.node().to_owned();
        ensure!(!node.is_empty(), "no node");
        Ok(Self { sid: browser.sid.context("no session")?, node, login })
    }

    /// Keeps the id that a rotation made of it.
    pub fn follow(&mut self, answer: &Answer) {
        if let Some(sid) = answer.sid().filter(|sid| sid.get(..42) == self.sid.get(..42)) {
            self.sid = sid.to_owned();
        }
    }
}
