//! `mooring doctor`: what will break, and how to mend it.

use std::{collections::BTreeSet, process::ExitCode, sync::mpsc, thread, time::Duration};

use self::{
    odoo_conf::Conf,
    report::{Report, Severity},
    servers::Servers,
};
use crate::cli::Doctor;

mod disks;
mod envoy;
mod envoy_filters;
mod form;
mod ini;
mod odoo_conf;
mod one_server;
mod report;
mod servers;
mod together;

/// How long a disk may take: one that hangs is a reason to ask the doctor.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

/// Looks at what it was told of, and prints what it found. The exit status is 2 with errors, 1 with warnings
/// and 0 with neither.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: Doctor) -> ExitCode {
    let mut report = Report::default();
    let servers = Servers::ask(&options.asked, &mut report).await;
    servers.examine(&options.probe_path, &mut report).await;
    let files = Conf::read_all(&options.odoo_conf, &mut report);
    let patience = match &options.envoy {
        Some(admin) => envoy::examine(admin, &servers, &without_gevent(&files), &mut report).await,
        None => {
            report.left_out("Envoy", "nobody said where its admin interface is: --envoy 127.0.0.1:9901");
            None
        }
    };
    for conf in &files {
        one_server::examine(conf, &servers, patience, &mut report);
    }
    together::examine(&files, &servers, &mut report);
    disks::examine(&files, &servers, &mut report);
    say_what_was_not_seen(&options, &files, &servers, &mut report);
    report.sort();
    if options.json {
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        println!("{}", report.text());
    }
    ExitCode::from(match report.worst() {
        Some(Severity::Error) => 2,
        Some(Severity::Warning) => 1,
        Some(Severity::Note) | None => 0,
    })
}

/// The nodes whose files say that they have no gevent port.
fn without_gevent(files: &[Conf]) -> BTreeSet<String> {
    let those = files.iter().filter(|conf| one_server::without_workers(conf));
    those.flat_map(|conf| &conf.nodes).map(ToString::to_string).collect()
}

/// Names what the doctor was not shown, and what it cannot see.
fn say_what_was_not_seen(options: &Doctor, files: &[Conf], servers: &Servers, report: &mut Report) {
    let shown = |node: &_| options.odoo_conf.iter().any(|spec| spec.node == *node);
    let missing: Vec<_> = servers.nodes.iter().map(|node| &node.id).filter(|id| !shown(id)).collect();
    if options.odoo_conf.is_empty() {
        let why = "nobody said where they are: --odoo-conf odoo-1=/etc/odoo/odoo.conf, on each host";
        report.left_out("Odoo's configuration files", why);
        return;
    }
    for id in missing {
        report.left_out(format!("the configuration file of {id}"), format!("no --odoo-conf {id}=PATH"));
    }
    match files {
        [] => {}
        [_] => {
            let why = "only one configuration file was seen";
            report.left_out("whether servers share database, filestore and sessions as they should", why);
        }
        _ => report.looked_at(
            "the files side by side: databases, filestores, sessions, scheduled jobs, job runners",
        ),
    }
    if !files.is_empty() {
        let why = "they count before the file, and only Odoo's processes have them";
        report.left_out("options of Odoo's command line and environment", why);
    }
}

/// What a disk says; none if it does not say it in time. Whoever asks it then is left waiting, which does not
/// keep the process from ending.
fn from_disk<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(ask()));
    answered.recv_timeout(DISK_PATIENCE).ok()
}
