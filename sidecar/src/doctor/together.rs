//! What is wrong only because there are several servers: databases, scheduled jobs, job runners.

use std::collections::BTreeMap;

use super::{
    odoo_conf::Conf,
    report::{Id, Report, Severity},
    servers::Servers,
};

/// Examines the files side by side.
pub(super) fn examine(files: &[Conf], servers: &Servers, report: &mut Report) {
    examine_databases(files, report);
    examine_cron(files, servers, report);
    examine_job_runners(files, report);
}

/// Who says what, if they differ; none if all that is clear says the same.
pub(super) fn differing<T: Ord>(
    files: &[Conf],
    said: impl Fn(&Conf) -> Option<T>,
) -> Option<BTreeMap<T, String>> {
    let mut by_value: BTreeMap<T, Vec<String>> = BTreeMap::new();
    for conf in files {
        if let Some(value) = said(conf) {
            by_value.entry(value).or_default().push(conf.names());
        }
    }
    let joined = by_value.into_iter().map(|(value, names)| (value, names.join(", ")));
    Some(joined.collect::<BTreeMap<_, _>>()).filter(|groups| groups.len() > 1)
}

/// The nodes of these files.
fn names<'a>(files: impl IntoIterator<Item = &'a Conf>) -> String {
    files.into_iter().map(Conf::names).collect::<Vec<_>>().join(", ")
}

fn examine_databases(files: &[Conf], report: &mut Report) {
    let host = |conf: &Conf| {
        let host = conf.text("db_host").or("")?.to_lowercase();
        Some(if ["127.0.0.1", "::1"].contains(&host.as_str()) { "localhost".into() } else { host })
    };
    let port = |conf: &Conf| Some(conf.number("db_port").or(5_432)?.to_string());
    let name = |conf: &Conf| {
        conf.text("db_name").or("")?;
        let mut names: Vec<_> = conf.list("db_name").collect();
        names.sort_unstable();
        Some(names.join(","))
    };
    let filter = |conf: &Conf| Some(conf.text("dbfilter").or(".*")?.to_owned());
    let other_database = "what one changes the other does not hear of";
    let one_database = "one database for all, under one name";
    type Saying<'a> = &'a dyn Fn(&Conf) -> Option<String>;
    let options: [(&str, Saying<'_>, Id, &str, &str); 4] = [
        ("db_host", &host, Id::OtherDatabase, other_database, one_database),
        ("db_port", &port, Id::OtherDatabase, other_database, one_database),
        ("db_name", &name, Id::OtherDatabase, other_database, one_database),
        (
            "dbfilter",
            &filter,
            Id::OtherDbfilter,
            "whoever moves to the other is logged out, or sees other databases",
            "the same dbfilter everywhere",
        ),
    ];
    for (option, said, id, consequence, remedy) in options {
        let Some(groups) = differing(files, said) else { continue };
        let values: Vec<_> =
            groups.iter().map(|(value, names)| format!("{} ({names})", shown(value))).collect();
        let problem = format!("{option} is {}: {consequence}", values.join(" and "));
        report.add(Severity::Error, id, names(files), problem, remedy);
    }
}

/// A value that may be shown; an address with a password in it may not.
fn shown(value: &str) -> String {
    match value {
        "" => "not set".to_owned(),
        _ if value.contains('@') => "…".to_owned(),
        _ => format!("{value:?}"),
    }
}

fn examine_cron(files: &[Conf], servers: &Servers, report: &mut Report) {
    let with_cron = || {
        files.iter().filter(|conf| conf.number("max_cron_threads").or(2).is_some_and(|threads| threads > 0))
    };
    let count: usize = with_cron().map(|conf| conf.nodes.len()).sum();
    if let (Some(holder), 1..) = (&servers.cron, count) {
        let problem = format!("they run scheduled jobs, as {} does with `mooring cron`", holder.name);
        let remedy = "max_cron_threads = 0 where people are served";
        report.add(Severity::Warning, Id::CronEverywhere, names(with_cron()), problem, remedy);
    } else if count > 1 {
        let problem = "all of them run scheduled jobs";
        let remedy = "max_cron_threads = 0, and `mooring cron` for one server at a time";
        report.add(Severity::Note, Id::CronEverywhere, names(with_cron()), problem, remedy);
    }
}

/// The runner of queue_job takes itself for the only one: two start jobs twice.
fn examine_job_runners(files: &[Conf], report: &mut Report) {
    let runs = |conf: &&Conf| {
        let is_off = conf.channels.as_deref().is_some_and(|channels| channels.trim().starts_with("root:0"));
        !is_off && conf.list("server_wide_modules").any(|module| module == "queue_job")
    };
    let with_runner = || files.iter().filter(runs);
    if with_runner().map(|conf| conf.nodes.len()).sum::<usize>() > 1 {
        let problem = "each of them starts a runner of queue_job (server_wide_modules): jobs are started twice, \
                       and taken for dead by the other";
        let remedy = "queue_job in server_wide_modules of one server only, or [queue_job] channels = root:0 in \
                      the others";
        report.add(Severity::Error, Id::SeveralJobRunners, names(with_runner()), problem, remedy);
    }
}

#[cfg(test)]
mod tests {
    use affinity::{NodeId, wire::LeaseHolder};

    use super::*;
    use crate::doctor::odoo_conf::tests::{conf, names};

    const QUIET: &str = "max_cron_threads = 0\n";

    fn found(files: [&str; 3]) -> Report {
        let files: Vec<_> = files
            .iter()
            .zip(1..)
            .map(|(text, n)| conf(&format!("odoo-{n}"), &format!("{QUIET}{text}")).0)
            .collect();
        let mut report = Report::default();
        examine(&files, &Servers::default(), &mut report);
        report
    }

    #[test]
    fn one_server_that_differs_is_one_finding() {
        let one = |text: &'static str| [text, text, text];
        for (files, expected) in [
            (one("db_host = db\ndb_name = a, b"), vec![]),
            (["db_name = a,b", "db_name = b, a", "db_name = a , b"], vec![]),
            (["db_port = 5432", "db_port = False", ""], vec![]),
            (["db_host = localhost", "db_host = 127.0.0.1", "db_host = LOCALHOST"], vec![]),
            (["db_host = db", "db_host = db", "db_host = elsewhere"], vec!["other-database"]),
            (["db_host = db", "", "db_host = False"], vec!["other-database"]),
            (["db_name = a", "db_name = b", "db_name = c"], vec!["other-database"]),
            (["dbfilter = ^a$", "dbfilter = ^a$", ""], vec!["other-dbfilter"]),
            (["dbfilter = .*", "", ""], vec![]),
            (["db_host = ${H}", "db_host = db", "db_host = db"], vec![]),
            (one("server_wide_modules = base,web,queue_job"), vec!["several-job-runners"]),
            (["server_wide_modules = web, queue_job", "server_wide_modules = base,web", ""], vec![]),
            (
                [
                    "server_wide_modules = queue_job\n[queue_job]\nchannels = root:4",
                    "server_wide_modules = queue_job\n[queue_job]\nchannels = root:0",
                    "server_wide_modules = queue_job_batch",
                ],
                vec![],
            ),
        ] {
            assert_eq!(names(&found(files)), expected, "{files:?}");
        }
    }

    #[test]
    fn who_differs_is_named_and_no_password_is() {
        let report = found(["db_host = db", "db_host = db", "db_host = u:hunter2@x"]);
        let problem = &report.findings[0].problem;
        assert!(problem.contains("\"db\" (odoo-1, odoo-2)") && problem.contains("(odoo-3)"), "{problem}");
        assert!(!problem.contains("hunter2"));
    }

    #[test]
    fn one_file_of_several_nodes_counts_for_each() {
        let (mut shared, _) = conf("odoo-1", "server_wide_modules = web,queue_job");
        shared.nodes.push(NodeId::new("odoo-2").unwrap());
        let mut report = Report::default();
        examine(&[shared], &Servers::default(), &mut report);
        assert_eq!(names(&report), ["cron-everywhere", "several-job-runners"]);
        assert_eq!(report.findings[0].severity, Severity::Note);
    }

    #[test]
    fn jobs_beside_mooring_cron_are_a_warning() {
        let files = [conf("odoo-1", "").0, conf("odoo-2", QUIET).0];
        let servers =
            Servers { cron: Some(LeaseHolder { name: "host".into(), left_ms: 1 }), ..Servers::default() };
        let mut report = Report::default();
        examine(&files, &servers, &mut report);
        assert_eq!(
            (names(&report), report.worst()),
            (vec!["cron-everywhere".to_owned()], Some(Severity::Warning))
        );
        assert_eq!(report.findings[0].about, "odoo-1");
    }
}
