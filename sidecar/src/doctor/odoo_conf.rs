//! A configuration file of Odoo's: what it says of an option, as Odoo takes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use affinity::NodeId;

use super::{
    from_disk,
    ini::{Entry, Ini},
    report::{Id, Report, Severity},
};
use crate::cli::OdooConf;

/// The most that is read of a file.
const LARGEST: u64 = 1 << 20;

/// What Odoo reads as True or False.
pub(super) const FLAGS: [&str; 4] = ["http_enable", "list_db", "proxy_mode", "x_sendfile"];
/// What Odoo reads as a number.
pub(super) const NUMBERS: [&str; 14] = [
    "db_maxconn",
    "db_port",
    "gevent_port",
    "gevent_workers",
    "http_port",
    "limit_memory_hard",
    "limit_memory_soft",
    "limit_request",
    "limit_time_cpu",
    "limit_time_real",
    "limit_time_real_cron",
    "longpolling_port",
    "max_cron_threads",
    "workers",
];
/// What Odoo reads as text and Mooring has to do with.
pub(super) const TEXTS: [&str; 6] =
    ["data_dir", "db_host", "db_name", "dbfilter", "http_interface", "server_wide_modules"];
/// What is never printed.
pub(super) const SECRETS: [&str; 4] = ["admin_passwd", "db_password", "proxy_access_token", "smtp_password"];

/// What a file says of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<T> {
    Nothing,
    This(T),
    /// Something that Odoo cannot use, or that versions of it take differently. It was found already.
    Unclear,
}

impl<T> Said<T> {
    /// This or, where nothing is said, Odoo's default; none if it is unclear.
    pub(super) fn or(self, default: T) -> Option<T> {
        match self {
            Self::Nothing => Some(default),
            Self::This(value) => Some(value),
            Self::Unclear => None,
        }
    }

    /// This, if it is said clearly.
    pub(super) fn this(self) -> Option<T> {
        match self {
            Self::This(value) => Some(value),
            Self::Nothing | Self::Unclear => None,
        }
    }
}

/// A file that Odoo can read.
#[derive(Debug, Default)]
pub(super) struct Conf {
    /// The nodes that have it.
    pub(super) nodes: Vec<NodeId>,
    pub(super) path: PathBuf,
    /// The options by the names that they have today.
    pub(super) options: BTreeMap<String, String>,
    /// Those of which something is wrong already.
    pub(super) unclear: BTreeSet<String>,
    /// What `[queue_job]` says of channels.
    pub(super) channels: Option<String>,
}

/// Why a file is of no use.
#[derive(Debug)]
struct Useless {
    id: Id,
    problem: String,
    remedy: &'static str,
}

impl Conf {
    /// Reads the files; what is wrong with their form is found. A file that several nodes have is one file.
    pub(super) fn read_all(specs: &[OdooConf], report: &mut Report) -> Vec<Self> {
        let mut files: BTreeMap<PathBuf, (PathBuf, Vec<NodeId>)> = BTreeMap::new();
        for spec in specs {
            let path = spec.path.clone();
            let real = from_disk(move || fs::canonicalize(path)).and_then(Result::ok);
            let real = real.unwrap_or_else(|| spec.path.clone());
            let (_, nodes) = files.entry(real).or_insert_with(|| (spec.path.clone(), Vec::new()));
            nodes.push(spec.node.clone());
        }
        let mut found = Vec::new();
        for (path, nodes) in files.into_values() {
            let mut conf = Self { nodes, path, ..Self::default() };
            let path = conf.path.clone();
            let read = from_disk(move || text(&path)).unwrap_or_else(|| {
                let problem = "it cannot be read: the disk does not answer".to_owned();
                Err(Useless { id: Id::ConfUnreadable, problem, remedy: "is it on a disk that hangs?" })
            });
            match read.and_then(|text| parse(&text)) {
                Ok(ini) => {
                    let entries = ini.section("options").unwrap_or_default();
                    conf.channels = channels(&ini);
                    conf.take_in(entries, report);
                    report.looked_at(format!("{}: {} options", conf.about(), conf.options.len()));
                    found.push(conf);
                }
                Err(Useless { id, problem, remedy }) => {
                    report.add(Severity::Error, id, conf.about(), problem, remedy);
                }
            }
        }
        found.sort_by(|one: &Self, other| one.nodes.cmp(&other.nodes));
        found
    }

    /// Which nodes' file this is, and where.
    pub(super) fn about(&self) -> String {
        format!("{} ({})", self.names(), self.path.display())
    }

    /// The nodes that have it.
    pub(super) fn names(&self) -> String {
        self.nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn text(&self, name: &str) -> Said<&str> {
        match self.options.get(name).map(|value| value.as_str()) {
            _ if self.unclear.contains(name) => Said::Unclear,
            None | Some("" | "False" | "false" | "None") => Said::Nothing,
            Some(value) => Said::This(value),
        }
    }

    pub(super) fn number(&self, name: &str) -> Said<i64> {
        match self.text(name) {
            Said::This(value) => number(value).map_or(Said::Unclear, Said::This),
            Said::Nothing => Said::Nothing,
            Said::Unclear => Said::Unclear,
        }
    }

    pub(super) fn flag(&self, name: &str) -> Said<bool> {
        match self.options.get(name) {
            _ if self.unclear.contains(name) => Said::Unclear,
            None => Said::Nothing,
            Some(value) => flag(value).map_or(Said::Unclear, Said::This),
        }
    }

    /// A list that is separated by commas.
    pub(super) fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let items = self.text(name).this().unwrap_or_default().split(',');
        items.map(str::trim).filter(|item| !item.is_empty())
    }

    /// Where its Odoo keeps files, if that does not depend on who starts it.
    pub(super) fn data_dir(&self) -> Option<&Path> {
        self.text("data_dir").this().map(Path::new).filter(|path| path.is_absolute())
    }
}

/// What all versions of Odoo take for True or False.
pub(super) fn flag(value: &str) -> Option<bool> {
    match value {
        "False" | "false" => Some(false),
        _ if ["1", "yes", "true", "on"].contains(&value.to_lowercase().as_str()) => Some(true),
        _ => None,
    }
}

/// What Python takes for a number.
pub(super) fn number(value: &str) -> Option<i64> {
    value.trim().replace('_', "").parse().ok()
}

fn channels(ini: &Ini) -> Option<String> {
    let entries: Vec<&Entry> = ini.section("queue_job")?;
    entries.iter().find(|entry| entry.name == "channels").map(|entry| entry.value.clone())
}

/// The text of a file.
fn text(path: &Path) -> Result<String, Useless> {
    let useless = |problem: String, remedy| Useless { id: Id::ConfUnreadable, problem, remedy };
    let is_it = "is it Odoo's configuration file?";
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            useless(error.to_string(), "run the doctor as Odoo's user, or as root")
        }
        _ => useless(error.to_string(), "is this its host, and the path the one that Odoo is started with?"),
    };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a folder" } else { "no file" };
        return Err(useless(format!("it is {what}"), "the path of the file itself"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(useless("it is longer than 1 MiB".into(), is_it));
    }
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
        let problem = "it begins with a byte order mark, at which Odoo does not start".into();
        let remedy = "save it as UTF-8 without one: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE";
        return Err(Useless { id: Id::ConfRefused, problem, remedy });
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        let problem = "it is UTF-16 or the like, at which Odoo does not start".into();
        return Err(Useless { id: Id::ConfRefused, problem, remedy: "save it as UTF-8" });
    }
    if bytes.contains(&0) {
        return Err(useless("it is no text".into(), is_it));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        let problem = format!("line {line} is not UTF-8, and in a UTF-8 locale Odoo does not start with it");
        Useless { id: Id::ConfRefused, problem, remedy: "iconv -f latin1 -t utf-8" }
    })
}

fn parse(text: &str) -> Result<Ini, Useless> {
    let is_code = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("{%") || line.starts_with("<%") || line.starts_with("{{")
    };
    if text.lines().any(|line| is_code(&line)) {
        let problem = "it is a template, of which Odoo's file is yet to be made".to_owned();
        let remedy = "--odoo-conf with the file that Odoo is started with";
        return Err(Useless { id: Id::TemplatedValue, problem, remedy });
    }
    let ini = Ini::read(text).map_err(|refused| {
        let remedy = "mend that line; Odoo's log shows the same";
        Useless { id: Id::ConfRefused, problem: format!("{refused}: Odoo does not start"), remedy }
    })?;
    if ini.section("options").is_none() {
        let problem = "it has no section [options]: Odoo goes by its defaults, and says nothing".to_owned();
        return Err(Useless { id: Id::NoOptionsSection, problem, remedy: "[options] as the first line" });
    }
    Ok(ini)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file with these options of one node, and what is found in its form.
    pub(in crate::doctor) fn conf(node: &str, options: &str) -> (Conf, Report) {
        let mut report = Report::default();
        let ini = parse(&format!("[options]\n{options}")).unwrap();
        let nodes = vec![NodeId::new(node).unwrap()];
        let path = PathBuf::from(format!("/etc/{node}.conf"));
        let mut conf = Conf { nodes, path, channels: channels(&ini), ..Conf::default() };
        conf.take_in(ini.section("options").unwrap(), &mut report);
        (conf, report)
    }

    /// The names of what was found.
    pub(in crate::doctor) fn names(report: &Report) -> Vec<String> {
        report.findings.iter().map(|finding| finding.id.name()).collect()
    }

    fn found_in(content: &[u8]) -> (Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odoo.conf");
        fs::write(&path, content).unwrap();
        let mut report = Report::default();
        Conf::read_all(&[OdooConf { node: NodeId::new("odoo-1").unwrap(), path }], &mut report);
        let problem = report.findings.first().map(|finding| finding.problem.clone()).unwrap_or_default();
        (names(&report), problem)
    }

    #[test]
    fn what_is_no_configuration_file_is_said_to_be_none() {
        let large = [b"[options]\n".to_vec(), b"; much\n".repeat(8 << 20)].concat();
        for (content, name, part) in [
            (&b""[..], "no-options-section", "defaults"),
            (b"[Options]\nworkers = 2\n", "no-options-section", "defaults"),
            (b"workers = 2\n", "conf-refused", "line 1 comes before"),
            (b"[options]\nworkers = 2\nworkers = 2\n", "conf-refused", "workers again"),
            (b"\xEF\xBB\xBF[options]\nworkers = 2\n", "conf-refused", "byte order mark"),
            (b"[options]\r\n; caf\xE9\r\nworkers = 2\r\n", "conf-refused", "line 2 is not UTF-8"),
            (b"\xFF\xFE[\0o\0", "conf-refused", "UTF-16"),
            (b"\x7FELF\x02\x01\x01\0\0\0", "conf-unreadable", "no text"),
            (b"PK\x03\x04\xFF\xFE\0", "conf-unreadable", "no text"),
            (&large, "conf-unreadable", "1 MiB"),
            (b"[options]\n{% if x == 1 %}\nworkers = 2\n{% endif %}\n", "templated-value", "template"),
        ] {
            let (names, problem) = found_in(content);
            assert_eq!(names, [name], "{problem}");
            assert!(problem.contains(part), "{problem}");
        }
        assert_eq!(found_in(b"[options]\r\ndb_host = a\r\n").0, Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_read_is_said_once_for_all_its_nodes() {
        for (path, part) in [("/", "folder"), ("/dev/null", "no file"), ("/no/such.conf", "No such file")] {
            let spec = |node| OdooConf { node: NodeId::new(node).unwrap(), path: path.into() };
            let mut report = Report::default();
            assert!(Conf::read_all(&[spec("odoo-1"), spec("odoo-2")], &mut report).is_empty());
            assert_eq!(names(&report), ["conf-unreadable"], "{path}");
            let finding = &report.findings[0];
            assert!(finding.problem.contains(part) && finding.about.starts_with("odoo-1, odoo-2 ("));
        }
    }

    #[test]
    fn values_are_taken_as_odoo_takes_them() {
        let text =
            "a = False\nb = None\nc =\nd = x\nn = 1_0\ne = +4\nlist = a, b ,,c\nyes = YES\nno = false\n";
        let (conf, _) = conf("odoo-1", text);
        for name in ["a", "b", "c", "nothing"] {
            assert_eq!(conf.text(name), Said::Nothing, "{name}");
        }
        assert_eq!((conf.text("d"), conf.number("n")), (Said::This("x"), Said::This(10)));
        assert_eq!((conf.number("e"), conf.number("d")), (Said::This(4), Said::Unclear));
        assert_eq!(conf.list("list").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!((conf.flag("yes"), conf.flag("no")), (Said::This(true), Said::This(false)));
        assert_eq!((conf.flag("d"), conf.flag("nothing")), (Said::Unclear, Said::Nothing));
    }
}
