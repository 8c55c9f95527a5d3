//! What Odoo's configuration files say, each by itself and beside the others.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use configparser::ini::{Ini, IniDefault};

use super::{Findings, Severity, servers::Servers};
use crate::cli::OdooConf;

/// A configuration file that could be read.
struct Conf<'a> {
    /// The node that has it.
    node: &'a str,
    path: &'a Path,
    options: BTreeMap<String, String>,
}

impl Conf<'_> {
    /// Reads it as Odoo does: a comment behind a value is part of the value.
    fn read(spec: &OdooConf) -> Result<Conf<'_>, String> {
        let text = fs::read_to_string(&spec.path).map_err(|error| error.to_string())?;
        let mut defaults = IniDefault::default();
        defaults.comment_symbols = vec!['#', ';'];
        defaults.inline_comment_symbols = Some(vec![]);
        defaults.delimiters = vec!['=', ':'];
        let sections = Ini::new_from_defaults(defaults).read(text)?;
        let options = sections.get("options").ok_or("it has no section [options]")?;
        let options = options.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        Ok(Conf { node: spec.node.as_str(), path: &spec.path, options: options.collect() })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str).filter(|value| !value.is_empty() && *value != "False")
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.options.get(name).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
    }

    fn about(&self) -> String {
        format!("{} ({})", self.node, self.path.display())
    }

    fn data_dir(&self) -> Option<PathBuf> {
        self.get("data_dir").map(PathBuf::from)
    }

    /// Which directory lies at a path below its data_dir.
    fn directory(&self, name: &str) -> Option<(u64, u64)> {
        fs::metadata(self.data_dir()?.join(name)).ok().map(|meta| (meta.dev(), meta.ino()))
    }
}

/// Examines the files.
pub(super) fn examine(specs: &[OdooConf], servers: &Servers, findings: &mut Findings) {
    let mut files = Vec::new();
    for spec in specs {
        match Conf::read(spec) {
            Ok(conf) => files.push(conf),
            Err(problem) => {
                let about = format!("{} ({})", spec.node, spec.path.display());
                findings.add(
                    Severity::Error,
                    "conf-unreadable",
                    about,
                    problem,
                    "is it Odoo's configuration file?",
                );
            }
        }
    }
    if specs.is_empty() {
        let problem = "nobody said which are Odoo's configuration files";
        let remedy = "--odoo-conf odoo-1=/etc/odoo/odoo.conf, on each host";
        findings.add(Severity::Note, "conf-not-examined", "Odoo", problem, remedy);
    }
    for conf in &files {
        examine_one(conf, servers, findings);
    }
    examine_together(&files, servers, findings);
}

fn examine_one(conf: &Conf<'_>, servers: &Servers, findings: &mut Findings) {
    for (name, value) in &conf.options {
        if value.contains(" ;") || value.contains(" #") {
            let problem = format!("{name} has a comment behind its value, which Odoo takes for a part of it");
            findings.add(
                Severity::Error,
                "inline-comment",
                conf.about(),
                problem,
                "a line of its own for the comment",
            );
        }
    }
    if conf.number("workers", 0) == 0 {
        let problem =
            "workers is 0: one process serves everybody, and there is no gevent port for websockets";
        findings.add(Severity::Error, "no-workers", conf.about(), problem, "workers = 2 or more");
    }
    if !conf.get("proxy_mode").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        let problem = "proxy_mode is off: Odoo takes Envoy for every user's browser, and https for http";
        findings.add(Severity::Error, "no-proxy-mode", conf.about(), problem, "proxy_mode = True");
    }
    match (conf.data_dir(), conf.directory("sessions")) {
        (None, _) => {
            let problem = "data_dir is not set: where sessions and files are depends on who starts Odoo";
            findings.add(Severity::Warning, "no-data-dir", conf.about(), problem, "data_dir = /var/lib/odoo");
        }
        (Some(folder), None) => {
            let problem = format!("{} is not there", folder.join("sessions").display());
            let remedy = "is this its host? Odoo makes it when somebody logs in";
            findings.add(Severity::Note, "no-sessions-directory", conf.about(), problem, remedy);
        }
        (Some(_), Some(_)) => {}
    }
    let Some(node) = servers.nodes.iter().find(|node| node.id.as_str() == conf.node) else {
        if !servers.nodes.is_empty() {
            let problem = "the sidecar knows no node of this name";
            findings.add(
                Severity::Error,
                "unknown-node",
                conf.about(),
                problem,
                "--node, or the name in --odoo-conf",
            );
        }
        return;
    };
    let port = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<u64>().ok());
    let gevent = conf.get("gevent_port").or_else(|| conf.get("longpolling_port"));
    let gevent = gevent.and_then(|port| port.parse().ok()).unwrap_or(8_072);
    for (what, listens, told) in [
        ("http_port", conf.number("http_port", conf.number("xmlrpc_port", 8_069)), port(&node.http)),
        ("gevent_port", gevent, node.gevent.as_deref().and_then(port)),
    ] {
        if told.is_some_and(|told| told != listens) {
            let told = told.unwrap_or_default();
            let problem = format!("its {what} is {listens}, and the sidecar was told {told}");
            let remedy =
                format!("the same in odoo.conf and --node, unless something maps {told} to {listens}");
            findings.add(Severity::Warning, "other-port", conf.about(), problem, remedy);
        }
    }
}

/// What is wrong only because there are several.
fn examine_together(files: &[Conf<'_>], servers: &Servers, findings: &mut Findings) {
    let names = |of: &[&Conf<'_>]| of.iter().map(|conf| conf.node).collect::<Vec<_>>().join(", ");
    let with_cron: Vec<_> = files.iter().filter(|conf| conf.number("max_cron_threads", 2) > 0).collect();
    if let (Some(holder), false) = (&servers.cron, with_cron.is_empty()) {
        let problem = format!("they run scheduled jobs, as {} does with `mooring cron`", holder.name);
        let remedy = "max_cron_threads = 0 where people are served";
        findings.add(Severity::Warning, "cron-everywhere", names(&with_cron), problem, remedy);
    } else if with_cron.len() > 1 {
        let remedy = "max_cron_threads = 0, and `mooring cron` for one server at a time";
        findings.add(
            Severity::Note,
            "cron-everywhere",
            names(&with_cron),
            "all of them run scheduled jobs",
            remedy,
        );
    }
    for (place, one) in files.iter().enumerate() {
        for other in files.iter().skip(place + 1) {
            let both = names(&[one, other]);
            let same = |name: &str| one.directory(name).zip(other.directory(name)).map(|(a, b)| a == b);
            if same("sessions") == Some(true) {
                let carried = servers.nodes.iter().any(|node| node.carries);
                let severity = if carried { Severity::Error } else { Severity::Note };
                let problem = "they share one sessions directory";
                let remedy =
                    "a data_dir each; or leave --sessions off, and have a shared disk that never fails";
                findings.add(severity, "sessions-shared", &both, problem, remedy);
            }
            if same("filestore") == Some(false) {
                let problem =
                    "their filestores are not the same folder: attachments are missing on the other";
                let remedy = "mount one filestore below each data_dir";
                findings.add(Severity::Error, "filestore-separate", &both, problem, remedy);
            }
            for option in ["db_host", "db_port", "db_name"] {
                let [a, b] = [one, other].map(|conf| conf.get(option).unwrap_or_default());
                if a != b {
                    let problem =
                        format!("{option} is {a:?} and {b:?}: what one changes the other does not hear of");
                    let remedy = "one database for all, under one name";
                    findings.add(Severity::Error, "other-database", &both, problem, remedy);
                }
            }
        }
    }
}
