//! `mooring doctor`: what will break, and how to mend it.

use std::{io::IsTerminal, process::ExitCode};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use self::servers::Servers;
use crate::cli::Doctor;

mod envoy;
mod odoo_conf;
mod servers;

/// The table's width where there is no terminal, in characters.
const WIDTH: u16 = 120;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Worth knowing.
    Note,
    /// It will hurt some day.
    Warning,
    /// It hurts users now, or the next time that something fails.
    Error,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// One word for machines, the same as long as it means the same.
    name: &'static str,
    /// The file, node or program that it is about.
    about: String,
    /// What is wrong.
    problem: String,
    /// How to mend it.
    remedy: String,
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        name: &'static str,
        about: impl ToString,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (problem, remedy) = (problem.into(), remedy.into());
        let new = Finding { severity, name, about: about.to_string(), problem, remedy };
        // Envoy tells some of its configuration twice.
        if !self.0.contains(&new) {
            self.0.push(new);
        }
    }
}

/// Looks at what it was told of, and prints what it found. The exit status is 2 with errors, 1 with warnings
/// and 0 with neither.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: Doctor) -> ExitCode {
    let mut findings = Findings::default();
    let servers = Servers::ask(&options.asked, &mut findings).await;
    servers.examine(&mut findings).await;
    odoo_conf::examine(&options.odoo_conf, &servers, &mut findings);
    match &options.envoy {
        Some(admin) => envoy::examine(admin, &servers, &mut findings).await,
        None => findings.add(
            Severity::Note,
            "envoy-not-examined",
            "Envoy",
            "nobody said where its admin interface is",
            "--envoy 127.0.0.1:9901",
        ),
    }
    let Findings(mut found) = findings;
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    if options.json {
        println!("{}", serde_json::to_string(&found).unwrap_or_default());
    } else {
        println!("{}", table(&found));
    }
    ExitCode::from(match found.first().map(|worst| worst.severity) {
        Some(Severity::Error) => 2,
        Some(Severity::Warning) => 1,
        Some(Severity::Note) | None => 0,
    })
}

fn table(found: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(WIDTH);
    }
    table.set_header(["", "about", "what", "what to do"]);
    for Finding { severity, about, problem, remedy, .. } in found {
        let (word, color) = match severity {
            Severity::Note => ("note", Color::Cyan),
            Severity::Warning => ("warning", Color::Yellow),
            Severity::Error => ("error", Color::Red),
        };
        table.add_row([Cell::new(word).fg(color), Cell::new(about), Cell::new(problem), Cell::new(remedy)]);
    }
    let count = |of| found.iter().filter(|finding| finding.severity == of).count();
    format!("{table}\nerrors: {}, warnings: {}", count(Severity::Error), count(Severity::Warning))
}
