//! Where servers keep sessions and files: directories on this host, and add-ons that keep them elsewhere.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    from_disk,
    odoo_conf::{Conf, flag},
    report::{Id, Report, Severity},
    servers::Servers,
    together::differing,
};

/// Options by which add-ons are told to keep sessions in Redis.
const STORE_OPTIONS: [&str; 3] = ["enable_redis", "session_redis", "use_redis"];
/// Where Linux says how many directories a user may follow: in all, and in this namespace.
const WATCH_LIMITS: [&str; 2] =
    ["/proc/sys/fs/inotify/max_user_watches", "/proc/sys/user/max_inotify_watches"];

/// Examines what the files say of sessions and attachments.
pub(super) fn examine(files: &[Conf], servers: &Servers, report: &mut Report) {
    let sessions = find(files, "sessions", report);
    let filestores = find(files, "filestore", report);
    for (_, names) in groups(&sessions).into_iter().filter(|(_, names)| names.len() > 1) {
        let carried = servers.nodes.iter().any(|node| node.carries);
        let severity = if carried { Severity::Error } else { Severity::Note };
        let problem = "they share one sessions directory";
        let remedy = "a data_dir each; or leave --sessions off, and have a shared disk that never fails";
        report.add(severity, Id::SessionsShared, names.join(", "), problem, remedy);
    }
    let apart = groups(&filestores);
    if apart.len() > 1 {
        let sides: Vec<_> = apart.values().map(|names| names.join(", ")).collect();
        let problem = format!(
            "the filestores of {} are not the same folder: attachments are missing on the other",
            sides.join(" and of ")
        );
        let remedy = "mount one filestore below each data_dir";
        report.add(Severity::Error, Id::FilestoreSeparate, sides.join(", "), problem, remedy);
    }
    examine_stores(files, servers, report);
    let is_carried =
        |conf: &Conf| servers.nodes.iter().any(|node| node.carries && conf.nodes.contains(&node.id));
    let carried: Vec<_> =
        sessions.iter().filter(|found| is_carried(found.conf)).map(|found| found.path.clone()).collect();
    let needed = from_disk(move || carried.iter().map(|path| folders(path)).sum()).unwrap_or_default();
    let limit =
        WATCH_LIMITS.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok()).min();
    examine_watches(needed, limit, report);
}

/// A directory of a server.
struct Found<'a> {
    conf: &'a Conf,
    path: PathBuf,
    /// Which one it is, whatever its path.
    identity: (u64, u64),
}

/// The directories of this name below each data_dir.
fn find<'a>(files: &'a [Conf], name: &str, report: &mut Report) -> Vec<Found<'a>> {
    let mut found = Vec::new();
    for conf in files {
        let Some(path) = conf.data_dir().map(|folder| folder.join(name)) else { continue };
        let asked = path.clone();
        let meta = from_disk(move || fs::metadata(asked));
        match meta.unwrap_or_else(|| Err(io::Error::other("the disk does not answer"))) {
            Ok(meta) => found.push(Found { conf, path, identity: (meta.dev(), meta.ino()) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if name == "sessions" {
                    let problem = format!("{} is not there", path.display());
                    let remedy = "is this its host? Odoo makes it when somebody logs in";
                    report.add(Severity::Note, Id::NoSessionsDirectory, conf.about(), problem, remedy);
                }
            }
            Err(error) => report.left_out(path.display().to_string(), error.to_string()),
        }
    }
    found
}

/// The names of who has the same directory.
fn groups(found: &[Found<'_>]) -> BTreeMap<(u64, u64), Vec<String>> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for Found { conf, identity, .. } in found {
        groups.entry(*identity).or_default().push(conf.names());
    }
    groups
}

/// What keeps a server's sessions elsewhere than in files, as far as the file says.
fn store(conf: &Conf) -> Option<String> {
    let is_on = |name: &&&str| {
        conf.options
            .get(**name)
            .is_some_and(|value| flag(value) != Some(false) && !["", "0"].contains(&value.as_str()))
    };
    let option = STORE_OPTIONS.iter().find(is_on).map(|name| (*name).to_owned());
    let keeps = |module: &&str| {
        let module = module.to_lowercase();
        let place = ["redis", "store", "memcache", "_db", "sql"].iter().any(|place| module.contains(place));
        module.contains("session") && place
    };
    option.or_else(|| conf.list("server_wide_modules").find(keeps).map(str::to_owned))
}

fn examine_stores(files: &[Conf], servers: &Servers, report: &mut Report) {
    let keeps = |conf: &Conf| {
        conf.text("server_wide_modules").or("")?;
        Some(store(conf))
    };
    if let Some(groups) = differing(files, keeps) {
        let sides: Vec<_> = groups
            .iter()
            .map(|(store, names)| format!("{names}: {}", store.as_deref().unwrap_or("files")))
            .collect();
        let problem = format!(
            "their sessions are kept in different places ({}): whoever moves between them is logged out",
            sides.join("; ")
        );
        let remedy = "the same server_wide_modules and session options everywhere";
        let about = groups.values().cloned().collect::<Vec<_>>().join(", ");
        report.add(Severity::Error, Id::SessionStoresMixed, about, problem, remedy);
        return;
    }
    let carries =
        |conf: &&Conf| servers.nodes.iter().any(|node| node.carries && conf.nodes.contains(&node.id));
    let both: Vec<_> =
        files.iter().filter(carries).filter_map(|conf| Some((conf.names(), store(conf)?))).collect();
    if let Some((_, store)) = both.first() {
        let problem = format!(
            "{store} keeps their sessions, and --sessions carries files: what it follows is not what logs \
             people in"
        );
        let remedy = "leave --sessions off, or the add-on";
        let about = both.iter().map(|(names, _)| names.clone()).collect::<Vec<_>>().join(", ");
        report.add(Severity::Warning, Id::SessionStoreCarried, about, problem, remedy);
    }
}

/// A sidecar follows each folder of the sessions directories that it carries: Odoo 18 and newer make 4,096 in
/// each, 16 and 17 make 256.
fn examine_watches(needed: u64, limit: Option<u64>, report: &mut Report) {
    let Some(limit) = limit.filter(|limit| *limit < needed) else { return };
    let problem = format!(
        "the sidecar will follow {needed} folders, and Linux lets a user follow {limit}: sessions in the \
         others are copied ten minutes late"
    );
    let remedy = format!("sysctl -w fs.inotify.max_user_watches={}", needed.saturating_mul(4).max(65_536));
    report.add(Severity::Warning, Id::FewInotifyWatches, "this host", problem, remedy);
}

/// How many folders a sessions directory has when it is full, itself included.
fn folders(directory: &Path) -> u64 {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.len() == 2).collect();
    let is_hex = |name: &String| name.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    if !names.is_empty() && names.iter().all(is_hex) { 257 } else { 4_097 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::doctor::{
        odoo_conf::tests::{conf, names},
        servers::tests::servers,
    };

    fn found(files: &[Conf], servers: &Servers) -> Report {
        let mut report = Report::default();
        examine(files, servers, &mut report);
        report
    }

    #[test]
    fn what_is_shared_and_what_is_not_is_one_finding_each() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["a", "b", "c", "lonely"] {
            fs::create_dir_all(place(name).join("sessions")).unwrap();
        }
        fs::create_dir(place("filestore")).unwrap();
        fs::create_dir(place("lonely/filestore")).unwrap();
        for name in ["a", "b", "c"] {
            symlink(place("filestore"), place(name).join("filestore")).unwrap();
        }
        symlink(place("a"), place("also-a")).unwrap();
        let files = |names: [&str; 3]| {
            let file =
                |(name, n)| conf(&format!("odoo-{n}"), &format!("data_dir = {}", place(name).display())).0;
            names.into_iter().zip(1..).map(file).collect::<Vec<_>>()
        };
        let own = |report: &Report| {
            names(report).into_iter().filter(|name| name != "few-inotify-watches").collect::<Vec<_>>()
        };
        for (data, expected) in [
            (["a", "b", "c"], vec![]),
            (["a", "b", "a"], vec!["sessions-shared"]),
            (["a", "also-a", "a"], vec!["sessions-shared"]),
            (["a", "b", "lonely"], vec!["filestore-separate"]),
            (["a", "b", "nowhere"], vec!["no-sessions-directory"]),
        ] {
            assert_eq!(own(&found(&files(data), &servers())), expected, "{data:?}");
        }
        let shared = found(&files(["a", "b", "a"]), &servers());
        assert_eq!(
            (shared.worst(), shared.findings[0].about.as_str()),
            (Some(Severity::Error), "odoo-1, odoo-3")
        );
        let shared = found(&files(["a", "b", "a"]), &Servers::default());
        assert_eq!(shared.worst(), Some(Severity::Note));
    }

    #[test]
    fn session_stores_that_differ_or_are_carried_are_found() {
        let (redis, plain) =
            ("server_wide_modules = base,web,session_redis", "server_wide_modules = base,web");
        for (texts, carried, uncarried) in [
            ([plain, plain, ""], vec![], vec![]),
            ([redis, plain, plain], vec!["session-stores-mixed"], vec!["session-stores-mixed"]),
            (["use_redis = True", "", ""], vec!["session-stores-mixed"], vec!["session-stores-mixed"]),
            ([redis, redis, redis], vec!["session-store-carried"], vec![]),
            (["server_wide_modules = smile_redis_session_store"; 3], vec!["session-store-carried"], vec![]),
            (["session_redis = False", "", "enable_redis = 0"], vec![], vec![]),
            (["server_wide_modules = auth_session_timeout"; 3], vec![], vec![]),
        ] {
            let files: Vec<_> =
                texts.iter().zip(1..).map(|(text, n)| conf(&format!("odoo-{n}"), text).0).collect();
            assert_eq!(names(&found(&files, &servers())), carried, "{texts:?}");
            assert_eq!(names(&found(&files, &Servers::default())), uncarried, "{texts:?}");
        }
    }

    #[test]
    fn a_host_that_cannot_follow_all_folders_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        for path in [&new.join("aZ"), &new.join("-_"), &old.join("0f"), &old.join("a1")] {
            fs::create_dir_all(path).unwrap();
        }
        for (directories, limit, expected) in [
            (vec![new.clone()], Some(8_192), 0),
            (vec![new.clone(), new.clone()], Some(8_192), 1),
            (vec![new.clone()], Some(40), 1),
            (vec![old.clone(), old], Some(8_192), 0),
            (vec![folder.path().join("nowhere")], Some(1_000), 1),
            (vec![new], None, 0),
            (vec![], Some(0), 0),
        ] {
            let mut report = Report::default();
            let needed = directories.iter().map(|path| folders(path)).sum();
            examine_watches(needed, limit, &mut report);
            assert_eq!(names(&report), vec!["few-inotify-watches"; expected], "{directories:?} {limit:?}");
        }
    }
}
