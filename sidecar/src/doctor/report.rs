//! What was found, what was looked at and what was not: for people, and for machines.

use std::io::IsTerminal;

use clap::ValueEnum;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::{Serialize, Serializer};

use crate::terminal;

/// The table's width where there is no terminal, in characters.
const WIDTH: u16 = 120;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Worth knowing.
    Note,
    /// It will hurt some day, or may.
    Warning,
    /// It hurts users now, or the next time that something fails.
    Error,
}

/// What can be found. Its name is the same as long as it means the same; `docs/doctor.md` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Id {
    // The sidecar and the nodes.
    SidecarAbsent,
    SidecarNotReady,
    StoreFails,
    ListsDiffer,
    OneNode,
    NodeDown,
    NodeDrained,
    NodeInDoubt,
    NoGevent,
    NotCarried,
    ClockSkew,
    ForeignServer,
    // How a configuration file of Odoo's is written.
    ConfUnreadable,
    ConfRefused,
    NoOptionsSection,
    TemplatedValue,
    InlineComment,
    QuotedValue,
    SwallowedOption,
    UnclearValue,
    OldOptionName,
    MisnamedOption,
    RelativePath,
    // What one file says.
    UnknownNode,
    NoWorkers,
    NoProxyMode,
    DatabaseManagerOpen,
    WeakMasterPassword,
    XSendfile,
    TimeLimitBeyondEnvoy,
    OtherPort,
    NoDataDir,
    NoSessionsDirectory,
    // What several say beside each other.
    OtherDatabase,
    OtherDbfilter,
    FilestoreSeparate,
    SessionsShared,
    SessionStoresMixed,
    SessionStoreCarried,
    CronEverywhere,
    SeveralJobRunners,
    FewInotifyWatches,
    // Envoy.
    EnvoyAbsent,
    NoFilter,
    NoReload,
    UnpinnedModule,
    EnvoyUnknownNode,
    EnvoyUnreachableNode,
    EnvoyExtraHost,
    NoStatefulSession,
    FilterOrder,
    ListenerWithoutFilter,
}

impl Id {
    /// Its name, in words joined by hyphens.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    #[serde(rename = "name")]
    pub(super) id: Id,
    /// The file, node or program that it is about.
    pub(super) about: String,
    /// What is wrong, and what comes of it.
    pub(super) problem: String,
    /// How to mend it.
    pub(super) remedy: String,
}

/// What could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Unseen {
    what: String,
    why: String,
}

/// All that the doctor has to say.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) looked_at: Vec<String>,
    pub(super) not_looked_at: Vec<Unseen>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        id: Id,
        about: impl ToString,
        problem: impl AsRef<str>,
        remedy: impl AsRef<str>,
    ) {
        let [about, problem, remedy] =
            [&about.to_string(), problem.as_ref(), remedy.as_ref()].map(terminal::plain);
        let new = Finding { severity, id, about, problem, remedy };
        // Envoy tells some of its configuration twice.
        if !self.findings.contains(&new) {
            self.findings.push(new);
        }
    }

    pub(super) fn looked_at(&mut self, what: impl AsRef<str>) {
        self.looked_at.push(terminal::plain(what.as_ref()));
    }

    pub(super) fn left_out(&mut self, what: impl AsRef<str>, why: impl AsRef<str>) {
        let [what, why] = [what.as_ref(), why.as_ref()].map(terminal::plain);
        self.not_looked_at.push(Unseen { what, why });
    }

    /// Puts the worst first.
    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    }

    /// How bad the worst is.
    pub(super) fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// As text for people.
    pub(super) fn text(&self) -> String {
        let count = |of| self.findings.iter().filter(|finding| finding.severity == of).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let mut text = String::new();
        if !self.findings.is_empty() {
            text += &format!("{}\n", self.table());
        }
        text += &match (errors, warnings) {
            (0, 0) => "all is well, as far as was looked\n".to_owned(),
            _ => format!("errors: {errors}, warnings: {warnings}\n"),
        };
        text += "looked at:\n";
        for what in &self.looked_at {
            text += &format!("  {what}\n");
        }
        text += "not looked at:\n";
        for Unseen { what, why } in &self.not_looked_at {
            text += &format!("  {what}: {why}\n");
        }
        text.trim_end().to_owned()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        if !std::io::stdout().is_terminal() {
            table.set_width(WIDTH);
        }
        table.set_header(["", "about", "what", "what to do"]);
        for Finding { severity, id, about, problem, remedy } in &self.findings {
            let (word, color) = match severity {
                Severity::Note => ("note", Color::Cyan),
                Severity::Warning => ("warning", Color::Yellow),
                Severity::Error => ("error", Color::Red),
            };
            let problem = format!("{problem} [{}]", id.name());
            table.add_row([
                Cell::new(word).fg(color),
                Cell::new(about),
                Cell::new(problem),
                Cell::new(remedy),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documents_explain_every_finding_and_no_other() {
        let explained = include_str!("../../../docs/doctor.md").lines();
        let explained = explained.filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
        let explained: Vec<_> = explained.map(|(name, _)| name.to_owned()).collect();
        let ids: BTreeSet<_> = Id::value_variants().iter().map(|id| id.name()).collect();
        assert_eq!(explained.iter().cloned().collect::<BTreeSet<_>>(), ids);
        assert_eq!(explained.len(), ids.len(), "one is explained twice");
    }

    #[test]
    fn it_says_what_was_looked_at_and_what_was_not() {
        let mut report = Report::default();
        report.looked_at("the sidecar");
        report.left_out("Envoy", "nobody said where");
        let text = report.text();
        for part in ["all is well", "looked at:\n  the sidecar", "not looked at:\n  Envoy: nobody said where"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        report.add(Severity::Note, Id::NodeDrained, "odoo-1", "x", "y");
        assert!(report.text().contains("all is well") && report.text().contains("[node-drained]"));
        for _ in 0..2 {
            report.add(Severity::Error, Id::NoWorkers, "odoo-1", "\u{1b}[2Jx", "y");
        }
        let text = report.text();
        assert!(!text.contains("all is well") && text.contains("errors: 1, warnings: 0"), "{text}");
        assert!(!text.contains('\u{1b}'));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["name"], "no-workers");
        assert_eq!(json["not_looked_at"][0]["why"], "nobody said where");
        assert_eq!(report.worst(), Some(Severity::Error));
    }
}
