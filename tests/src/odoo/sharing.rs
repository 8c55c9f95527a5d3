//! Nodes whose ORM caches are shared, and what these compute.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Error, Result, ensure};

use super::{DATABASE, OWNER, Odoo, Postgres};
use crate::tools;

impl Odoo {
    /// Has a node share its ORM caches, if it is to, and count what they compute.
    pub(super) fn share(&self, place: usize, command: &mut Command) -> Result<()> {
        if self.cache_sockets.iter().all(Option::is_none) {
            return Ok(());
        }
        let root = crate::root();
        let tests = root.join("tests/odoo-addons");
        let folders = [self.tree.folder.join("addons"), root.join("addon"), tests];
        let folders = folders.map(|folder| folder.display().to_string()).join(",");
        command.arg("--addons-path").arg(folders).env("MOORING_COUNT", self.count(place));
        let Some(socket) = &self.cache_sockets[place] else {
            command.arg("--load=mooring_count,base,web");
            return Ok(());
        };
        let config = self.folder.path().join(format!("node-{}.conf", place + 1));
        // A machine that is busy with tests is slow.
        let text = format!(
            "[options]\n[mooring]\ncache_socket = {}\ntimeout_ms = 500\nwait_ms = 4000\n",
            socket.display()
        );
        fs::write(&config, text)?;
        command.arg("--config").arg(config).arg("--load=mooring_count,mooring,base,web");
        Ok(())
    }

    fn count(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("node-{}.computed", place + 1))
    }

    /// What the ORM caches of some nodes computed since this was asked last: calls, with the milliseconds that
    /// each took.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn computed(&self, places: &[usize]) -> Result<Vec<(String, f64)>> {
        let mut calls = Vec::new();
        for place in places {
            let path = self.count(*place);
            let lines = fs::read_to_string(&path).unwrap_or_default();
            let call = |line: &str| {
                let (took, call) = line.split_once(' ')?;
                Some((call.to_owned(), took.parse().ok()?))
            };
            calls.extend(lines.lines().filter_map(call));
            fs::write(path, "")?;
        }
        Ok(calls)
    }

    /// Has all workers clear their ORM caches; all but those that some signals, such as "routing", are for.
    ///
    /// # Errors
    /// If that fails.
    pub fn invalidate(&self, except: &[&str]) -> Result<()> {
        // A signal is a sequence's next value; from Odoo 19 on a table's next row.
        let signals = self.sql(
            "SELECT 'SELECT nextval(' || quote_literal(relname) || ')' FROM pg_class
              WHERE relkind = 'S' AND relname ~ '^base_cache_signaling'
             UNION ALL
             SELECT 'INSERT INTO ' || relname || ' DEFAULT VALUES' FROM pg_class
              WHERE relkind = 'r' AND relname ~ '^orm_signaling_' AND relname <> 'orm_signaling_registry'",
        )?;
        let signals: Vec<&str> =
            signals.lines().filter(|signal| !except.iter().any(|name| signal.contains(name))).collect();
        ensure!(!signals.is_empty(), "this Odoo has no signals");
        self.sql(&signals.join(";")).map(drop)
    }

    /// What a statement prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let psql =
            tools::on_path("psql").map_or_else(|| Ok(Postgres::programs()?.join("psql")), Ok::<_, Error>)?;
        let mut command = Command::new(psql);
        command
            .arg("--host")
            .arg(&self.postgres.sockets)
            .args(["-qAt", "-U", OWNER, DATABASE, "-c", statement]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What a node has logged.
    pub fn logged(&self, place: usize) -> String {
        fs::read_to_string(self.log(place)).unwrap_or_default()
    }
}
