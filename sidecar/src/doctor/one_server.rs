//! What one configuration file says that breaks behind Envoy.

use std::time::Duration;

use affinity::wire::NodeReport;

use super::{
    odoo_conf::{Conf, Said},
    report::{Id, Report, Severity},
    servers::Servers,
};

/// How long Envoy waits as shipped.
const SHIPPED_PATIENCE: Duration = Duration::from_secs(720);
/// How long Odoo works on a request unless it is told.
const USUAL_LIMIT: i64 = 120;
/// Master passwords that whoever tries one tries first.
const WEAK_PASSWORDS: [&str; 11] = [
    "1234",
    "123456",
    "admin",
    "admin123",
    "admin_passwd",
    "change_me",
    "changeme",
    "master",
    "odoo",
    "password",
    "secret",
];

/// Examines a file; `patience` is Envoy's, if that was seen.
pub(super) fn examine(conf: &Conf, servers: &Servers, patience: Option<Duration>, report: &mut Report) {
    if conf.number("workers").or(0).is_some_and(|workers| workers <= 0) {
        let problem =
            "workers is 0: one process serves everybody, and there is no gevent port for websockets";
        report.add(Severity::Error, Id::NoWorkers, conf.about(), problem, "workers = 2 or more");
    }
    if conf.flag("proxy_mode").or(false) == Some(false) {
        let problem = "proxy_mode is off: Odoo takes Envoy for every user's browser, and https for http";
        report.add(Severity::Error, Id::NoProxyMode, conf.about(), problem, "proxy_mode = True");
    }
    examine_database_manager(conf, report);
    if conf.flag("x_sendfile").this() == Some(true) {
        let problem = "x_sendfile is on: Odoo answers with the names of attachments (X-Sendfile, \
                       X-Accel-Redirect), which Envoy does not follow: they come out empty";
        let remedy = "x_sendfile = False, unless a web server before Envoy has the filestore and sends them";
        report.add(Severity::Warning, Id::XSendfile, conf.about(), problem, remedy);
    }
    examine_time_limit(conf, patience, report);
    if conf.text("data_dir") == Said::Nothing {
        let problem = "data_dir is not set: where sessions and files are depends on who starts Odoo";
        report.add(Severity::Warning, Id::NoDataDir, conf.about(), problem, "data_dir = /var/lib/odoo");
    }
    let known = |id: &_| servers.nodes.iter().find(|node| node.id == *id);
    for id in &conf.nodes {
        match known(id) {
            Some(node) => examine_ports(conf, node, report),
            None if servers.nodes.is_empty() => {}
            None => {
                let problem = format!("the sidecar knows no node {id}");
                let remedy = "--node, or the name in --odoo-conf";
                report.add(Severity::Error, Id::UnknownNode, conf.about(), problem, remedy);
            }
        }
    }
}

fn examine_database_manager(conf: &Conf, report: &mut Report) {
    let open = conf.flag("list_db").or(true);
    if open == Some(true) {
        let problem = "list_db is on: everybody who reaches Envoy is shown all databases, and the page that \
                       copies and deletes them";
        report.add(Severity::Warning, Id::DatabaseManagerOpen, conf.about(), problem, "list_db = False");
    }
    // An empty one is nobody's password to some versions, and Odoo's own to others.
    let password = conf.text("admin_passwd").or("admin");
    if password.is_some_and(|password| WEAK_PASSWORDS.contains(&password)) {
        let severity = if open == Some(false) { Severity::Warning } else { Severity::Error };
        let problem = match conf.text("admin_passwd") {
            Said::This(_) => {
                "admin_passwd, the password over all databases, is one that everybody tries first"
            }
            _ => "admin_passwd is not set: Odoo's own is the password over all databases",
        };
        let remedy = "admin_passwd = what openssl rand -hex 24 prints";
        report.add(severity, Id::WeakMasterPassword, conf.about(), problem, remedy);
    }
}

fn examine_time_limit(conf: &Conf, patience: Option<Duration>, report: &mut Report) {
    let Some(limit) = conf.number("limit_time_real").or(USUAL_LIMIT) else { return };
    let envoy = patience.unwrap_or(SHIPPED_PATIENCE).as_secs();
    if u64::try_from(limit).is_ok_and(|limit| limit > envoy) {
        let as_shipped = if patience.is_none() { ", as shipped" } else { "" };
        let problem = format!(
            "limit_time_real is {limit} s and Envoy gives up after {envoy} s without a byte{as_shipped}: a \
             long report fails for its user, and Odoo works on"
        );
        let remedy = format!(
            "limit_time_real = {envoy} at most, or Envoy's stream_idle_timeout and the route's timeouts longer"
        );
        report.add(Severity::Warning, Id::TimeLimitBeyondEnvoy, conf.about(), problem, remedy);
    }
}

fn examine_ports(conf: &Conf, node: &NodeReport, report: &mut Report) {
    let port = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<i64>().ok());
    for (option, default, told) in [
        ("http_port", 8_069, port(&node.http)),
        ("gevent_port", 8_072, node.gevent.as_deref().and_then(port)),
    ] {
        let Some((listens, told)) = conf.number(option).or(default).zip(told) else { continue };
        // Without workers there is no gevent port, which is found already.
        let is_there = option == "http_port" || !without_workers(conf);
        if is_there && listens != told {
            let problem = format!("{option} of {} is {listens}, and the sidecar was told {told}", node.id);
            let remedy =
                format!("the same in odoo.conf and --node, unless something maps {told} to {listens}");
            report.add(Severity::Warning, Id::OtherPort, conf.about(), problem, remedy);
        }
    }
}

/// Whether it surely has no gevent port.
pub(super) fn without_workers(conf: &Conf) -> bool {
    conf.number("workers").or(0).is_some_and(|workers| workers <= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        odoo_conf::tests::{conf, names},
        servers::tests::servers,
    };

    const HEALTHY: &str = "proxy_mode = True\nworkers = 2\ndata_dir = /var/lib/odoo\nlist_db = False\n\
                           admin_passwd = 7f0d6c\n";

    fn found(options: &str, patience: Option<u64>) -> Vec<String> {
        let (conf, mut report) = conf("odoo-1", options);
        examine(&conf, &servers(), patience.map(Duration::from_secs), &mut report);
        names(&report)
    }

    fn changed(line: &str, other: &str) -> Vec<String> {
        assert!(HEALTHY.contains(line));
        found(&HEALTHY.replace(line, other), None)
    }

    #[test]
    fn each_ill_of_one_file_is_one_finding() {
        assert_eq!(found(HEALTHY, None), Vec::<String>::new());
        for (line, other, expected) in [
            ("workers = 2\n", "", vec!["no-workers"]),
            ("workers = 2", "workers = 0", vec!["no-workers"]),
            ("workers = 2", "workers = False", vec!["no-workers"]),
            ("workers = 2", "workers = 4 ; four", vec!["inline-comment"]),
            ("workers = 2", "workers = 0\ngevent_port = 1", vec!["no-workers"]),
            ("proxy_mode = True\n", "", vec!["no-proxy-mode"]),
            ("proxy_mode = True", "proxy_mode = False", vec!["no-proxy-mode"]),
            ("proxy_mode = True", "proxy-mode = True", vec!["misnamed-option"]),
            ("list_db = False\n", "", vec!["database-manager-open"]),
            ("list_db = False", "list_db = True", vec!["database-manager-open"]),
            ("list_db = False", "list_db = off", vec!["unclear-value"]),
            ("admin_passwd = 7f0d6c\n", "", vec!["weak-master-password"]),
            ("admin_passwd = 7f0d6c", "admin_passwd = admin", vec!["weak-master-password"]),
            ("admin_passwd = 7f0d6c", "admin_passwd =", vec!["weak-master-password"]),
            ("admin_passwd = 7f0d6c", "admin_passwd = None", vec!["weak-master-password"]),
            ("admin_passwd = 7f0d6c", "admin_passwd = $pbkdf2-sha512$6$a$b", vec![]),
            ("data_dir = /var/lib/odoo\n", "", vec!["no-data-dir"]),
            ("data_dir = /var/lib/odoo", "data_dir = data", vec!["relative-path"]),
            ("workers = 2", "workers = 2\nx_sendfile = True", vec!["x-sendfile"]),
            ("workers = 2", "workers = 2\nx_sendfile = 1", vec!["x-sendfile"]),
            ("workers = 2", "workers = 2\nhttp_port = 8070", vec!["other-port"]),
            ("workers = 2", "workers = 2\nxmlrpc_port = 8070", vec!["old-option-name", "other-port"]),
            ("workers = 2", "workers = 2\nlimit_time_real = 1200", vec!["time-limit-beyond-envoy"]),
            ("workers = 2", "workers = 2\nlimit_time_real = 720", vec![]),
            ("workers = 2", "workers = 2\nlimit_time_real_cron = 9000", vec![]),
        ] {
            assert_eq!(changed(line, other), expected, "{other}");
        }
    }

    #[test]
    fn what_is_shipped_is_well() {
        for shipped in [
            include_str!("../../../envoy/compose/odoo.conf"),
            include_str!("../../../envoy/kubernetes/odoo.conf"),
        ] {
            let options = shipped.replace("[options]", "");
            assert_eq!(found(&options, None), Vec::<String>::new());
        }
    }

    #[test]
    fn envoy_s_own_patience_counts() {
        assert_eq!(found(HEALTHY, Some(15)), ["time-limit-beyond-envoy"]);
        let longer = format!("{HEALTHY}limit_time_real = 1200\n");
        assert_eq!(found(&longer, Some(1_200)), Vec::<String>::new());
    }

    #[test]
    fn an_open_manager_with_odoo_s_password_is_an_error_and_neither_is_printed() {
        let (conf, mut report) = conf("odoo-1", "proxy_mode = True\nworkers = 2\nadmin_passwd = changeme");
        examine(&conf, &servers(), None, &mut report);
        let worst = report.findings.iter().find(|it| it.id == Id::WeakMasterPassword).unwrap();
        assert_eq!(worst.severity, Severity::Error);
        assert!(!report.text().contains("changeme"));
    }

    #[test]
    fn a_name_that_the_sidecar_does_not_know_is_found() {
        let (conf, mut report) = conf("odoo-9", HEALTHY);
        examine(&conf, &servers(), None, &mut report);
        assert_eq!(names(&report), ["unknown-node"]);
        let mut report = Report::default();
        examine(&conf, &Servers::default(), None, &mut report);
        assert_eq!(names(&report), Vec::<String>::new());
    }
}
