//! How a configuration file is written: what Odoo takes otherwise than its author meant it. An option of which
//! something is found here is unclear from then on, so that one mistake is one finding.

use super::{
    ini::Entry,
    odoo_conf::{Conf, FLAGS, NUMBERS, SECRETS, TEXTS, flag, number},
    report::{Id, Report, Severity},
};

/// What Odoo makes a path of: `~` and variables are replaced, and what is relative is made absolute.
const PATHS: [&str; 2] = ["addons_path", "data_dir"];
/// Names of before Odoo 11 and of before Odoo 16, today's, and the values that are today's defaults.
const OLD_NAMES: [(&str, &str, &[&str]); 4] = [
    ("longpolling_port", "gevent_port", &["8072"]),
    ("xmlrpc", "http_enable", &["True", "true"]),
    ("xmlrpc_interface", "http_interface", &["", "0.0.0.0"]),
    ("xmlrpc_port", "http_port", &["8069"]),
];
/// Names that are the command line's or nobody's.
const WRONG_NAMES: [(&str, &str); 5] = [
    ("admin_password", "admin_passwd"),
    ("database", "db_name"),
    ("db_filter", "dbfilter"),
    ("load", "server_wide_modules"),
    ("log_file", "logfile"),
];

impl Conf {
    /// Takes in the options of a file and says what is wrong with their form.
    pub(super) fn take_in(&mut self, entries: Vec<&Entry>, report: &mut Report) {
        for entry in &entries {
            self.options.insert(entry.name.clone(), entry.value.clone());
        }
        self.find_other_names(report);
        self.find_templates(report);
        self.find_comments(report);
        self.find_quoted(report);
        self.find_swallowed(report);
        self.find_unclear(report);
        self.find_relative(report);
    }

    /// Something is wrong with these options.
    fn flag_all(
        &mut self,
        names: Vec<String>,
        severity: Severity,
        id: Id,
        problem: impl FnOnce(&str) -> String,
        remedy: impl AsRef<str>,
        report: &mut Report,
    ) {
        if !names.is_empty() {
            report.add(severity, id, self.about(), problem(&names.join(", ")), remedy);
            self.unclear.extend(names);
        }
    }

    /// Names of the options whose value is so, among those that are not unclear yet.
    fn those(&self, is_so: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let clear = self.options.iter().filter(|(name, _)| !self.unclear.contains(*name));
        clear.filter(|(name, value)| is_so(name, value)).map(|(name, _)| name.clone()).collect()
    }

    fn find_other_names(&mut self, report: &mut Report) {
        for (old, new, defaults) in OLD_NAMES {
            let Some(value) = self.options.remove(old) else { continue };
            let remedy =
                format!("{new} in its place, from Odoo {} on", if new == "gevent_port" { 16 } else { 11 });
            match self.options.get(new) {
                Some(other) if *other == value => {}
                Some(_) => {
                    let problem =
                        format!("{old} and {new} differ, and which counts depends on Odoo's version");
                    report.add(Severity::Warning, Id::OldOptionName, self.about(), problem, remedy);
                    self.unclear.insert(new.to_owned());
                }
                None => {
                    if !defaults.contains(&value.as_str()) {
                        let problem = format!("{old} is an old name of {new}: Odoo 19 does not know it");
                        report.add(Severity::Warning, Id::OldOptionName, self.about(), problem, remedy);
                    }
                    self.options.insert(new.to_owned(), value);
                }
            }
        }
        let known = [&FLAGS[..], &NUMBERS, &TEXTS, &SECRETS, &PATHS].concat();
        let meant = |name: &String| {
            let plain = name.replace(['-', ' ', '.'], "_");
            let wrong = WRONG_NAMES.iter().find(|(wrong, _)| *wrong == plain);
            let right = wrong.map_or(plain.as_str(), |(_, right)| *right);
            let is_other = right != name && (wrong.is_some() || known.contains(&right));
            is_other.then(|| (name.clone(), right.to_owned()))
        };
        let wrong: Vec<_> = self.options.keys().filter_map(meant).collect();
        for (wrong, right) in wrong {
            let severity = if self.options.contains_key(&right) { Severity::Note } else { Severity::Error };
            let problem = format!("{wrong} is no option of Odoo's configuration file, and has no effect");
            report.add(severity, Id::MisnamedOption, self.about(), problem, format!("{right} is its name"));
            if severity == Severity::Error {
                self.unclear.insert(right);
            }
        }
    }

    fn find_templates(&mut self, report: &mut Report) {
        let names = self.those(is_template);
        // Variables alone are what Odoo itself replaces in paths.
        let is_path = |name: &String| {
            let value = self.options.get(name).map(String::as_str).unwrap_or_default();
            PATHS.contains(&name.as_str()) && !value.contains("{{") && !value.contains("%(")
        };
        if names.iter().all(is_path) {
            return;
        }
        let problem =
            |names: &str| format!("{names}: written for a template, and taken by Odoo as it stands there");
        let remedy = "--odoo-conf with the file that Odoo is started with, which is made of this one";
        self.flag_all(names, Severity::Error, Id::TemplatedValue, problem, remedy, report);
    }

    fn find_comments(&mut self, report: &mut Report) {
        let is_secret = |name: &str| SECRETS.contains(&name);
        let (secret, open) =
            self.those(|_, value| has_comment(value)).into_iter().partition(|it| is_secret(it));
        let remedy = "a line of its own for the comment";
        let problem =
            |names: &str| format!("{names}: a comment behind the value, which Odoo takes for a part of it");
        self.flag_all(open, Severity::Error, Id::InlineComment, problem, remedy, report);
        let problem = |names: &str| {
            format!("{names}: what looks like a comment behind the value is a part of the password to Odoo")
        };
        self.flag_all(secret, Severity::Warning, Id::InlineComment, problem, remedy, report);
    }

    fn find_quoted(&mut self, report: &mut Report) {
        let is_quoted = |value: &str| {
            ['"', '\'']
                .iter()
                .any(|quote| value.strip_prefix(*quote).and_then(|rest| rest.strip_suffix(*quote)).is_some())
        };
        let known = [&FLAGS[..], &NUMBERS, &TEXTS, &PATHS].concat();
        let names = self.those(|name, value| known.contains(&name) && is_quoted(value));
        let problem = |names: &str| format!("{names}: in quotes, which Odoo takes for a part of the value");
        self.flag_all(names, Severity::Error, Id::QuotedValue, problem, "no quotes", report);
    }

    fn find_swallowed(&mut self, report: &mut Report) {
        let known = [&FLAGS[..], &NUMBERS, &TEXTS, &SECRETS, &PATHS].concat();
        let is_option = |line: &str| {
            line.split_once(['=', ':'])
                .is_some_and(|(name, _)| known.contains(&name.trim_end().to_lowercase().as_str()))
        };
        let swallowing = self.those(|_, value| value.lines().skip(1).any(is_option));
        for name in swallowing {
            let value = self.options.get(&name).cloned().unwrap_or_default();
            let lost = value.lines().skip(1).filter(|line| is_option(line));
            let lost: Vec<String> = lost
                .filter_map(|line| Some(line.split_once(['=', ':'])?.0.trim_end().to_lowercase()))
                .collect();
            let problem = format!(
                "{} is indented below {name}: Odoo takes that line for a part of {name}'s value",
                lost.join(", ")
            );
            let remedy = "no spaces at the beginning of a line";
            report.add(Severity::Error, Id::SwallowedOption, self.about(), problem, remedy);
            self.unclear.insert(name);
            self.unclear.extend(lost);
        }
    }

    fn find_unclear(&mut self, report: &mut Report) {
        let names = self.those(|name, value| FLAGS.contains(&name) && flag(value).is_none());
        let problem = |names: &str| {
            format!("{names}: neither True nor False, and what it counts for depends on Odoo's version")
        };
        self.flag_all(names, Severity::Error, Id::UnclearValue, problem, "True or False", report);
        let names = self.those(|name, value| NUMBERS.contains(&name) && !is_number(name, value));
        let problem =
            |names: &str| format!("{names}: no number, and most versions of Odoo do not start with it");
        self.flag_all(names, Severity::Error, Id::UnclearValue, problem, "a number, or no such line", report);
        let names = self
            .those(|name, value| value == "None" && TEXTS.contains(&name) && name != "server_wide_modules");
        let problem = |names: &str| {
            format!("{names}: None is nothing to Odoo 19, and a name like any other to Odoo 18 and older")
        };
        self.flag_all(names, Severity::Warning, Id::UnclearValue, problem, "False, or no such line", report);
    }

    fn find_relative(&mut self, report: &mut Report) {
        let is_relative = |value: &str| {
            value.split(',').map(str::trim).any(|path| {
                let is_set = !["", "False", "false", "None"].contains(&path);
                is_set && (!path.starts_with('/') || path.contains('$'))
            })
        };
        let names = self.those(|name, value| PATHS.contains(&name) && is_relative(value));
        let problem = |names: &str| {
            format!(
                "{names}: not a whole path; where it leads depends on who starts Odoo, and in which folder"
            )
        };
        self.flag_all(
            names,
            Severity::Warning,
            Id::RelativePath,
            problem,
            "a path that begins with /",
            report,
        );
    }
}

/// Whether a value holds what templates are written with.
fn is_template(name: &str, value: &str) -> bool {
    let marks = ["{{", "${", "<%", "%(", "$("];
    // A password hash has dollars, a filter ends with one; a variable has a name in capitals.
    let variable = value.split('$').skip(1).any(|rest| {
        rest.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .all(|c| !c.is_ascii_lowercase())
    });
    marks.iter().any(|mark| value.contains(mark))
        || (variable && !SECRETS.contains(&name) && !PATHS.contains(&name))
        || value.strip_prefix("__").is_some_and(|rest| rest.len() > 2 && rest.ends_with("__"))
}

fn has_comment(value: &str) -> bool {
    let mut before = ' ';
    value.chars().skip(1).any(|c| {
        let is_comment = matches!(c, ';' | '#') && before.is_whitespace();
        before = c;
        is_comment
    })
}

/// Whether all versions of Odoo take it for the same number.
fn is_number(name: &str, value: &str) -> bool {
    // What older versions write themselves, and what counts for the default in all.
    let unset = ["db_port", "workers", "gevent_port", "longpolling_port", "http_port"];
    number(value).is_some() || (unset.contains(&name) && ["False", "false"].contains(&value))
}

#[cfg(test)]
mod tests {
    use crate::doctor::odoo_conf::{
        Said,
        tests::{conf, names},
    };

    #[test]
    fn a_mistake_is_found_once_and_what_it_spoils_is_unclear() {
        for (options, expected, unclear) in [
            ("workers = 4 ; four", vec!["inline-comment"], vec!["workers"]),
            (
                "workers = 4\t# four\nlist_db = False ; closed",
                vec!["inline-comment"],
                vec!["workers", "list_db"],
            ),
            ("data_dir = /x     ;(e.g. /y)", vec!["inline-comment"], vec!["data_dir"]),
            ("admin_passwd = a ; b", vec!["inline-comment"], vec!["admin_passwd"]),
            ("workers = {{ odoo_workers }}", vec!["templated-value"], vec!["workers"]),
            (
                "workers = ${WORKERS:-2}\nproxy_mode = ${P}",
                vec!["templated-value"],
                vec!["workers", "proxy_mode"],
            ),
            ("db_host = $DB_HOST", vec!["templated-value"], vec!["db_host"]),
            (
                "db_name = %(db)s\nadmin_passwd = ${A}  ; master",
                vec!["templated-value"],
                vec!["admin_passwd"],
            ),
            ("workers = __WORKERS__", vec!["templated-value"], vec!["workers"]),
            ("data_dir = ${D}\ndb_host = ${H}", vec!["templated-value"], vec!["data_dir", "db_host"]),
            ("data_dir = $HOME/odoo", vec!["relative-path"], vec!["data_dir"]),
            ("data_dir = ~/.local/share/Odoo", vec!["relative-path"], vec!["data_dir"]),
            (
                "data_dir = data\naddons_path = /a, ./b",
                vec!["relative-path"],
                vec!["data_dir", "addons_path"],
            ),
            ("workers = \"4\"\ndata_dir = '/x'", vec!["quoted-value"], vec!["workers", "data_dir"]),
            ("workers = 4\n  proxy_mode = True", vec!["swallowed-option"], vec!["workers", "proxy_mode"]),
            ("addons_path = /a,\n  /b,\n  data_dir = /c", vec!["swallowed-option"], vec!["data_dir"]),
            ("proxy_mode = no", vec!["unclear-value"], vec!["proxy_mode"]),
            ("list_db = 0\nx_sendfile = None", vec!["unclear-value"], vec!["list_db", "x_sendfile"]),
            ("workers = four\nlimit_memory_hard = 2GB", vec!["unclear-value"], vec!["workers"]),
            ("limit_time_real = None", vec!["unclear-value"], vec!["limit_time_real"]),
            ("max_cron_threads = False", vec!["unclear-value"], vec!["max_cron_threads"]),
            ("workers =", vec!["unclear-value"], vec!["workers"]),
            ("db_host = None", vec!["unclear-value"], vec!["db_host"]),
            ("xmlrpc_port = 8169\nhttp_port = 8069", vec!["old-option-name"], vec!["http_port"]),
            ("proxy-mode = True", vec!["misnamed-option"], vec!["proxy_mode"]),
            ("db_filter = ^a$", vec!["misnamed-option"], vec!["dbfilter"]),
            ("admin_password = hunter2", vec!["misnamed-option"], vec!["admin_passwd"]),
        ] {
            let (conf, report) = conf("odoo-1", options);
            assert_eq!(names(&report), expected, "{options}");
            for name in unclear {
                assert_eq!(conf.text(name), Said::Unclear, "{options}: {name}");
            }
            let said = serde_json::to_string(&report).unwrap();
            assert!(!said.contains("hunter2") && !said.contains("a ; b"), "{said}");
        }
    }

    #[test]
    fn what_real_files_hold_is_left_alone() {
        let usual = "admin_passwd = $pbkdf2-sha512$600000$Ab.C/D$Ef_G\ndb_host = False\ndb_port = False\n\
             db_password = p$Aa#1;x\ndbfilter = ^%d_.*$\nlogfile = None\nserver_wide_modules = None\n\
             addons_path = /mnt/a,\n    /mnt/b\nproxy_mode = true\nworkers=4\nlimit_memory_hard = 2684354560\n\
             log_handler = :INFO,werkzeug:CRITICAL\nlog_db = False\nlongpolling_port = 8072\nxmlrpc_port = 8069\n\
             email_from = A <a@b.c>\nlimit_time_real_cron = -1\nwithout_demo = all\ncsv_internal_sep = ,";
        let (conf, report) = conf("odoo-1", usual);
        assert_eq!(names(&report), Vec::<String>::new());
        assert_eq!(
            (conf.number("gevent_port"), conf.number("http_port")),
            (Said::This(8_072), Said::This(8_069))
        );
        assert_eq!((conf.number("workers"), conf.flag("proxy_mode")), (Said::This(4), Said::This(true)));
    }

    #[test]
    fn old_names_count_and_are_told_of() {
        let (conf, report) =
            conf("odoo-1", "xmlrpc_port = 8169\nxmlrpc_interface = 10.0.0.1\nlongpolling_port = 8172");
        assert_eq!(names(&report), ["old-option-name"; 3]);
        assert_eq!(
            (conf.number("http_port"), conf.number("gevent_port")),
            (Said::This(8_169), Said::This(8_172))
        );
        let (_, report) =
            self::conf("odoo-1", "longpolling_port = 8172\ngevent_port = 8172\ndb-filter = a\ndbfilter = a");
        assert_eq!(names(&report), ["misnamed-option"]);
    }
}
