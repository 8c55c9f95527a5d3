//! Nobody gets another's rights by a sidecar, whatever is put in the place of its directories.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, chown, symlink},
        process::CommandExt,
    },
    path::PathBuf,
};

use harness::{process::wait_until, say};

use super::*;

/// A user who is nobody else.
const ODOO: u32 = 4321;
/// Two looks at replicated directories.
const WHILE: Duration = Duration::from_millis(2_200);
const SID: &str = "0123456789abcdef0123456789abcdef01234567";

/// Two servers of a host with a sessions directory and a directory of files each, and a folder of root's that is
/// nobody's business.
struct Host {
    folder: TempDir,
    sidecar: SocketAddr,
}

impl Host {
    /// Whose the servers' folders are.
    fn new(user: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let host = Self { folder, sidecar: ([127, 0, 0, 1], free_port()?).into() };
        for path in [
            "etc",
            "state",
            "odoo1",
            "odoo2",
            "odoo1/openid",
            "odoo2/openid",
            "odoo1/sessions",
            "odoo2/sessions",
        ] {
            fs::create_dir(host.path(path))?;
            if path != "etc" {
                chown(host.path(path), Some(user), Some(user))?;
            }
        }
        fs::set_permissions(host.path("etc"), fs::Permissions::from_mode(0o700))?;
        fs::write(host.path("etc/shadow"), "root's own")?;
        fs::write(host.path(&format!("etc/{}", flat())), r#"{"uid": 1}"#)?;
        // Where cargo builds need not be open to everybody. By another process: what this one has open for writing,
        // and others that it forks meanwhile, cannot be run.
        let copied = Command::new("cp").arg(program("mooring")).arg(host.path("mooring")).status()?;
        ensure!(copied.success(), "the sidecar cannot be copied");
        Ok(host)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn serve(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("mooring"));
        command.env_clear().stdin(Stdio::null()).args(["serve", "--listen", &self.sidecar.to_string()]);
        command.args(["--node", "a=127.0.0.1:1", "--node", "b=127.0.0.1:2"]);
        command.arg("--state-dir").arg(self.path("state"));
        for argument in arguments {
            command.arg(argument.replace("R/", &format!("{}/", self.folder.path().display())));
        }
        command
    }

    async fn start(&self, command: Command) -> Result<Process> {
        let mut process = Process::start("the sidecar", command, &self.path("sidecar.log"))?;
        process.wait(PATIENCE, async || browser::get(self.sidecar, "/healthz").await.ok()).await?;
        Ok(process)
    }

    /// Fails if something of root's was read, written or removed.
    fn check(&self, what: &str) -> Result<()> {
        let names = |path: &str| -> Result<Vec<String>> {
            let names =
                fs::read_dir(self.path(path))?.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
            names.collect()
        };
        let mut outside = names("etc")?;
        outside.sort();
        ensure!(outside == ["shadow".to_owned(), flat()], "{what}: root's folder has {outside:?}");
        for path in ["odoo1/openid", "odoo2/openid", "odoo1/sessions", "odoo2/sessions"] {
            // What is a link leads there anyway.
            if self.path(path).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                let inside = names(path)?;
                ensure!(
                    !inside.iter().any(|name| *name == "shadow" || *name == flat()),
                    "{what}: {path} has {inside:?}"
                );
            }
        }
        Ok(())
    }
}

/// A session's file of Odoo 15.
fn flat() -> String {
    format!("werkzeug_{SID}.sess")
}

const CARRIED: [&str; 8] = [
    "--replicate",
    "R/odoo1/openid=newest",
    "--replicate",
    "R/odoo2/openid=newest",
    "--sessions",
    "a=R/odoo1/sessions",
    "--sessions",
    "b=R/odoo2/sessions",
];

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        say("SKIPPED: what a sidecar of root does not do takes root");
    }
    is_root
}

#[test]
fn root_does_not_work_in_the_folders_of_others() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new(ODOO)?;
    chown(host.path("state"), Some(0), Some(0))?;
    for path in ["shared", "shared/sessions", "roots", "roots/openid"] {
        fs::create_dir(host.path(path))?;
    }
    fs::set_permissions(host.path("shared"), fs::Permissions::from_mode(0o777))?;
    symlink(host.path("odoo1/sessions"), host.path("link"))?;
    chown(host.path("roots"), Some(ODOO), None)?;
    let cases: [(&[&str], &[&str]); 10] = [
        (&CARRIED[..2], &["--replicate", "/odoo1 belongs to user 4321", "run the sidecar as that user"]),
        (&CARRIED[4..], &["--sessions a=", "user 4321", "run the sidecar as that user"]),
        (&["--sessions", "a=R/link"], &["--sessions a=", "user 4321", "run the sidecar as that user"]),
        // One that is root's, in a folder of somebody else.
        (&["--replicate", "R/roots/openid=add"], &["--replicate", "/roots belongs to user 4321"]),
        (&["--sessions", "a=R/shared/sessions"], &["--sessions a=", "others may write in", "chmod go-w"]),
        // One that is yet to be made.
        (&["--sessions", "a=R/odoo1/new"], &["--sessions a=", "/odoo1 belongs to user 4321"]),
        (&["--replicate", "R/shared/new=add"], &["--replicate", "others may write in"]),
        // What the sidecar makes for itself.
        (&["--state-dir", "R/odoo1/state"], &["--state-dir", "/odoo1 belongs to user 4321"]),
        (&["--listen", "unix:R/odoo1/mooring.sock"], &["--listen", "/odoo1 belongs to user 4321"]),
        (&["--cache-socket", "R/shared/cache.sock"], &["--cache-socket", "others may write in"]),
    ];
    for (arguments, expected) in cases {
        let mut command = host.serve(&[]);
        if arguments[0] == "--state-dir" {
            command = Command::new(host.path("mooring"));
            command.env_clear().args(["serve", "--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0"]);
        }
        for argument in arguments {
            command.arg(argument.replace("R/", &format!("{}/", host.folder.path().display())));
        }
        let output = run(command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{arguments:?} is not refused");
        ensure!(expected.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
    host.check("refused")?;
    for path in ["odoo1/openid", "odoo1/sessions", "roots/openid", "shared/sessions"] {
        ensure!(fs::read_dir(host.path(path))?.next().is_none(), "something is left in {path}");
    }
    Ok(())
}

/// What a server's user puts in the place of its directories.
async fn attacks(host: &Host, who: u32) -> Result<()> {
    let own = |path: &str| std::os::unix::fs::lchown(host.path(path), Some(who), Some(who));
    // The directory is another.
    for (server, set) in [("odoo1", "openid"), ("odoo2", "sessions")] {
        fs::rename(host.path(&format!("{server}/{set}")), host.path(&format!("{server}/{set}.x")))?;
        symlink(host.path("etc"), host.path(&format!("{server}/{set}")))?;
        own(&format!("{server}/{set}"))?;
    }
    fs::write(host.path("odoo2/openid/evil"), "mine")?;
    own("odoo2/openid/evil")?;
    fs::write(host.path("odoo1/sessions").join(flat()), r#"{"uid": 2}"#)?;
    own(&format!("odoo1/sessions/{}", flat()))?;
    tokio::time::sleep(WHILE).await;
    fs::remove_file(host.path("odoo1/sessions").join(flat()))?;
    fs::remove_file(host.path("odoo2/openid/evil"))?;
    tokio::time::sleep(WHILE).await;
    host.check("a link in the place of a directory")?;
    for (server, set) in [("odoo1", "openid"), ("odoo2", "sessions")] {
        fs::remove_file(host.path(&format!("{server}/{set}")))?;
        fs::rename(host.path(&format!("{server}/{set}.x")), host.path(&format!("{server}/{set}")))?;
    }
    // The folder that it is in is another.
    fs::create_dir(host.path("far"))?;
    for set in ["openid", "sessions"] {
        symlink(host.path("etc"), host.path(&format!("far/{set}")))?;
    }
    fs::rename(host.path("odoo2"), host.path("odoo2.x"))?;
    symlink(host.path("far"), host.path("odoo2"))?;
    fs::write(host.path("odoo1/openid/evil"), "mine")?;
    own("odoo1/openid/evil")?;
    tokio::time::sleep(WHILE).await;
    fs::remove_file(host.path("odoo1/openid/evil"))?;
    tokio::time::sleep(WHILE).await;
    fs::remove_file(host.path("odoo2"))?;
    fs::rename(host.path("odoo2.x"), host.path("odoo2"))?;
    host.check("a link in the place of a parent")
}

/// Links to what is outside, in directories that are as they should be.
async fn links(host: &Host, who: u32) -> Result<()> {
    fs::hard_link(host.path("etc/shadow"), host.path("odoo1/openid/hard"))?;
    symlink(host.path("etc/shadow"), host.path("odoo1/openid/soft"))?;
    symlink(host.path("etc"), host.path("odoo1/openid/folder"))?;
    fs::hard_link(host.path("etc").join(flat()), host.path("odoo1/sessions").join(flat()))?;
    fs::write(host.path("odoo1/openid/good"), "good")?;
    chown(host.path("odoo1/openid/good"), Some(who), None)?;
    wait_until("a good file is carried", async || host.path("odoo2/openid/good").exists()).await?;
    ensure!(fs::metadata(host.path("odoo2/openid/good"))?.uid() == who);
    tokio::time::sleep(WHILE / 2).await;
    let there: Vec<_> =
        fs::read_dir(host.path("odoo2/openid"))?.map(|entry| entry.unwrap().file_name()).collect();
    ensure!(there == ["good"], "{there:?}");
    ensure!(fs::read_dir(host.path("odoo2/sessions"))?.next().is_none(), "a hard link was carried");
    ensure!(fs::metadata(host.path("etc/shadow"))?.nlink() == 2 && host.path("odoo1/openid/soft").exists());
    fs::remove_file(host.path("odoo1/openid/hard"))?;
    fs::remove_file(host.path("odoo1/sessions").join(flat()))?;
    host.check("links")
}

#[tokio::test]
async fn nothing_outside_is_touched_whoever_runs_it() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let tries = [0, ODOO].map(async |user| -> Result<()> {
        let host = Host::new(user)?;
        let mut command = host.serve(&CARRIED);
        if user != 0 {
            command.uid(user).gid(user);
        }
        let sidecar = host.start(command).await?;
        attacks(&host, user).await?;
        links(&host, user).await?;
        // It goes on where everything is as it was.
        fs::write(host.path("odoo1/openid/last"), "good")?;
        chown(host.path("odoo1/openid/last"), Some(user), None)?;
        wait_until("it goes on", async || host.path("odoo2/openid/last").exists()).await?;
        ensure!(sidecar.printed().contains("is a link now"), "{}", sidecar.printed());
        Ok(())
    });
    futures::future::try_join_all(tries).await.map(drop)
}
