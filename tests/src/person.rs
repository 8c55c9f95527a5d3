//! Somebody who is logged in, and must stay where they are.

use anyhow::{Result, ensure};

use crate::browser::Browser;

/// A browser that is logged in, and where.
pub struct Person {
    /// Their browser.
    pub browser: Browser,
    /// Their name.
    pub login: String,
    /// The node that served their login.
    pub node: String,
}

impl Person {
    /// Logs in with a browser.
    ///
    /// # Errors
    /// If that does not succeed.
    pub async fn log_in(mut browser: Browser, login: String) -> Result<Self> {
        let node = browser.log_in(&login).await?.node().to_owned();
        Ok(Self { browser, login, node })
    }

    /// One request.
    ///
    /// # Errors
    /// If it is not served where they are logged in, or not as them.
    pub async fn works(&mut self) -> Result<()> {
        let answer = self.browser.get("/odoo").await?;
        ensure!(answer.status == 200, "{} got {}", self.login, answer.status);
        ensure!(answer.node() == self.node, "{} moved from {} to {}", self.login, self.node, answer.node());
        ensure!(answer.login() == self.login, "{} is logged in as {:?}", self.login, answer.login());
        Ok(())
    }
}
