//! One Odoo stand-in.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{
    browser,
    envoy::Endpoint,
    process::{Process, free_port},
    program,
    stack::Options,
};

/// One Odoo stand-in.
pub struct Node {
    /// Its name.
    pub id: String,
    /// Its ports.
    pub endpoint: Endpoint,
    /// Its process, while it runs.
    pub process: Option<Process>,
    place: usize,
}

impl Node {
    /// As many as there are to be, none of which runs.
    ///
    /// # Errors
    /// If no port is free.
    pub fn all(options: &Options) -> Result<Vec<Self>> {
        let node = |place: usize| {
            let host =
                options.hosts.get(&place).map_or(IpAddr::from(Ipv4Addr::LOCALHOST), |host| host.address);
            let endpoint =
                Endpoint { http: (host, free_port()?).into(), gevent: (host, free_port()?).into() };
            Ok(Self { id: format!("odoo-{}", place + 1), endpoint, process: None, place })
        };
        (0..options.nodes).map(node).collect()
    }

    /// Starts it, with its files and the database in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&mut self, options: &Options, folder: &Path) -> Result<()> {
        let program = program("odoo-standin");
        let host = options.hosts.get(&self.place);
        let mut command = host.map_or_else(|| Command::new(&program), |host| host.command(&program));
        let Endpoint { http, gevent } = self.endpoint;
        command.args(["--id", &self.id, "--profile", &options.profile.to_string()]);
        command.args(["--http", &http.to_string(), "--gevent", &gevent.to_string()]);
        command.arg("--data-dir").arg(folder.join(&self.id));
        command.arg("--shared-dir").arg(folder.join("database"));
        let offset = options.clock_offsets.get(self.place).copied().unwrap_or_default();
        command.args(["--clock-offset-secs", &offset.to_string()]);
        command.args(&options.standin_args);
        let mut process = Process::start(&self.id, command, &folder.join(format!("{}.log", self.id)))?;
        let healthy =
            async || browser::get(http, "/web/health").await.ok().filter(|answer| answer.status == 200);
        process.wait(Duration::from_secs(10), healthy).await?;
        self.process = Some(process);
        Ok(())
    }
}
